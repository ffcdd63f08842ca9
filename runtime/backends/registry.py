"""The list of inference engines, and the artifacts that each of them can run here."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.manifest import Artifact
from resdeploy.errors import BackendError
from resdeploy.runtime.backends import openvino
from resdeploy.runtime.backends.base import (
    AUTO,
    DEFAULT_OPTIONS,
    Backend,
    OpenOptions,
    Unavailability,
)
from resdeploy.runtime.backends.onnxruntime import cpu as onnxruntime_cpu
from resdeploy.runtime.backends.onnxruntime import gpu as onnxruntime_gpu
from resdeploy.runtime.backends.onnxruntime import session as onnxruntime_session
from resdeploy.runtime.backends.tensorrt import tensorrt_or_rtx
from resdeploy.runtime.backends.tensorrt.tensorrt_or_rtx import Flavour

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """An inference engine, and the functions that check, describe and open it."""

    name: str
    open: Callable[[Bundle, Artifact, OpenOptions], Backend]
    """Function that checks the sha256 of an artifact and loads it. It raises a BackendError if the
    engine cannot run it, a BundleError if the file is missing or was changed, an OutputError if the
    engine cache cannot be written, and a MissingDependencyError if a package is not installed."""
    check_availability: Callable[[], Unavailability | None]
    """Function that returns the reason why the engine cannot run here, or None if it can. It is
    quick and does not load the engine."""
    version: Callable[[], str | None]
    """Function that returns the installed version; None if the engine is not installed."""
    artifacts: Callable[[str], tuple[str, ...]]
    """Function that returns the names of the artifacts that a version can run, fastest first."""
    automatic: bool = True
    """True if `auto` may choose the engine."""
    on_cpu: bool = False


def _tensorrt(kind: Flavour) -> Engine:
    def open_backend(bundle: Bundle, artifact: Artifact, options: OpenOptions) -> Backend:
        # The modules that build engines are a third of all that the runtime imports.
        from resdeploy.runtime.backends.tensorrt.open_engine import open_artifact

        return open_artifact(kind, bundle, artifact, options)

    return Engine(
        name=kind.value,
        open=open_backend,
        check_availability=partial(tensorrt_or_rtx.check_availability, kind),
        version=partial(tensorrt_or_rtx.installed_version, kind),
        artifacts=lambda version: tensorrt_or_rtx.ARTIFACTS,
    )


def _onnxruntime_gpu(name: str, *, automatic: bool) -> Engine:
    return Engine(
        name=name,
        open=partial(onnxruntime_gpu.open_artifact, name),
        check_availability=partial(onnxruntime_gpu.check_availability, name),
        version=onnxruntime_session.installed_version,
        artifacts=lambda version: onnxruntime_gpu.ARTIFACTS[name],
        automatic=automatic,
    )


# From the fastest to the slowest; on CPUs, from the quickest to start to the slowest.
ENGINES = (
    _tensorrt(Flavour.TENSORRT),
    _tensorrt(Flavour.RTX),
    # It takes minutes to build its engine each time that it is opened, so `auto` skips it.
    _onnxruntime_gpu(onnxruntime_gpu.TENSORRT, automatic=False),
    _onnxruntime_gpu(onnxruntime_gpu.CUDA, automatic=True),
    Engine(
        name=onnxruntime_cpu.NAME,
        open=onnxruntime_cpu.open_artifact,
        check_availability=onnxruntime_cpu.check_availability,
        version=onnxruntime_session.installed_version,
        artifacts=onnxruntime_cpu.artifacts,
        on_cpu=True,
    ),
    # It is faster on many CPUs, which `engine_speeds` finds out. Without a measurement it comes
    # second: it takes longer to start, and its logits are not bit-exact with those of the export.
    Engine(
        name=openvino.NAME,
        open=openvino.open_artifact,
        check_availability=openvino.check_availability,
        version=openvino.installed_version,
        artifacts=lambda version: openvino.ARTIFACTS,
        on_cpu=True,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An artifact, and an engine that can run it here."""

    engine: Engine
    artifact: Artifact

    def open(self, bundle: Bundle, options: OpenOptions = DEFAULT_OPTIONS) -> Backend:
        return self.engine.open(bundle, self.artifact, options)


def candidates(bundle: Bundle, backend: str = AUTO, precision: str = AUTO) -> list[Candidate]:
    """Return the selected pairs of an engine and an artifact that can run here, fastest first.

    On a CPU, all engines that run the fastest artifact come before those that run the next one.
    `backend` is the name of an engine, or `auto` for all that have `automatic` set. `precision` is
    `fp32`, `fp16`, `int8`, or `auto` for all.

    Raises:
        BackendError: No pair is left; the message says what there is.
    """
    names = [engine.name for engine in ENGINES]
    if backend not in (AUTO, *names):
        raise BackendError(f"there is no backend {backend!r}", f"choose one of {', '.join(names)}")
    automatic = backend == AUTO
    selected = [e for e in ENGINES if e.name == backend or (automatic and e.automatic)]
    found = []
    by_name = {artifact.name: artifact for artifact in bundle.manifest.artifacts}
    unavailable: dict[str, Unavailability] = {}
    for engine in selected:
        if unavailability := engine.check_availability():
            unavailable[engine.name] = unavailability
            logger.debug("%s cannot run here: %s", engine.name, unavailability.reason)
            continue
        found += [
            Candidate(engine=engine, artifact=by_name[name])
            for name in engine.artifacts(engine.version() or "")
            if name in by_name and precision in (AUTO, by_name[name].precision.value)
        ]
        logger.debug("%s can run here", engine.name)
    cpu_order = {name: place for place, name in enumerate(onnxruntime_cpu.ARTIFACTS)}
    found.sort(key=lambda c: cpu_order[c.artifact.name] if c.engine.on_cpu else -1)
    if len(unavailable) == len(selected):
        last = unavailable.get(onnxruntime_cpu.NAME) or [*unavailable.values()][-1]
        failed = "no backend can" if automatic else f"{backend} cannot"
        raise BackendError(f"{failed} run here: {last.reason}", last.hint)
    if not found:
        raise BackendError(
            f"{bundle.path} holds no {precision} graph for this backend, only {', '.join(by_name)}",
            "choose another --backend or --precision"
            if precision in {artifact.precision.value for artifact in by_name.values()}
            else f"export it again with --{precision}",
        )
    return found
