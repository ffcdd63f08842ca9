"""The description of a machine; a fact that cannot be read is None and raises no error."""

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


class Scope(str, Enum):
    """The part of a machine whose energy a source measures."""

    MODULE = "module"
    """The whole module of a Jetson: CPU, GPU and memory."""
    GPU = "gpu"
    CPU = "cpu"

    def covers(self, work: Scope) -> bool:
        """Return True if this scope includes `work`, which is the CPU or the GPU."""
        return self in (Scope.MODULE, work)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A machine, as far as its files, commands and drivers describe it; None means unknown."""

    architecture: str | None = None
    """The name that the kernel uses, such as `x86_64`."""
    cpu: str | None = None
    cpu_features: tuple[str, ...] = ()
    """The members of `cpu.RELEVANT_FEATURES` that the processor has."""
    cores: int | None = None
    memory_bytes: int | None = None
    gpus: tuple[Gpu, ...] = ()
    """NVIDIA GPUs whose driver is loaded, including the GPU of a Jetson."""
    jetson: Jetson | None = None
    container: str | None = None
    """The kind of the container, such as `docker`; None outside a container."""
    cuda: str | None = None
    """The version of the toolkit in /usr/local/cuda."""
    tensorrt: str | None = None
    """The version of the system's TensorRT library, even if Python cannot import it."""
    conditions: Conditions = field(default_factory=Conditions)

    @property
    def name(self) -> str:
        """Return the board, or the processor, the number of cores and the GPUs."""
        if self.jetson:
            return self.jetson.board
        cores = () if self.cores is None else (f"{self.cores} cores",)
        processor = self.cpu or self.architecture or "unknown machine"
        return ", ".join((processor, *cores, *(gpu.name for gpu in self.gpus)))

    @property
    def processor(self) -> Cpu:
        return Cpu(
            architecture=self.architecture or "",
            model=self.cpu,
            features=frozenset(self.cpu_features),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form that bundles, benchmarks and `resdeploy doctor --json` hold."""
        return asdict(self)


def read_device(host: Host | None = None) -> Device:
    """Describe this machine, or the one that `host` shows."""
    host = host or Host()
    jetson = read_jetson(host)
    cpu = parse_cpuinfo(host.text("proc/cpuinfo"), host.architecture)
    return Device(
        architecture=cpu.architecture,
        cpu=cpu.model,
        cpu_features=tuple(sorted(cpu.features)),
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
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory(host: Host) -> int | None:
    """Return the available memory in bytes, swap included; None if it is unknown.

    Sources: Linux, "The /proc Filesystem" (`MemAvailable`) and "Control Group v2" (`memory.max`,
    `memory.current`, `memory.stat`).
    """
    free = parse_memory(host.text("proc/meminfo"), "MemAvailable", "SwapFree")
    limit = host.number("sys/fs/cgroup/memory.max")  # without a limit it is `max`, read as None
    used = host.number("sys/fs/cgroup/memory.current")
    if limit is None or used is None:
        return free
    if pages := re.search(r"^inactive_file (\d+)", host.text("sys/fs/cgroup/memory.stat"), re.M):
        used -= int(pages[1])  # the kernel drops them before it ends a process
    return limit - used if free is None else min(free, limit - used)


def parse_memory(meminfo: str, *fields: str) -> int | None:
    """Return the sum in bytes of fields of /proc/meminfo (default: MemTotal); None without them."""
    found = [
        re.search(rf"^{field}:\s+(\d+) kB", meminfo, re.MULTILINE)
        for field in fields or ("MemTotal",)
    ]
    sizes = [int(match[1]) * 1024 for match in found if match]
    return sum(sizes) if sizes else None


def _gpus(host: Host, jetson: Jetson | None) -> tuple[Gpu, ...]:
    if jetson:  # NVML starts on a Jetson, too, but supports few of the queries there
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
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _tensorrt(host: Host) -> str | None:
    versions = [
        path.name.partition(".so.")[2]
        for path in host.find(f"{LIBRARIES}/libnvinfer.so.*.*")  # not the symbolic links
    ]
    return versions[-1] if versions else None
