"""What this machine is. Unknown is a value here, never an exception."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from resdeploy.machine.conditions import Conditions, read_conditions
from resdeploy.machine.cpu import Cpu, parse_cpuinfo
from resdeploy.machine.host import Host
from resdeploy.machine.jetson import Jetson, read_jetson
from resdeploy.machine.nvml import Gpu, read_gpus

LIBRARIES = "usr/lib/*-linux-gnu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One machine, as far as its files, commands and drivers say."""

    cpu: Cpu
    cores: int
    """Cores that this process may use."""
    memory_bytes: int | None = None
    gpus: tuple[Gpu, ...] = ()
    """NVIDIA's, whose driver is loaded; that of a Jetson is among them."""
    jetson: Jetson | None = None
    container: str | None = None
    """Such as `docker`; None where nothing says that this is one."""
    cuda: str | None = None
    """The toolkit in /usr/local/cuda."""
    tensorrt: str | None = None
    """The library that the system has, whether or not Python sees it."""
    conditions: Conditions = field(default_factory=Conditions)

    def to_json(self) -> dict[str, Any]:
        """The form that bundles, benchmarks and `resdeploy doctor --json` hold."""
        return {
            "architecture": self.cpu.architecture,
            "cpu": self.cpu.model,
            "cpu_features": sorted(self.cpu.features),
            "cores": self.cores,
            "memory_bytes": self.memory_bytes,
            "gpus": [asdict(gpu) for gpu in self.gpus],
            "jetson": asdict(self.jetson) if self.jetson else None,
            "container": self.container,
            "cuda": self.cuda,
            "tensorrt": self.tensorrt,
            "conditions": asdict(self.conditions),
        }


def read_device(host: Host | None = None) -> Device:
    """This machine, or the one that `host` shows."""
    host = host or Host()
    jetson = read_jetson(host)
    return Device(
        cpu=parse_cpuinfo(host.text("proc/cpuinfo"), host.architecture),
        cores=available_cores(),
        memory_bytes=parse_memory(host.text("proc/meminfo")),
        gpus=_gpus(host, jetson),
        jetson=jetson,
        container=_container(host),
        cuda=_cuda(host),
        tensorrt=_tensorrt(host),
        conditions=read_conditions(host),
    )


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def parse_memory(meminfo: str, *fields: str) -> int | None:
    """Bytes of main memory, or the sum of other fields, from the text of /proc/meminfo."""
    found = [
        re.search(rf"^{field}:\s+(\d+) kB", meminfo, re.MULTILINE)
        for field in fields or ("MemTotal",)
    ]
    sizes = [int(match[1]) * 1024 for match in found if match]
    return sum(sizes) if sizes else None


def _gpus(host: Host, jetson: Jetson | None) -> tuple[Gpu, ...]:
    if jetson:  # NVML starts on one, too, and then knows next to nothing
        return (Gpu(name=jetson.gpu, compute_capability=jetson.compute_capability),)
    if known := read_gpus(host.nvml()):
        return known
    names = []
    for information in host.find("proc/driver/nvidia/gpus/*/information"):
        found = re.search(r"^Model:\s+(.+)$", host.text(information), re.MULTILINE)
        names.append(found[1].strip() if found else "unknown")
    return tuple(Gpu(name=name) for name in names)


def _container(host: Host) -> str | None:
    if (host.root / ".dockerenv").exists():
        return "docker"
    if (host.root / "run/.containerenv").exists():
        return "podman"
    found = re.search(r"docker|kubepods|containerd|lxc", host.text("proc/1/cgroup"))
    return found[0] if found else None


def _cuda(host: Host) -> str | None:
    try:
        return str(json.loads(host.text("usr/local/cuda/version.json"))["cuda"]["version"])
    except (ValueError, KeyError, TypeError):
        return None


def _tensorrt(host: Host) -> str | None:
    versions = [
        path.name.partition(".so.")[2]
        for path in host.find(f"{LIBRARIES}/libnvinfer.so.*.*")  # not the link to it
    ]
    return versions[-1] if versions else None


class Scope(str, Enum):
    """Whose energy a source measures."""

    MODULE = "module"
    """All of a Jetson: processors, GPU, memory."""
    GPU = "gpu"
    CPU = "cpu"

    def covers(self, work: Scope) -> bool:
        """Whether work on `work`, the CPU or the GPU, is measured by it."""
        return self in (Scope.MODULE, work)
