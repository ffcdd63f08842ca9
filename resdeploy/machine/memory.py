"""The memory of a machine.

Sources: Linux, "The /proc Filesystem" (`MemAvailable`) and "Control Group v2" (`memory.max`,
`memory.current`, `memory.stat`).
"""

from __future__ import annotations

import re

from resdeploy.machine.host import Host


def available_memory(host: Host) -> int | None:
    """Return the available memory in bytes, swap included; None if it is unknown."""
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
