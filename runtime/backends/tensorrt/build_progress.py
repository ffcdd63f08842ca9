"""The progress of a build, computed from the phases that TensorRT reports."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tensorrt as trt


@dataclass(slots=True)
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class BuildProgress:
    """The tree of the phases that are running; its methods are thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._phases: dict[str, _Phase] = {}
        self._furthest = 0.0
        self._cancelled = False

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Add a phase of `steps` steps, as a step of its parent if it has one."""
        with self._lock:
            self._phases[name] = _Phase(parent, max(steps, 1))

    def step(self, name: str) -> bool:
        """Count one step of a phase; return False if TensorRT must stop."""
        with self._lock:
            if (phase := self._phases.get(name)) is not None:
                phase.done = min(phase.done + 1, phase.steps)
                self._update()
            return not self._cancelled

    def finish(self, name: str) -> None:
        with self._lock:
            self._phases.pop(name, None)

    def cancel(self) -> None:
        """Make TensorRT stop at the next step."""
        self._cancelled = True

    def fraction(self) -> float:
        """Return the finished fraction of the build, from 0 to 1; it never decreases."""
        return self._furthest

    def _update(self) -> None:
        roots = [name for name, phase in self._phases.items() if phase.parent is None]
        if roots:
            self._furthest = max(self._furthest, self._fraction(roots[-1]))

    def _fraction(self, name: str) -> float:
        phase = self._phases[name]
        children = [child for child, other in self._phases.items() if other.parent == name]
        started = max((self._fraction(child) for child in children), default=0.0)
        return min((phase.done + started) / phase.steps, 1.0)


def make_monitor(api: Any, progress: BuildProgress) -> trt.IProgressMonitor:
    """Return the object through which TensorRT reports to `progress`.

    Source: NVIDIA, "TensorRT Python API", class IProgressMonitor.
    """

    class Monitor(api.IProgressMonitor):  # type: ignore[misc]
        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return progress.step(phase_name)

        def phase_finish(self, phase_name: str) -> None:
            progress.finish(phase_name)

    monitor: trt.IProgressMonitor = Monitor()
    return monitor
