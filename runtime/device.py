"""What this machine is. Unknown is a value here, never an exception."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resdeploy.cpu import Cpu, read_cpu


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One machine, as far as its files in /proc, /etc and the device tree say."""

    cpu: Cpu
    cores: int
    """Cores that this process may use."""
    memory_bytes: int | None
    gpus: tuple[str, ...]
    """Names of the NVIDIA GPUs whose driver is loaded."""
    jetson: str | None
    """The board's name."""
    l4t: str | None
    """Version of Jetson Linux, such as 36.4.7."""

    def to_json(self) -> dict[str, Any]:
        """The form that benchmarks and `resdeploy doctor --json` hold."""
        return {
            "architecture": self.cpu.architecture,
            "cpu": self.cpu.model,
            "cpu_features": sorted(self.cpu.features),
            "cores": self.cores,
            "memory_bytes": self.memory_bytes,
            "gpus": list(self.gpus),
            "jetson": self.jetson,
            "l4t": self.l4t,
        }


def read_device(root: Path = Path("/")) -> Device:
    """This machine; `root` stands for the folder that the paths of the kernel are below."""
    l4t = parse_l4t(_read(root / "etc/nv_tegra_release"))
    return Device(
        cpu=read_cpu(),
        cores=available_cores(),
        memory_bytes=parse_memory(_read(root / "proc/meminfo")),
        gpus=_gpus(root / "proc/driver/nvidia/gpus"),
        jetson=(_read(root / "proc/device-tree/model").rstrip("\0 \n") or None) if l4t else None,
        l4t=l4t,
    )


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def parse_memory(meminfo: str) -> int | None:
    """Bytes of main memory, from the text of /proc/meminfo."""
    found = re.search(r"^MemTotal:\s+(\d+) kB", meminfo, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def parse_l4t(release: str) -> str | None:
    """`36.4.7` of `# R36 (release), REVISION: 4.7, ...`, from /etc/nv_tegra_release."""
    found = re.search(r"# R(\d+) \(release\), REVISION: ([\d.]+)", release)
    return f"{found[1]}.{found[2]}" if found else None


def _gpus(folder: Path) -> tuple[str, ...]:
    names = []
    for information in sorted(folder.glob("*/information")):
        found = re.search(r"^Model:\s+(.+)$", _read(information), re.MULTILINE)
        names.append(found[1].strip() if found else "unknown")
    return tuple(names)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
