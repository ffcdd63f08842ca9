"""Which engines can run which artifacts here, the fastest first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from resdeploy.bundle import Artifact, Bundle
from resdeploy.errors import BackendError
from resdeploy.runtime import onnxruntime_cpu
from resdeploy.runtime.backend import Backend

AUTO = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A kind of backend."""

    name: str
    open: Callable[[Bundle, Artifact, int | None], Backend]
    version: Callable[[], str | None]
    """None where it is not installed."""
    artifacts: Callable[[str], tuple[str, ...]]
    """Names of the artifacts that a version can run, the fastest first."""
    extra: str
    """What to install for it."""


# From the fastest to the slowest.
ENGINES = (
    Engine(
        name=onnxruntime_cpu.NAME,
        open=onnxruntime_cpu.open_artifact,
        version=onnxruntime_cpu.version,
        artifacts=onnxruntime_cpu.artifacts,
        extra="cpu",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An artifact with an engine that can run it here."""

    engine: Engine
    artifact: Artifact

    def open(self, bundle: Bundle, threads: int | None = None) -> Backend:
        """Load the artifact into the engine; see the engine's class for what it raises."""
        return self.engine.open(bundle, self.artifact, threads)


def candidates(bundle: Bundle, backend: str = AUTO, precision: str = AUTO) -> list[Candidate]:
    """All pairs that can run here and were asked for, the fastest first.

    Args:
        bundle: The bundle.
        backend: An engine's name, or `auto` for all.
        precision: `fp32`, `fp16`, `int8`, or `auto` for all.

    Raises:
        BackendError: nothing is left; the message says what there is.
    """
    names = [engine.name for engine in ENGINES]
    if backend not in (AUTO, *names):
        raise BackendError(f"there is no backend {backend!r}", f"choose from {', '.join(names)}")
    engines = [engine for engine in ENGINES if backend in (AUTO, engine.name)]
    installed = [(engine, version) for engine in engines if (version := engine.version())]
    if not installed:
        raise BackendError(
            f"no backend is installed for {backend if backend != AUTO else 'this machine'}",
            f"pip install 'resdeploy[{engines[-1].extra}]'",
        )
    by_name = {artifact.name: artifact for artifact in bundle.manifest.artifacts}
    found = [
        Candidate(engine=engine, artifact=by_name[name])
        for engine, version in installed
        for name in engine.artifacts(version)
        if name in by_name and precision in (AUTO, by_name[name].precision.value)
    ]
    if not found:
        there = ", ".join(by_name)
        raise BackendError(
            f"{bundle.path} holds no {precision} graph, only {there}",
            f"export it again with --{precision}",
        )
    return found
