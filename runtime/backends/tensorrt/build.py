"""Functions that build engines of a bundle's graphs and store them in the engine cache."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.manifest import Artifact, Precision
from resdeploy.errors import BackendError, OutputError
from resdeploy.machine.device import read_device
from resdeploy.machine.host import Host
from resdeploy.progress import Progress, silent
from resdeploy.runtime.backends.base import Batches
from resdeploy.runtime.backends.cuda import CudaDevice, CudaRuntime
from resdeploy.runtime.backends.tensorrt.build_memory import check_free_memory, require_memory
from resdeploy.runtime.backends.tensorrt.builder import build_engine, merge_timings
from resdeploy.runtime.backends.tensorrt.engine_cache import (
    CachedEngine,
    EngineCache,
    prune_auxiliary,
)
from resdeploy.runtime.backends.tensorrt.engine_key import key_parts
from resdeploy.runtime.backends.tensorrt.inspector import (
    EngineCoverage,
    count_convolutions,
    parse_inspector_json,
)
from resdeploy.runtime.backends.tensorrt.options import BuildOptions, check_options, default_options
from resdeploy.runtime.backends.tensorrt.tensorrt_or_rtx import (
    ARTIFACTS,
    Flavour,
    TensorRt,
    installed_version,
    load_tensorrt,
)

if TYPE_CHECKING:
    import tensorrt as trt

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """The result of `resdeploy build`."""

    engine: Path
    key: str
    artifact: str
    flavour: Flavour
    version: str
    batches: str
    seconds: float
    bytes: int
    cached: bool
    int8_convs_expected: int
    """Number of convolutions that the graph asks to run in INT8."""
    convs: int | None
    """Number of convolutions in the engine; None if TensorRT does not report its layers."""
    int8_convs: int | None
    """Number of those that run in INT8."""
    schema: str = "resdeploy.engine/1"


def choose_flavour() -> Flavour:
    """Return TensorRT if it is installed, otherwise TensorRT-RTX."""
    return Flavour.TENSORRT if installed_version(Flavour.TENSORRT) else Flavour.RTX


def choose_artifact(bundle: Bundle, precision: Precision | None, *, dla: bool = False) -> Artifact:
    """Return the graph to build: that of a precision, or the fastest one of the bundle for None.

    Raises:
        BundleError: The bundle has no such graph.
    """
    names = {artifact.name for artifact in bundle.manifest.artifacts}
    choices: tuple[str, ...] = ARTIFACTS if precision is None else (precision.value,)
    if dla:
        choices = tuple("int8-dla" if name == "int8" else name for name in choices)
    return bundle.artifact(next((name for name in choices if name in names), choices[0]))


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
    """Call `build` with the options of `resdeploy build`; use this machine's defaults for None."""
    chosen = Flavour(flavour) if flavour else choose_flavour()
    device = read_device()
    defaults = default_options(device)
    options = replace(
        defaults,
        batches=batch or defaults.batches,
        workspace_mib=workspace or defaults.workspace_mib,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        dla_core=dla,
    )
    # An unsupported option must be reported before a missing graph.
    check_options(options, chosen, load_tensorrt(chosen).version, device)
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
    """Build an engine and store it in the cache, unless the cache already holds it.

    Raises:
        BackendError: This machine cannot build the engine.
        BundleError: The graph is missing or was changed.
        OutputError: The cache cannot be written.
    """
    start = time.perf_counter()
    tensorrt = load_tensorrt(flavour)
    check_options(options, flavour, tensorrt.version, read_device())
    # TensorRT-RTX builds without a GPU, also for the GPUs of other machines.
    gpu = None if flavour is Flavour.RTX else CudaRuntime().gpu()
    graph = bundle.read(artifact.file)
    cache = EngineCache()
    parts = key_parts(tensorrt, artifact, gpu, options)
    with cache.lock(parts):
        record = None if force else cache.find(parts)
        cached = record is not None and cache.load(record) is not None
        if record is None or not cached:
            record, _ = build_and_store(cache, tensorrt, graph, artifact, gpu, options, progress)
    convs = record.notes.get("int8_convs")
    if convs is not None and convs < artifact.int8_convs:
        logger.warning(
            "the engine runs only %d convolutions in INT8, but %s asks for %d, so it is slower "
            "than expected", convs, artifact.file, artifact.int8_convs,
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
    """Build an engine, store it with its convolution counts, and update the timing cache.

    The caller must hold `cache.lock`. The result is the record of the cache and the engine.
    """
    timings = EngineCache("timings")
    timings_key = {"version": tensorrt.version, "gpu": asdict(gpu) if gpu else None}
    before = timings.load_newest(timings_key)
    host = Host()
    require_memory(len(graph), artifact.file, host)
    built = build_engine(
        tensorrt, graph, options, name=artifact.file, timings=before, progress=progress,
        check_memory=partial(check_free_memory, host),
    )  # fmt: skip
    coverage = count_convolutions(built.layers)
    if coverage is None and gpu is not None:
        coverage = _inspect(tensorrt, built.engine, options)
    record = cache.store(
        key_parts(tensorrt, artifact, gpu, options),
        built.engine,
        notes=asdict(coverage) if coverage else {},
    )
    if built.timings is not None:
        try:
            now, merged = timings.load_newest(timings_key), built.timings
            if now is not None and now != before:  # another process has built at the same time
                merged = merge_timings(tensorrt, merged, now)
            timings.store(timings_key, merged)
        except OutputError as error:
            logger.warning("the timing cache is not stored: %s", error)
    cache.prune(keep=record.key)
    prune_auxiliary()
    return record, built.engine


def deserialize(tensorrt: TensorRt, data: bytes, options: Mapping[str, Any]) -> trt.ICudaEngine:
    """Load an engine from the cache; `options` are those of its build, as JSON.

    Raise BackendError if it was built for another GPU or by another version.
    """
    tensorrt.errors.clear()
    runtime: trt.Runtime = tensorrt.api.Runtime(tensorrt.log)
    # A version-compatible engine contains host code. Only engines of the user's cache get here.
    runtime.engine_host_code_allowed = bool(options["version_compatible"])
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise BackendError(
            f"{tensorrt} cannot load the engine: {tensorrt.last_error()}",
            "run resdeploy doctor to check that the driver and TensorRT match",
        )
    return engine


def _inspect(tensorrt: TensorRt, data: bytes, options: BuildOptions) -> EngineCoverage | None:
    try:
        engine = deserialize(tensorrt, data, options.to_json())
        inspector: trt.EngineInspector = engine.create_engine_inspector()
        text = inspector.get_engine_information(tensorrt.api.LayerInformationFormat.JSON)
        return count_convolutions(parse_inspector_json(json.loads(text)))
    except (BackendError, ValueError, TypeError, AttributeError) as error:
        logger.debug("the engine inspector failed: %s", error)
        return None
