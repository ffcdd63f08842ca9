"""What this machine can run, and what to install for the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from resdeploy.provenance import installed_versions
from resdeploy.runtime.device import Device, read_device
from resdeploy.runtime.selection import ENGINES


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendStatus:
    """Whether a backend can be used here."""

    name: str
    available: bool
    version: str | None
    obstacle: str | None
    """Why it cannot run here."""
    remedy: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What `resdeploy doctor` found."""

    platform: dict[str, Any]
    gpu: tuple[str, ...]
    backends: tuple[BackendStatus, ...]
    advice: tuple[str, ...]
    versions: dict[str, str]

    @property
    def healthy(self) -> bool:
        """Whether something can run here."""
        return any(backend.available for backend in self.backends)


def diagnose(device: Device | None = None) -> Diagnosis:
    """Look at this machine (or at a given description of one)."""
    device = device or read_device()
    backends = tuple(
        BackendStatus(
            name=engine.name,
            available=obstacle is None,
            version=engine.version(),
            obstacle=obstacle.reason if obstacle else None,
            remedy=obstacle.remedy if obstacle else None,
        )
        for engine in ENGINES
        for obstacle in [engine.obstacle()]
    )
    return Diagnosis(
        platform=device.to_json(),
        gpu=device.gpus,
        backends=backends,
        advice=tuple(_advice(device, backends)),
        versions=installed_versions(),
    )


def _advice(device: Device, backends: tuple[BackendStatus, ...]) -> list[str]:
    advice = [
        f"{backend.name}: {backend.obstacle}; {backend.remedy}"
        for backend in backends
        if not backend.available and (device.gpus or device.l4t or "cpu" in backend.name)
    ]
    if not device.cpu.multiplies_int8_exactly:
        advice.append(
            "this processor has no VNNI: int8 runs with exact but slower kernels; "
            "compare with resdeploy bench"
        )
    return advice
