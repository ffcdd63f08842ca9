"""Which engines can run which artifacts here, the fastest first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.manifest import Artifact
from resdeploy.errors import BackendError
from resdeploy.runtime.backends import openvino as openvino_cpu
from resdeploy.runtime.backends.base import AUTO, DEFAULT_OPENING, Backend, Obstacle, OpenOptions
from resdeploy.runtime.backends.onnxruntime import (
    cpu as onnxruntime_cpu,
)
from resdeploy.runtime.backends.onnxruntime import (
    gpu as onnxruntime_gpu,
)
from resdeploy.runtime.backends.onnxruntime import (
    session as onnxruntime_session,
)
from resdeploy.runtime.backends.tensorrt import flavour
from resdeploy.runtime.backends.tensorrt.flavour import Flavour


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A kind of backend."""

    name: str
    open: Callable[[Bundle, Artifact, OpenOptions], Backend]
    obstacle: Callable[[], Obstacle | None]
    """Why it cannot run here; None where it can. Quick, and without loading the engine."""
    version: Callable[[], str | None]
    """None where it is not installed."""
    artifacts: Callable[[str], tuple[str, ...]]
    """Names of the artifacts that a version can run, the fastest first."""
    automatic: bool = True
    """Whether `auto` may choose it."""
    on_cpu: bool = False


def _tensorrt(kind: Flavour) -> Engine:
    def open_artifact(bundle: Bundle, artifact: Artifact, opening: OpenOptions) -> Backend:
        # What builds engines is a third of all that the runtime imports.
        from resdeploy.runtime.backends.tensorrt.open_engine import open_backend

        return open_backend(kind)(bundle, artifact, opening)

    return Engine(
        name=kind.value,
        open=open_artifact,
        obstacle=partial(flavour.obstacle, kind),
        version=partial(flavour.installed_version, kind),
        artifacts=lambda version: flavour.ARTIFACTS,
    )


def _onnxruntime_gpu(name: str, *, automatic: bool) -> Engine:
    return Engine(
        name=name,
        open=onnxruntime_gpu.open_backend(name),
        obstacle=partial(onnxruntime_gpu.obstacle, name),
        version=onnxruntime_session.installed_version,
        artifacts=lambda version: onnxruntime_gpu.ARTIFACTS[name],
        automatic=automatic,
    )


# From the fastest to the slowest.
ENGINES = (
    _tensorrt(Flavour.TENSORRT),
    _tensorrt(Flavour.RTX),
    # It builds its engine anew, for minutes, whenever it is opened: only where it is asked for.
    _onnxruntime_gpu(onnxruntime_gpu.TENSORRT, automatic=False),
    _onnxruntime_gpu(onnxruntime_gpu.CUDA, automatic=True),
    # The fastest on some processors; the bits that the export recorded come from the next one.
    Engine(
        name=openvino_cpu.NAME,
        open=openvino_cpu.open_artifact,
        obstacle=openvino_cpu.obstacle,
        version=openvino_cpu.installed_version,
        artifacts=lambda version: openvino_cpu.ARTIFACTS,
        automatic=False,
        on_cpu=True,
    ),
    Engine(
        name=onnxruntime_cpu.NAME,
        open=onnxruntime_cpu.open_artifact,
        obstacle=onnxruntime_cpu.obstacle,
        version=onnxruntime_session.installed_version,
        artifacts=onnxruntime_cpu.artifacts,
        on_cpu=True,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An artifact with an engine that can run it here."""

    engine: Engine
    artifact: Artifact

    def open(self, bundle: Bundle, opening: OpenOptions = DEFAULT_OPENING) -> Backend:
        """Load the artifact into the engine; see the engine's class for what it raises."""
        return self.engine.open(bundle, self.artifact, opening)


def candidates(bundle: Bundle, backend: str = AUTO, precision: str = AUTO) -> list[Candidate]:
    """All pairs that can run here and were asked for, the fastest first.

    Args:
        bundle: The bundle.
        backend: An engine's name, or `auto` for all that need not be asked for.
        precision: `fp32`, `fp16`, `int8`, or `auto` for all.

    Raises:
        BackendError: nothing is left; the message says what there is.
    """
    names = [engine.name for engine in ENGINES]
    if backend not in (AUTO, *names):
        raise BackendError(f"there is no backend {backend!r}", f"choose from {', '.join(names)}")
    asked = [
        engine
        for engine in ENGINES
        if engine.name == backend or (backend == AUTO and engine.automatic)
    ]
    found = []
    by_name = {artifact.name: artifact for artifact in bundle.manifest.artifacts}
    obstacles: list[Obstacle] = []
    for engine in asked:
        if obstacle := engine.obstacle():
            obstacles.append(obstacle)
            continue
        found += [
            Candidate(engine=engine, artifact=by_name[name])
            for name in engine.artifacts(engine.version() or "")
            if name in by_name and precision in (AUTO, by_name[name].precision.value)
        ]
    if len(obstacles) == len(asked):
        last = obstacles[-1]
        what = f"{backend} cannot run here" if backend != AUTO else "no backend can run here"
        raise BackendError(f"{what}: {last.reason}", last.remedy)
    if not found:
        there = ", ".join(by_name)
        raise BackendError(
            f"{bundle.path} holds no {precision} graph, only {there}",
            f"export it again with --{precision}",
        )
    return found
