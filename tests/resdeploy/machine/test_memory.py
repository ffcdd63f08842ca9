"""The available memory of a machine."""

from __future__ import annotations

from pathlib import Path

from resdeploy.machine.memory import available_memory
from tests.boards import host_of, meminfo


def test_available_memory_includes_swap(tmp_path: Path) -> None:
    assert available_memory(host_of(tmp_path, meminfo(300, 200))) == 500 << 20


def test_available_memory_respects_the_cgroup_limit(tmp_path: Path) -> None:
    cgroup = {"sys/fs/cgroup/memory.max": f"{400 << 20}\n",
              "sys/fs/cgroup/memory.current": f"{100 << 20}\n"}  # fmt: skip
    assert available_memory(host_of(tmp_path / "limited", {**meminfo(900), **cgroup})) == 300 << 20
    pages = {**cgroup, "sys/fs/cgroup/memory.stat": f"anon 1\ninactive_file {50 << 20}\n"}
    assert available_memory(host_of(tmp_path / "pages", {**meminfo(900), **pages})) == 350 << 20
    free = {**cgroup, "sys/fs/cgroup/memory.max": "max\n"}
    assert available_memory(host_of(tmp_path / "free", {**meminfo(900), **free})) == 900 << 20
