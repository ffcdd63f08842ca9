"""Power sources: the sensors of three boards, tegrastats, NVML and RAPL."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from resdeploy.machine.device import Scope
from resdeploy.runtime.energy import meter, tegrastats
from resdeploy.runtime.energy.counters import find_nvml, find_rapl
from resdeploy.runtime.energy.meter import find_sources
from resdeploy.runtime.energy.rails import find_rails, module_power
from resdeploy.runtime.energy.tegrastats import Tegrastats, parse_rails, start_tegrastats
from tests.boards import AGX_ORIN, AGX_THOR, ORIN_NANO, Files, host_of, lay_out
from tests.fake_nvml import FakeNvml

# Published lines of tegrastats: with a date; with cores that are off; without swap and with VIN;
# with two averages. ODD has sensors that are off, an unconnected rail and a negative one.
NANO = (
    "11-15-2024 08:38:09 RAM 6185/7620MB (lfb 8x2MB) SWAP 851/3810MB (cached 1MB) CPU "
    "[15%@729,11%@729,14%@729,13%@729,11%@729,8%@729] EMC_FREQ 43%@2133 GR3D_FREQ 63%@[621] "
    "NVDEC off NVJPG off NVJPG1 off VIC off OFA off APE 200 cpu@53.968C soc2@52.437C soc0@50.75C "
    "gpu@53.343C tj@53.968C soc1@51.656C VDD_IN 12479mW/12479mW VDD_CPU_GPU_CV 4667mW/4667mW "
    "VDD_SOC 2817mW/2817mW"
)
ORIN = (
    "05-09-2026 18:42:06 RAM 18207/62841MB (lfb 466x4MB) SWAP 86/31420MB (cached 0MB) CPU "
    "[14%@2188,5%@2112,off,off] EMC_FREQ 3%@2133 GR3D_FREQ 0%@[0,0] NVENC 79%@166 NVDEC off "
    "NVDLA0 off NVDLA1 off APE 174 cpu@52.562C tj@52.562C VDD_GPU_SOC 2412mW/2412mW VDD_CPU_CV "
    "1607mW/1607mW VIN_SYS_5V0 4707mW/4707mW"
)
THOR = (
    "04-21-2026 15:50:52 RAM 105265/125772MB (lfb 34x4MB) CPU [0%@972,0%@972] EMC_FREQ 0%@2750 "
    "GR3D_FREQ @[314,314,314] VIC off APE 300 cpu@37.343C tj@38.875C gpu@38.875C VDD_GPU "
    "1962mW/1962mW VDD_CPU_SOC_MSS 5887mW/5887mW VIN_SYS_5V0 5635mW/5635mW VIN 19780mW/19780mW"
)
AVERAGES = (
    "10-01-2026 20:36:32 RAM 974/7546MB (lfb 6x4MB) SWAP 0/5821MB (cached 0MB) CPU "
    "[0%@729,0%@883] GR3D_FREQ 12% cpu@49.843C/49.843C gpu@50.875C/50.875C tj@50.875C/50.875C "
    "VDD_IN 4548mW/4548mW/4548mW VDD_CPU_GPU_CV 483mW/483mW/483mW VDD_SOC 1489mW/1489mW/1489mW"
)
ODD = (
    "RAM 974/7546MB (lfb 6x4MB) CPU [0%@729,off] GR3D_FREQ 0% gpu@-256C VDD_IN 4548mW NC 0mW/0mW "
    "VDD_CPU_GPU_CV -12mW/483mW VDD_SOC 1489mW/1489mW"
)


@pytest.mark.parametrize(
    ("line", "rails", "total"),
    [
        (NANO, {"VDD_IN": 12479, "VDD_CPU_GPU_CV": 4667, "VDD_SOC": 2817}, 12479),
        (ORIN, {"VDD_GPU_SOC": 2412, "VDD_CPU_CV": 1607, "VIN_SYS_5V0": 4707}, 8726),
        (
            THOR,
            {"VDD_GPU": 1962, "VDD_CPU_SOC_MSS": 5887, "VIN_SYS_5V0": 5635, "VIN": 19780},
            19780,
        ),
        (AVERAGES, {"VDD_IN": 4548, "VDD_CPU_GPU_CV": 483, "VDD_SOC": 1489}, 4548),
        (ODD, {"VDD_IN": 4548, "VDD_CPU_GPU_CV": -12, "VDD_SOC": 1489}, 4548),
        ("tegrastats: permission denied", {}, None),
        ("", {}, None),
    ],
    ids=["nano", "orin", "thor", "averages", "odd", "message", "empty"],
)
def test_parses_lines_of_tegrastats(
    line: str, rails: dict[str, float], total: float | None
) -> None:
    assert parse_rails(line) == rails
    assert module_power(rails) == total


@pytest.mark.parametrize(
    ("files", "rails", "watts"),
    [
        (ORIN_NANO, ("VDD_IN",), 5.016 * 2.1),
        (
            AGX_ORIN,
            ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
            19 * 0.15 + 19 * 0.08 + 5 * 0.9,
        ),
        (AGX_THOR, ("VIN",), 19.78),
    ],
    ids=["orin-nano", "agx-orin", "agx-thor"],
)
def test_sensors_of_the_boards(
    tmp_path: Path, files: Files, rails: tuple[str, ...], watts: float
) -> None:
    (source,) = find_sources(host_of(tmp_path, files))
    assert (source.name, source.scope, source.rails) == ("ina3221", Scope.MODULE, rails)
    assert source.read() == pytest.approx(watts, rel=1e-12)


def test_a_missing_rail_makes_the_total_unknown(tmp_path: Path) -> None:
    source = find_rails(host_of(tmp_path, AGX_ORIN))
    assert source is not None
    gone = tmp_path / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon4/curr2_input"
    gone.unlink()
    assert source.read() is None
    gone.write_text("80\n")
    assert source.read() == pytest.approx(19 * 0.15 + 19 * 0.08 + 5 * 0.9)


def test_negative_rails_keep_their_sign(tmp_path: Path) -> None:
    source = find_rails(host_of(tmp_path, AGX_ORIN))
    assert source is not None
    part = tmp_path / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon4/curr2_input"
    part.write_text("-4\n")
    assert source.read() == pytest.approx(19 * 0.15 - 19 * 0.004 + 5 * 0.9)


def test_ignores_rails_of_an_unknown_board(tmp_path: Path) -> None:
    files = {name: text.replace("VDD_IN", "VDD_NEW") for name, text in ORIN_NANO.items() if text}
    assert find_rails(host_of(tmp_path, files)) is None


def test_ignores_other_hwmon_drivers(tmp_path: Path) -> None:
    files = {**AGX_THOR, "sys/class/hwmon/hwmon6/name": "another\n"}
    assert find_rails(host_of(tmp_path, files)) is None


# A running tegrastats


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def _long_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengthen the timeouts: on a busy machine a script starts late."""
    monkeypatch.setattr(tegrastats, "START_SECONDS", 600.0)
    monkeypatch.setattr(tegrastats, "STALE_SECONDS", 600.0)


@pytest.mark.usefixtures("_long_timeouts")
def test_reads_a_running_tegrastats(tmp_path: Path) -> None:
    command = script(tmp_path / "tegrastats", f"echo '{ORIN}'; exec sleep 60")
    source = start_tegrastats([command])
    assert source is not None
    assert (source.name, source.scope) == ("tegrastats", Scope.MODULE)
    assert source.read() == pytest.approx(8.726)
    source.close()


def test_old_lines_of_tegrastats_are_ignored(tmp_path: Path) -> None:
    now = 10.0
    command = script(tmp_path / "tegrastats", f"echo '{NANO}'; exec sleep 60")
    running = Tegrastats([command], clock=lambda: now)
    assert running.wait(600)["VDD_IN"] == 12479
    now += 1.0
    assert running.rails() == {}
    running.close()


@pytest.mark.parametrize("text", ["exit 1", "echo 'you must be root'"])
def test_tegrastats_without_rails_is_no_source(tmp_path: Path, text: str) -> None:
    assert start_tegrastats([script(tmp_path / "tegrastats", text)]) is None


def test_without_tegrastats_there_is_no_source() -> None:
    assert start_tegrastats(["no-such-command-anywhere"]) is None


@pytest.mark.usefixtures("_long_timeouts")
def test_falls_back_to_tegrastats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path / "tegrastats", f"echo '{NANO}'; exec sleep 60")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def deny(path: Path) -> bytes:
        if "ina3221" in str(path):
            raise PermissionError(path)
        return path.read_bytes()

    (source,) = find_sources(host_of(tmp_path / "root", ORIN_NANO, read_bytes=deny))
    assert source.name == "tegrastats"
    source.close()


# Discrete GPUs and x86


def test_reads_the_energy_counter_of_a_gpu() -> None:
    source = find_nvml(FakeNvml(), {})
    assert source is not None
    assert (source.scope, source.cumulative) == (Scope.GPU, True)
    first, second = source.read(), source.read()
    assert first is not None
    assert second == first + 0.5


def test_reads_the_power_of_a_gpu_without_a_counter() -> None:
    source = find_nvml(FakeNvml(counts_energy=False), {})
    assert source is not None
    assert (source.cumulative, source.read()) == (False, 350.0)


def test_a_gpu_without_sensors_is_no_source() -> None:
    assert find_nvml(FakeNvml(unsupported=True), {}) is None
    assert find_nvml(None, {}) is None


@pytest.mark.parametrize(
    ("visible", "opened"), [("", 0), ("0,1", 0), ("GPU-1234", "GPU-1234"), (" GPU-5 ,0", "GPU-5")]
)
def test_reads_the_gpu_that_cuda_sees(visible: str, opened: object) -> None:
    nvml = FakeNvml()
    assert find_nvml(nvml, {"CUDA_VISIBLE_DEVICES": visible}) is not None
    assert nvml.opened == opened


def test_a_missing_gpu_is_no_source() -> None:
    assert find_nvml(FakeNvml(), {"CUDA_VISIBLE_DEVICES": "3"}) is None


RAPL = {
    "sys/class/powercap/intel-rapl:0/name": "package-0\n",
    "sys/class/powercap/intel-rapl:0/energy_uj": "900000\n",
    "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "1000000\n",
    "sys/class/powercap/intel-rapl:0:0/name": "core\n",  # the package includes it
    "sys/class/powercap/intel-rapl:0:0/energy_uj": "5\n",
    "sys/class/powercap/intel-rapl:0:1/name": "dram\n",
    "sys/class/powercap/intel-rapl:0:1/energy_uj": "200000\n",
    "sys/class/powercap/intel-rapl:0:1/max_energy_range_uj": "1000000\n",
    "sys/class/powercap/intel-rapl:1/name": "psys\n",  # it includes the package
    "sys/class/powercap/intel-rapl:1/energy_uj": "7\n",
}


def test_rapl_handles_counter_overflow(tmp_path: Path) -> None:
    source = find_rapl(host_of(tmp_path, RAPL))
    assert source is not None
    assert (source.rails, source.scope, source.cumulative) == (
        ("package-0", "dram"),
        Scope.CPU,
        True,
    )
    assert source.read() == pytest.approx(1.1)
    lay_out(tmp_path, {"sys/class/powercap/intel-rapl:0/energy_uj": "100000\n"})
    assert source.read() == pytest.approx(1.3)
    (tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj").unlink()
    assert source.read() is None


def test_a_machine_without_sensors_has_no_source(tmp_path: Path) -> None:
    assert find_sources(host_of(tmp_path, {})) == []


def test_a_server_has_sources_for_gpu_and_cpu(tmp_path: Path) -> None:
    found = meter.find_sources(host_of(tmp_path, RAPL, nvml=FakeNvml))
    assert [(source.name, source.scope) for source in found] == [
        ("nvml", Scope.GPU), ("rapl", Scope.CPU),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("scope", "work", "covered"),
    [
        (Scope.MODULE, Scope.CPU, True), (Scope.MODULE, Scope.GPU, True),
        (Scope.GPU, Scope.CPU, False), (Scope.CPU, Scope.GPU, False), (Scope.GPU, Scope.GPU, True),
    ],
)  # fmt: skip
def test_scope_covers_work(scope: Scope, work: Scope, covered: bool) -> None:
    assert scope.covers(work) is covered
