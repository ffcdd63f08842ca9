"""The diagnosis of a machine: its backends, advice, and a self-test with a bundle."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from resdeploy.bundle.bundle import open_bundle
from resdeploy.machine.device import Device, read_device
from resdeploy.machine.host import Host
from resdeploy.machine.nvml import Gpu
from resdeploy.progress import Progress, silent
from resdeploy.result_files.provenance import installed_versions
from resdeploy.result_files.verification import Verification
from resdeploy.runtime.backends.engine_speeds import EngineSpeeds, measure_speeds, speed_key
from resdeploy.runtime.backends.registry import ENGINES, candidates
from resdeploy.runtime.diagnosis.advice import Situation, advise
from resdeploy.runtime.verification.verify import verify
from resdeploy.statistics import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendStatus:
    """The state of one backend on this machine."""

    name: str
    available: bool
    version: str | None
    obstacle: str | None
    """The reason why the backend cannot run here; None if it can."""
    remedy: str | None
    """The command that removes the obstacle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """The result of `resdeploy doctor`."""

    platform: Device
    gpu: tuple[Gpu, ...]
    backends: tuple[BackendStatus, ...]
    advice: tuple[str, ...]
    versions: dict[str, str]
    speeds: EngineSpeeds | None
    """Speeds of the engines for CPUs, with all cores; None without a bundle or without a choice."""
    self_test: Verification | None
    """The golden check of a bundle on every backend; None without a bundle."""
    schema: str = "resdeploy.diagnosis/1"

    @property
    def healthy(self) -> bool:
        """True if a backend is available and the self-test succeeded or was not requested."""
        passed = self.self_test is None or self.self_test.verdict is Verdict.REPRODUCED
        return passed and any(backend.available for backend in self.backends)


# The reason to install a backend that is not needed; docs/performance.md has the figures.
GAINS = {"openvino": "it runs INT8 faster on many CPUs: "}


def diagnose(
    bundle: Path | None = None, *, host: Host | None = None, progress: Progress = silent
) -> Diagnosis:
    """Examine `host` (None for this machine) and, if a bundle is given, run its golden check.

    Raises:
        BackendError: No backend can run the bundle.
        BundleError: The bundle is damaged.
    """
    host = host or Host()
    opened = open_bundle(bundle) if bundle else None
    key = speed_key(candidates(opened), threads=None) if opened else None
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
    advice = advise(situation)
    return Diagnosis(
        platform=device,
        gpu=device.gpus,
        backends=backends,
        advice=(*_obstacles(device, backends, advice), *advice),
        versions=installed_versions(),
        speeds=measure_speeds(opened, key, progress) if opened and key else None,
        self_test=verify(opened, progress=progress) if opened else None,
    )


def installed_packages() -> dict[str, str]:
    """Return the versions of all installed Python packages by normalised name."""
    return {
        re.sub(r"[-_.]+", "-", name).lower(): distribution.version
        for distribution in metadata.distributions()
        if (name := distribution.metadata["Name"])
    }


def _obstacles(device: Device, backends: tuple[BackendStatus, ...], advice: list[str]) -> list[str]:
    """Return the obstacle and remedy of each missing backend that fits and that no advice names.

    GPU backends are skipped on a Jetson, because it cannot use the wheels on PyPI, and `advise`
    includes TensorRT there.
    """
    return [
        f"{backend.name}: {backend.obstacle}; {GAINS.get(backend.name, '')}{backend.remedy}"
        for backend in backends
        for fits in [device.gpus or backend.name in GAINS]
        if not backend.available
        and not any(str(backend.remedy) in line for line in advice)
        and ("cpu" in backend.name or (fits and not device.jetson))
    ]
