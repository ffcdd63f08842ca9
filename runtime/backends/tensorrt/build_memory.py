"""Memory that is left, so that a build stops with a message instead of being killed.

Sources: Linux, "The /proc Filesystem" (`MemAvailable`) and "Control Group v2" (`memory.max`,
`memory.current`).
"""

from __future__ import annotations

from collections.abc import Callable

from resdeploy.errors import BackendError
from resdeploy.machine.device import parse_memory
from resdeploy.machine.host import Host

# Building with TensorRT-RTX 1.7 took 330 MiB for a graph of 83 MiB and 194 MiB for one of 20 MiB
# (2026-11-25, x86-64). TensorRT, which also runs kernels while it builds, takes more: this refuses
# only what cannot succeed.
BUILD_BYTES_PER_GRAPH_BYTE = 2.5
BUILD_BYTES = 100 << 20
# With less than this the kernel may end any process; what is polled ten times a second is seen
# in time.
RESERVE_BYTES = 256 << 20
ADVICE = (
    "stop other programs (sudo init 3 ends a Jetson's desktop), add swap, or build a smaller graph "
    "with --precision int8 --batch 1 --workspace 128"
)


def available_memory(host: Host) -> int | None:
    """Bytes that can still be had, swap included; None where the system does not tell."""
    free = parse_memory(host.text("proc/meminfo"), "MemAvailable", "SwapFree")
    limit = host.number("sys/fs/cgroup/memory.max")  # `max`, and so None, where there is none
    used = host.number("sys/fs/cgroup/memory.current")
    if limit is None or used is None:
        return free
    return limit - used if free is None else min(free, limit - used)


def check_memory(graph_bytes: int, name: str, host: Host) -> None:
    """Refuse to build what cannot be built.

    Raises:
        BackendError: less memory is left than any build of such a graph takes.
    """
    needed = BUILD_BYTES + int(BUILD_BYTES_PER_GRAPH_BYTE * graph_bytes)
    free = available_memory(host)
    if free is not None and free < needed:
        raise BackendError(
            f"building an engine of {name} takes at least {needed >> 20} MiB of memory, and "
            f"{free >> 20} MiB are left",
            ADVICE,
        )


def memory_watch(host: Host) -> Callable[[], None]:
    """A function to call again and again during a build; it raises before the memory is gone."""

    def watch() -> None:
        free = available_memory(host)
        if free is not None and free < RESERVE_BYTES:
            raise BackendError(
                f"the build was stopped with {max(free, 0) >> 20} MiB of memory left, before the "
                "system would have ended it",
                ADVICE,
            )

    return watch
