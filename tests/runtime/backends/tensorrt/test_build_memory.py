"""Builds that end with a message where the kernel would have ended them without one."""

from __future__ import annotations

from pathlib import Path

import pytest

from resdeploy.errors import BackendError
from resdeploy.machine.device import Device
from resdeploy.machine.jetson import Jetson
from resdeploy.runtime.backends.base import Batches
from resdeploy.runtime.backends.tensorrt.build_memory import (
    RESERVE_BYTES,
    available_memory,
    check_memory,
    memory_watch,
)
from resdeploy.runtime.backends.tensorrt.options import BuildOptions, default_options
from tests.boards import host_of, lay_out

GRAPH = 85 << 20  # a ResNet-34 in FP32


def meminfo(available_mib: int, swap_mib: int = 0) -> dict[str, str]:
    return {
        "proc/meminfo": f"MemTotal: 4000000 kB\nMemAvailable: {available_mib * 1024} kB\n"
        f"SwapFree: {swap_mib * 1024} kB\n"
    }


def test_swap_counts_as_memory(tmp_path: Path) -> None:
    assert available_memory(host_of(tmp_path, meminfo(300, 200))) == 500 << 20


def test_a_container_has_less_than_its_machine(tmp_path: Path) -> None:
    cgroup = {"sys/fs/cgroup/memory.max": f"{400 << 20}\n",
              "sys/fs/cgroup/memory.current": f"{100 << 20}\n"}  # fmt: skip
    assert available_memory(host_of(tmp_path / "limited", {**meminfo(900), **cgroup})) == 300 << 20
    free = {**cgroup, "sys/fs/cgroup/memory.max": "max\n"}
    assert available_memory(host_of(tmp_path / "free", {**meminfo(900), **free})) == 900 << 20


def test_a_machine_that_does_not_tell_is_trusted(tmp_path: Path) -> None:
    host = host_of(tmp_path, {})
    assert available_memory(host) is None
    check_memory(GRAPH, "fp32.onnx", host)
    memory_watch(host)()


def test_what_cannot_succeed_is_refused(tmp_path: Path) -> None:
    check_memory(GRAPH, "fp32.onnx", host_of(tmp_path / "enough", meminfo(400)))
    with pytest.raises(BackendError, match="at least 312 MiB of memory, and 300 MiB") as caught:
        check_memory(GRAPH, "fp32.onnx", host_of(tmp_path / "short", meminfo(300)))
    assert "--batch 1" in str(caught.value.hint)


def test_the_watch_raises_before_the_memory_is_gone(tmp_path: Path) -> None:
    host = host_of(tmp_path, meminfo(1000))
    watch = memory_watch(host)
    watch()
    lay_out(tmp_path, meminfo((RESERVE_BYTES >> 20) - 1))
    with pytest.raises(BackendError, match="stopped with 255 MiB of memory left") as caught:
        watch()
    assert "swap" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("memory", "jetson", "options"),
    [
        (4 << 30, True, BuildOptions(batches=Batches(1, 1, 4), workspace_mib=256)),
        (7802636 << 10, True, BuildOptions()),
        (None, True, BuildOptions()),
        (4 << 30, False, BuildOptions()),
    ],
)
def test_small_modules_get_small_engines(
    memory: int | None, jetson: bool, options: BuildOptions
) -> None:
    board = Jetson(board="NVIDIA Jetson Orin Nano") if jetson else None
    assert default_options(Device(cores=6, memory_bytes=memory, jetson=board)) == options
