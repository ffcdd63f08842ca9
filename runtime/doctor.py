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
    install: str | None
    """The command that brings it, where it is missing."""


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
            available=version is not None,
            version=version,
            install=None if version else f"pip install 'resdeploy[{engine.extra}]'",
        )
        for engine in ENGINES
        for version in [engine.version()]
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
        f"{backend.name} is not installed: {backend.install}"
        for backend in backends
        if not backend.available
    ]
    if not device.cpu.multiplies_int8_exactly:
        advice.append(
            "this processor has no VNNI: int8 runs with exact but slower kernels; "
            "compare with resdeploy bench"
        )
    if device.gpus or device.jetson:
        advice.append("this version runs on the CPU only; the GPU found here is not used yet")
    return advice
