"""Builds that stop with a message before the kernel would kill them."""

from __future__ import annotations

from pathlib import Path

import pytest

from resdeploy.errors import BackendError
from resdeploy.machine.device import Device, available_memory
from resdeploy.machine.jetson import Jetson
from resdeploy.runtime.backends.base import Batches
from resdeploy.runtime.backends.tensorrt.build_memory import (
    RESERVE_BYTES,
    check_free_memory,
    require_memory,
)
from resdeploy.runtime.backends.tensorrt.options import BuildOptions, default_options
from tests.boards import host_of, lay_out, meminfo

GRAPH = 85 << 20  # a ResNet-34 in FP32


def test_unknown_memory_passes(tmp_path: Path) -> None:
    host = host_of(tmp_path, {})
    assert available_memory(host) is None
    require_memory(GRAPH, "fp32.onnx", host)
    check_free_memory(host)


def test_rejects_a_build_with_too_little_memory(tmp_path: Path) -> None:
    require_memory(GRAPH, "fp32.onnx", host_of(tmp_path / "enough", meminfo(400)))
    with pytest.raises(BackendError, match="at least 312 MiB of memory, and 300 MiB") as caught:
        require_memory(GRAPH, "fp32.onnx", host_of(tmp_path / "short", meminfo(300)))
    assert "--batch 1" in str(caught.value.hint)


def test_memory_check_raises_below_the_reserve(tmp_path: Path) -> None:
    host = host_of(tmp_path, meminfo(1000))
    check_free_memory(host)
    lay_out(tmp_path, meminfo((RESERVE_BYTES >> 20) - 1))
    with pytest.raises(BackendError, match="stopped with 255 MiB of memory left") as caught:
        check_free_memory(host)
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
def test_small_modules_get_small_default_engines(
    memory: int | None, jetson: bool, options: BuildOptions
) -> None:
    board = Jetson(board="NVIDIA Jetson Orin Nano") if jetson else None
    assert default_options(Device(cores=6, memory_bytes=memory, jetson=board)) == options
