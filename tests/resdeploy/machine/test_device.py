"""Reading the description of a machine from the texts that boards and kernels print."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from resdeploy.machine.conditions import Conditions, PowerMode, fastest_mode, parse_power_mode
from resdeploy.machine.device import available_memory, parse_memory, read_device
from resdeploy.machine.host import Host, run_command
from resdeploy.machine.jetson import find_release, parse_l4t
from resdeploy.machine.nvml import THROTTLE_REASONS, Gpu
from tests.boards import AGX_ORIN, AGX_THOR, BOARDS, ORIN_NANO, host_of, meminfo, power_mode
from tests.fake_nvml import FakeNvml


def test_an_orin_nano(tmp_path: Path) -> None:
    device = read_device(host_of(tmp_path, ORIN_NANO, power_mode("25W", 1)))
    assert device.jetson is not None
    assert (
        device.jetson.board == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    )
    assert device.jetson.module == "Orin Nano 8 GB"
    assert (device.jetson.l4t, device.jetson.jetpack) == ("36.4.7", "6.1 or 6.2")
    assert device.gpus == (Gpu(name="Orin", compute_capability="8.7"),)
    assert device.memory_bytes == 7802636 * 1024
    assert device.cpu == "Cortex-A78AE"
    assert device.cpu_features == ("asimddp",)
    assert (device.cuda, device.tensorrt) == ("12.6.68", "10.3.0")
    conditions = device.conditions
    assert conditions.power_mode == PowerMode("25W", 1)
    assert conditions.fastest_mode == PowerMode("MAXN_SUPER", 2)
    assert conditions.clocks_fixed is False
    assert conditions.temperature_c == 51.656
    assert conditions.cooling == ()  # a fan does not reduce clocks
    assert conditions.throttle_count == 15


def test_an_agx_orin_with_jetson_clocks(tmp_path: Path) -> None:
    device = read_device(host_of(tmp_path, AGX_ORIN))
    assert device.jetson is not None
    assert device.jetson.module == "AGX Orin"
    assert device.conditions.clocks_fixed is True
    assert device.conditions.fastest_mode == PowerMode("MAXN", 0)
    assert device.conditions.power_mode is None  # nvpmodel prints nothing


def test_a_thor(tmp_path: Path) -> None:
    device = read_device(host_of(tmp_path, AGX_THOR))
    assert device.jetson is not None
    assert (device.jetson.soc, device.jetson.compute_capability) == ("tegra264", "11.0")
    assert (device.jetson.jetpack, device.tensorrt) == ("7.0", "10.13.3")
    assert device.cpu == "Neoverse-V3AE"
    assert {"sve2", "i8mm"} <= set(device.cpu_features)


def test_a_container_on_a_board_shows_only_the_device_tree(tmp_path: Path) -> None:
    files = {name: text for name, text in ORIN_NANO.items() if name.startswith("proc/device")}
    device = read_device(host_of(tmp_path, files | {".dockerenv": ""}))
    assert device.container == "docker"
    assert device.jetson is not None
    assert (device.jetson.l4t, device.jetson.jetpack) == (None, None)


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"run/.containerenv": ""}, "podman"),
        ({"proc/1/cgroup": "0::/kubepods/burstable/pod1\n"}, "kubepods"),
        ({"proc/1/cgroup": "0::/init.scope\n"}, None),
    ],
)
def test_containers(tmp_path: Path, files: dict[str, str], kind: str | None) -> None:
    assert read_device(host_of(tmp_path, files)).container == kind


def test_a_server_with_nvml(tmp_path: Path) -> None:
    nvml = FakeNvml(reasons=0x04 | 0x01)
    (gpu,) = read_device(host_of(tmp_path, {}, nvml=lambda: nvml)).gpus
    assert (gpu.name, gpu.compute_capability, gpu.driver) == ("NVIDIA H100", "9.0", "580.1")
    assert (gpu.power_w, gpu.clock_mhz, gpu.max_clock_mhz) == (350.0, 1980, 1980)
    assert gpu.throttled_by == ("power limit",)


def test_unsupported_nvml_queries_give_unknown(tmp_path: Path) -> None:
    nvml = FakeNvml(unsupported=True)
    (gpu,) = read_device(host_of(tmp_path, {}, nvml=lambda: nvml)).gpus
    assert gpu == Gpu(name="unknown")


def test_a_server_without_nvml_shows_the_names_of_proc(tmp_path: Path) -> None:
    folder = "proc/driver/nvidia/gpus"
    files = {
        f"{folder}/0000:01:00.0/information": "Model: \t\t NVIDIA H100 80GB HBM3\nIRQ: 1\n",
        f"{folder}/0000:02:00.0/information": "IRQ: 1\n",
    }
    device = read_device(host_of(tmp_path, files))
    assert [gpu.name for gpu in device.gpus] == ["NVIDIA H100 80GB HBM3", "unknown"]
    assert device.jetson is None


def test_an_empty_machine_is_unknown_not_an_error(tmp_path: Path) -> None:
    device = read_device(host_of(tmp_path, {}))
    assert (device.memory_bytes, device.gpus, device.jetson) == (None, (), None)
    assert (device.container, device.cuda, device.tensorrt) == (None, None, None)
    assert device.conditions == Conditions()
    assert device.cores


@pytest.mark.parametrize("name", BOARDS)
def test_a_description_is_json(tmp_path: Path, name: str) -> None:
    text = json.dumps(read_device(host_of(tmp_path, BOARDS[name])).to_json())
    assert json.loads(text)["jetson"]["module"]


def test_this_machine_can_be_described() -> None:
    assert json.dumps(read_device().to_json())


def test_files_with_nonsense_give_unknown(tmp_path: Path) -> None:
    files = dict.fromkeys([*ORIN_NANO, *AGX_THOR], "\udcff nonsense \n".encode("utf-8", "replace")
                          .decode())  # fmt: skip
    device = read_device(host_of(tmp_path, files, "nonsense"))
    assert device.memory_bytes is None
    assert device.conditions.power_mode is None


@pytest.mark.parametrize(
    ("text", "version"),
    [("# R35 (release), REVISION: 5.0, GCID: 1", "35.5.0"), ("", None), ("# R (release)", None)],
)
def test_versions_of_jetson_linux(text: str, version: str | None) -> None:
    assert parse_l4t(text) == version


@pytest.mark.parametrize(
    ("l4t", "jetpack"),
    [
        ("35.5.0", "5"), ("36.3", "6.0"), ("36.4", "6.1 or 6.2"), ("36.5.2", "6.1 or 6.2"),
        ("38.2.1", "7.0"), ("38.4", "7.1"), ("39.2", "7.2"), ("39.2.1", "7.2"),
        ("39.2.2", "7.2.2 or later"), ("39.3", "7.2.2 or later"), ("40.1", None), ("36.2", None),
    ],
)  # fmt: skip
def test_jetpack_of_a_jetson_linux_version(l4t: str, jetpack: str | None) -> None:
    release = find_release(l4t)
    assert (release.jetpack if release else None) == jetpack


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("NV Power Mode: MAXN_SUPER\n2\n", PowerMode("MAXN_SUPER", 2)),
        ("NV Fan Mode:quiet\nNV Power Mode: 15W\n0\n", PowerMode("15W", 0)),
        ("NVPM ERROR: Error opening /sys/... \nNV Power Mode: MAXN\n", None),
        ("", None),
    ],
)
def test_power_modes(text: str, mode: PowerMode | None) -> None:
    assert parse_power_mode(text) == mode


def test_a_board_without_maxn_has_no_fastest_mode() -> None:
    assert fastest_mode("< POWER_MODEL ID=0 NAME=15W >\n") is None


def test_missing_memory_fields_are_unknown() -> None:
    assert parse_memory("Nothing: 3 kB") is None
    assert parse_memory("A: 3 kB\nB: 4 kB\n", "A", "B", "C") == 7 * 1024


def test_missing_commands_give_no_output() -> None:
    assert run_command(["no-such-command-anywhere"]) == ""
    assert run_command(["sh", "-c", "echo said; exit 3"]) == "said\n"


def test_denied_access_differs_from_a_missing_file(tmp_path: Path) -> None:
    def deny(path: Path) -> bytes:
        raise PermissionError(path)

    host = Host(root=tmp_path, read_bytes=deny)
    assert host.denies_access(tmp_path / "x")
    assert host.text("x") == ""
    assert not Host(root=tmp_path).denies_access(tmp_path / "x")  # the file is missing


def test_the_fake_driver_has_the_names_and_constants_of_pynvml() -> None:
    pynvml = pytest.importorskip("pynvml")
    members = {
        name: value for name, value in vars(FakeNvml).items() if name.startswith(("nvml", "NVML"))
    }
    assert [name for name in members if not hasattr(pynvml, name)] == []
    constants = {name: value for name, value in members.items() if isinstance(value, int)}
    assert constants == {name: getattr(pynvml, name) for name in constants}
    assert set(THROTTLE_REASONS) <= set(constants)


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
