"""How far a build is, from the phases that TensorRT reports as it goes."""

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
    """A tree of phases under way; several threads may report to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._phases: dict[str, _Phase] = {}
        self._furthest = 0.0
        self._cancelled = False

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of so many steps begins, as a step of its parent if it has one."""
        with self._lock:
            self._phases[name] = _Phase(parent, max(steps, 1))

    def step(self, name: str) -> bool:
        """One step more is done; False: TensorRT shall stop."""
        with self._lock:
            if (phase := self._phases.get(name)) is not None:
                phase.done = min(phase.done + 1, phase.steps)
                self._note()
            return not self._cancelled

    def finish(self, name: str) -> None:
        """A phase is over, or was given up."""
        with self._lock:
            self._note()
            self._phases.pop(name, None)

    def cancel(self) -> None:
        """Let TensorRT stop at the next step."""
        with self._lock:
            self._cancelled = True

    def fraction(self) -> float:
        """Of the whole, from 0 to 1; it never falls."""
        with self._lock:
            return self._furthest

    def _note(self) -> None:
        roots = [name for name, phase in self._phases.items() if phase.parent is None]
        if roots:
            self._furthest = max(self._furthest, self._fraction(roots[-1]))

    def _fraction(self, name: str) -> float:
        phase = self._phases[name]
        below = [child for child, other in self._phases.items() if other.parent == name]
        started = max((self._fraction(child) for child in below), default=0.0)
        return min((phase.done + started) / phase.steps, 1.0)


def make_monitor(api: Any, phases: BuildProgress) -> trt.IProgressMonitor:
    """What TensorRT calls; NVIDIA, "TensorRT Python API", class IProgressMonitor."""

    class Monitor(api.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return phases.step(phase_name)

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

    monitor: trt.IProgressMonitor = Monitor()
    return monitor
