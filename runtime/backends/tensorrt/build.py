"""From a bundle's graph to an engine in the cache."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.manifest import Artifact, Precision
from resdeploy.errors import BackendError, OutputError
from resdeploy.machine.device import read_device
from resdeploy.machine.host import Host
from resdeploy.progress import Progress, silent
from resdeploy.runtime.backends.base import Batches
from resdeploy.runtime.backends.cuda import CudaRuntime, CudaDevice
from resdeploy.runtime.backends.tensorrt.build_memory import check_memory, make_memory_check
from resdeploy.runtime.backends.tensorrt.builder import build_engine, merge_timings
from resdeploy.runtime.backends.tensorrt.engine_cache import (
    AUXILIARY_KINDS,
    AUXILIARY_LIMIT_BYTES,
    CachedEngine,
    EngineCache,
)
from resdeploy.runtime.backends.tensorrt.engine_key import key_parts
from resdeploy.runtime.backends.tensorrt.flavour import (
    ARTIFACTS,
    Flavour,
    TensorRt,
    installed_version,
    load_tensorrt,
)
from resdeploy.runtime.backends.tensorrt.inspector import (
    EngineCoverage,
    count_convolutions,
    parse_inspector_json,
)
from resdeploy.runtime.backends.tensorrt.options import BuildOptions, check_options, default_options

if TYPE_CHECKING:
    import tensorrt as trt

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """What `resdeploy build` reports."""

    engine: Path
    key: str
    artifact: str
    flavour: Flavour
    version: str
    batches: str
    seconds: float
    bytes: int
    cached: bool
    """Whether it was there already."""
    int8_convs_expected: int
    """Convolutions that should run in INT8, by a look at the graph."""
    convs: int | None
    """Convolutions of the engine, as TensorRT tells; None where it does not."""
    int8_convs: int | None


def choose_flavour() -> Flavour:
    """TensorRT where it is installed, otherwise TensorRT-RTX."""
    return Flavour.TENSORRT if installed_version(Flavour.TENSORRT) else Flavour.RTX


def choose_artifact(bundle: Bundle, precision: Precision | None, *, dla: bool = False) -> Artifact:
    """The graph to build: the fastest of a bundle, or that of a precision.

    Raises:
        BundleError: the bundle has no such graph.
    """
    names = {artifact.name for artifact in bundle.manifest.artifacts}
    wanted: tuple[str, ...] = ARTIFACTS if precision is None else (precision.value,)
    if dla:
        wanted = tuple("int8-dla" if name == "int8" else name for name in wanted)
    return bundle.artifact(next((name for name in wanted if name in names), wanted[0]))


def build_for_this_machine(
    bundle: Bundle,
    *,
    precision: str = "auto",
    flavour: str | None = None,
    batch: Batches | None = None,
    workspace: int | None = None,
    version_compatible: bool = False,
    hardware_compatible: bool = False,
    dla: int | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> BuildReport:
    """What `resdeploy build` does with its options.

    Raises:
        BackendError, BundleError, OutputError: see `build`.
    """
    chosen = Flavour(flavour) if flavour else choose_flavour()
    device = read_device()
    usual = default_options(device)
    options = replace(
        usual,
        batches=batch or usual.batches,
        workspace_mib=workspace or usual.workspace_mib,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        dla_core=dla,
    )
    version = load_tensorrt(chosen).version
    check_options(options, chosen, version, device)  # before a missing graph is complained of
    artifact = choose_artifact(
        bundle, None if precision == "auto" else Precision(precision), dla=dla is not None
    )
    return build(bundle, artifact, chosen, options, force=force, progress=progress)


def build(
    bundle: Bundle,
    artifact: Artifact,
    flavour: Flavour,
    options: BuildOptions,
    *,
    force: bool = False,
    progress: Progress = silent,
) -> BuildReport:
    """Put an engine into the cache, unless it is there.

    Raises:
        BackendError: this machine cannot build it.
        BundleError: the graph is damaged.
        OutputError: the cache cannot be written.
    """
    start = time.perf_counter()
    tensorrt = load_tensorrt(flavour)
    check_options(options, flavour, tensorrt.version, read_device())
    # TensorRT-RTX builds without a GPU, for those of others.
    gpu = None if flavour is Flavour.RTX else CudaRuntime().gpu()
    graph = bundle.read(artifact.file)
    cache = EngineCache()
    parts = key_parts(tensorrt, artifact, gpu, options)
    with cache.lock(parts):
        record = cache.find(parts)
        cached = record is not None and not force and cache.load(record) is not None
        if record is None or not cached:
            record, _ = build_and_store(cache, tensorrt, graph, artifact, gpu, options, progress)
    convs = record.notes.get("int8_convs")
    if convs is not None and convs < artifact.int8_convs:
        logger.warning(
            "the engine runs %d convolutions in INT8, where %s asks for %d: it is slower than it "
            "could be", convs, artifact.file, artifact.int8_convs,
        )  # fmt: skip
    return BuildReport(
        engine=cache.data_path(record.key),
        key=record.key,
        artifact=artifact.name,
        flavour=flavour,
        version=tensorrt.version,
        batches=str(options.batches),
        seconds=time.perf_counter() - start,
        bytes=record.bytes,
        cached=cached,
        int8_convs_expected=artifact.int8_convs,
        convs=record.notes.get("convs"),
        int8_convs=convs,
    )


def build_and_store(
    cache: EngineCache,
    tensorrt: TensorRt,
    graph: bytes,
    artifact: Artifact,
    gpu: CudaDevice | None,
    options: BuildOptions,
    progress: Progress,
) -> tuple[CachedEngine, bytes]:
    """Build an engine, store it, and give it; hold `cache.lock` meanwhile.

    What the builder measured is kept as well, and what it made of the graph; the engine does not
    depend on that.
    """
    timings = EngineCache("timings")
    measured_on = {"version": tensorrt.version, "gpu": asdict(gpu) if gpu else None}
    before = timings.load_newest(measured_on)
    host = Host()
    check_memory(len(graph), artifact.file, host)
    built = build_engine(
        tensorrt, graph, options, name=artifact.file, timings=before, progress=progress,
        watch=make_memory_check(host),
    )  # fmt: skip
    covered = count_convolutions(built.layers)
    if covered is None and gpu is not None:
        covered = _inspect(tensorrt, built.engine, options)
    record = cache.store(
        key_parts(tensorrt, artifact, gpu, options),
        built.engine,
        notes=asdict(covered) if covered else {},
    )
    if built.timings is not None:
        try:
            now, merged = timings.load_newest(measured_on), built.timings
            if now is not None and now != before:  # another process built meanwhile
                merged = merge_timings(tensorrt, merged, now)
            timings.store(measured_on, merged)
        except OutputError as error:
            logger.warning("what was measured is not kept: %s", error)
    cache.prune(keep=record.key)
    for kind in AUXILIARY_KINDS:
        EngineCache(kind).prune(AUXILIARY_LIMIT_BYTES)
    return record, built.engine


def deserialize(tensorrt: TensorRt, data: bytes, options: Mapping[str, Any]) -> trt.ICudaEngine:
    """Load an engine that came out of the cache.

    Raises:
        BackendError: it was built for another GPU or by another version.
    """
    tensorrt.errors.clear()
    runtime: trt.Runtime = tensorrt.api.Runtime(tensorrt.log)
    # A version-compatible engine brings code of its own; only those of the cache come this far.
    runtime.engine_host_code_allowed = bool(options["version_compatible"])
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise BackendError(
            f"{tensorrt.flavour.value} {tensorrt.version} does not load the engine: "
            f"{tensorrt.last_error()}",
            "resdeploy doctor shows whether the driver and TensorRT fit each other",
        )
    return engine


def _inspect(tensorrt: TensorRt, data: bytes, options: BuildOptions) -> EngineCoverage | None:
    try:
        engine = deserialize(tensorrt, data, options.to_json())
        inspector: trt.EngineInspector = engine.create_engine_inspector()
        text = inspector.get_engine_information(tensorrt.api.LayerInformationFormat.JSON)
        return count_convolutions(parse_inspector_json(json.loads(text)))
    except (BackendError, ValueError, TypeError, AttributeError) as error:
        logger.debug("the inspector tells nothing: %s", error)
        return None
