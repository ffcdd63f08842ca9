"""What this machine can run, what to do about the rest, and whether a bundle gives its answers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from resdeploy.bundle.bundle import open_bundle
from resdeploy.machine.device import Device, read_device
from resdeploy.machine.host import Host
from resdeploy.machine.nvml import Gpu
from resdeploy.progress import Progress, silent
from resdeploy.results.provenance import installed_versions
from resdeploy.results.verification import Verification
from resdeploy.runtime.backends.registry import ENGINES
from resdeploy.runtime.diagnosis.advice import Situation, advise
from resdeploy.runtime.verification.verify import verify
from resdeploy.statistics import Verdict


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
    gpu: tuple[Gpu, ...]
    backends: tuple[BackendStatus, ...]
    advice: tuple[str, ...]
    versions: dict[str, str]
    self_test: Verification | None
    """What a bundle's golden images gave on every backend here; None without a bundle."""

    @property
    def healthy(self) -> bool:
        """Whether something can run here, and gives PyTorch's answers as far as was tried."""
        right = self.self_test is None or self.self_test.verdict is Verdict.PASS
        return right and any(backend.available for backend in self.backends)


def diagnose(
    bundle: Path | None = None, *, host: Host | None = None, progress: Progress = silent
) -> Diagnosis:
    """Look at this machine (or at what `host` shows of one), and try a bundle on it.

    Raises:
        BackendError, BundleError: nothing runs the bundle here, or it is damaged.
    """
    host = host or Host()
    device = read_device(host)
    backends = tuple(
        BackendStatus(
            name=engine.name,
            available=obstacle is None,
            version=engine.version(),
            obstacle=obstacle.reason if obstacle else None,
            remedy=obstacle.hint if obstacle else None,
        )
        for engine in ENGINES
        for obstacle in [engine.check_availability()]
    )
    situation = Situation(
        host=host,
        device=device,
        sees_tensorrt=find_spec("tensorrt") is not None,
        installed=installed_packages(),
    )
    return Diagnosis(
        platform=device.to_json(),
        gpu=device.gpus,
        backends=backends,
        advice=(*_obstacles(device, backends), *advise(situation)),
        versions=installed_versions(),
        self_test=verify(open_bundle(bundle), progress=progress) if bundle else None,
    )


def installed_packages() -> dict[str, str]:
    """Versions of all of Python's packages, by name as PyPI writes it."""
    return {
        re.sub(r"[-_.]+", "-", name).lower(): distribution.version
        for distribution in metadata.distributions()
        if (name := distribution.metadata["Name"])
    }


def _obstacles(device: Device, backends: tuple[BackendStatus, ...]) -> list[str]:
    """What would bring further backends, where the hardware is there for them.

    Not on a Jetson, where TensorRT has advice of its own and PyPI's wheels do not fit.
    """
    return [
        f"{backend.name}: {backend.obstacle}; {backend.remedy}"
        for backend in backends
        if not backend.available and ("cpu" in backend.name or (device.gpus and not device.jetson))
    ]
