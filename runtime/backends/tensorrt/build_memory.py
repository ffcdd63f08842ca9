"""Checks of the available memory: a build that runs out of it stops with a message."""

from __future__ import annotations

from resdeploy.errors import BackendError
from resdeploy.machine.device import available_memory
from resdeploy.machine.host import Host

# Building with TensorRT-RTX 1.7 took 330 MiB for a graph of 83 MiB and 194 MiB for one of 20 MiB
# (2026-11-25, x86-64). TensorRT takes more, since it also runs kernels while it builds: these
# limits reject only builds that cannot succeed.
BUILD_BYTES_PER_GRAPH_BYTE = 2.5
BUILD_BYTES = 100 << 20
# With less memory than this the kernel may kill any process. The builder checks ten times a second,
# which is often enough to stop before that.
RESERVE_BYTES = 256 << 20
HINT = (
    "stop other programs (sudo init 3 ends a Jetson's desktop), add swap, or build a smaller graph "
    "with --precision int8 --batch 1 --workspace 128"
)


def require_memory(graph_bytes: int, name: str, host: Host) -> None:
    """Raise BackendError if less memory is available than any build of the graph `name` takes."""
    needed = BUILD_BYTES + int(BUILD_BYTES_PER_GRAPH_BYTE * graph_bytes)
    free = available_memory(host)
    if free is not None and free < needed:
        raise BackendError(
            f"building an engine of {name} takes at least {needed >> 20} MiB of memory, and "
            f"{free >> 20} MiB are left",
            HINT,
        )


def check_free_memory(host: Host) -> None:
    """Raise BackendError if a running build must stop, since too little memory is left."""
    free = available_memory(host)
    if free is not None and free < RESERVE_BYTES:
        raise BackendError(
            f"the build was stopped with {max(free, 0) >> 20} MiB of memory left; at least "
            f"{RESERVE_BYTES >> 20} MiB must stay free",
            HINT,
        )
