"""The model of a Jetson and the versions of its software.

Sources: NVIDIA, "Jetson Linux Developer Guide" (module part numbers, `/etc/nv_tegra_release`);
NVIDIA, release notes of JetPack 6.0 to 7.2.2 (versions of Jetson Linux and TensorRT).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from resdeploy.machine.host import Host

# The GPU's name and compute capability, by the last item of the device tree's `compatible`.
SOCS = {"tegra194": ("Xavier", "7.2"), "tegra234": ("Orin", "8.7"), "tegra264": ("Thor", "11.0")}
MODULES = {
    "p3767-0000": "Orin NX 16 GB",
    "p3767-0001": "Orin NX 8 GB",
    "p3767-0003": "Orin Nano 8 GB",
    "p3767-0004": "Orin Nano 4 GB",
    "p3767-0005": "Orin Nano 8 GB",
    "p3701-0000": "AGX Orin",
    "p3701-0004": "AGX Orin",
    "p3701-0005": "AGX Orin",
    "p3834-0008": "AGX Thor",
}


@dataclass(frozen=True, slots=True)
class JetPackRelease:
    """A release of JetPack."""

    l4t: tuple[int, ...]
    """The first version of Jetson Linux that belongs to the release."""
    jetpack: str
    tensorrt: str | None
    """Version of TensorRT that the release installs; None for unsupported old releases."""


RELEASES = (
    JetPackRelease((35,), "5", None),
    JetPackRelease((36, 3), "6.0", "8.6"),
    JetPackRelease((36, 4), "6.1 or 6.2", "10.3"),
    JetPackRelease((38, 2), "7.0", "10.13"),
    JetPackRelease((38, 4), "7.1", "10.13"),
    JetPackRelease((39, 2), "7.2", "10.16"),
    JetPackRelease((39, 2, 2), "7.2.2 or later", "11.4.1"),
)
OLDEST_L4T = (36, 4)  # of JetPack 6.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Jetson:
    """A Jetson board, with names of `MODULES` and `SOCS`; None means unknown."""

    board: str
    """The name in the device tree."""
    module: str | None = None
    soc: str | None = None
    compute_capability: str | None = None
    l4t: str | None = None
    """Version of Jetson Linux, such as 36.4.7; it cannot be read in a container."""
    jetpack: str | None = None

    @property
    def gpu(self) -> str:
        """Return CUDA's name of the GPU."""
        return SOCS[self.soc][0] if self.soc in SOCS else "unknown"

    @property
    def too_old(self) -> bool:
        """Return True if Jetson Linux is older than the oldest version that is supported."""
        return self.l4t is not None and version_numbers(self.l4t) < OLDEST_L4T


def read_jetson(host: Host) -> Jetson | None:
    """Describe the Jetson board; return None if the machine is not a Jetson."""
    l4t = parse_l4t(host.text("etc/nv_tegra_release"))
    compatible = host.text("proc/device-tree/compatible")
    soc = next((name for name in SOCS if f"nvidia,{name}" in compatible.split("\0")), None)
    if l4t is None and soc is None:
        return None
    part = next((part for part in MODULES if part in compatible), None)
    release = find_release(l4t)
    return Jetson(
        board=host.text("proc/device-tree/model") or "NVIDIA Jetson",
        module=MODULES.get(part or ""),
        soc=soc,
        compute_capability=SOCS[soc][1] if soc else None,
        l4t=l4t,
        jetpack=release.jetpack if release else None,
    )


def parse_l4t(release: str) -> str | None:
    """Parse /etc/nv_tegra_release: 36.4.7 for `# R36 (release), REVISION: 4.7, ...`."""
    found = re.search(r"# R(\d+) \(release\), REVISION: ([\d.]+)", release)
    return f"{found[1]}.{found[2]}" if found else None


def find_release(l4t: str | None) -> JetPackRelease | None:
    """Return the newest known release of the same major version that is not newer than `l4t`."""
    numbers = version_numbers(l4t or "")
    known = [r for r in RELEASES if r.l4t[:1] == numbers[:1] and r.l4t <= numbers]
    return known[-1] if known else None


def version_numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, such as (36, 4, 7) for 36.4.7."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:4])
