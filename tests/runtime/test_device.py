"""Looking at machines: texts as boards and kernels print them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from resdeploy.cpu import parse_cpuinfo
from resdeploy.render import diagnosis_text
from resdeploy.runtime import doctor
from resdeploy.runtime.device import Device, parse_l4t, parse_memory, read_device
from resdeploy.runtime.doctor import diagnose
from tests.fakes import make_engine

ORIN = {
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.7, GCID: 42132812, BOARD: generic\n",
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
    "proc/meminfo": "MemTotal:        7802636 kB\nMemFree: 1 kB\n",
}


def lay_out(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_jetson_is_recognised(tmp_path: Path) -> None:
    device = read_device(lay_out(tmp_path, ORIN))
    assert device.l4t == "36.4.7"
    assert device.jetson == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert device.memory_bytes == 7802636 * 1024


def test_a_server_with_gpus(tmp_path: Path) -> None:
    folder = "proc/driver/nvidia/gpus"
    files = {
        f"{folder}/0000:01:00.0/information": "Model: \t\t NVIDIA H100 80GB HBM3\nIRQ: 1\n",
        f"{folder}/0000:02:00.0/information": "IRQ: 1\n",
    }
    device = read_device(lay_out(tmp_path, files))
    assert device.gpus == ("NVIDIA H100 80GB HBM3", "unknown")
    assert device.jetson is None


def test_an_empty_machine_is_unknown_not_an_error(tmp_path: Path) -> None:
    device = read_device(tmp_path)
    assert (device.memory_bytes, device.gpus, device.jetson, device.l4t) == (None, (), None, None)
    assert device.cores >= 1


@pytest.mark.parametrize(
    ("text", "version"),
    [("# R35 (release), REVISION: 5.0, GCID: 1", "35.5.0"), ("", None), ("# R (release)", None)],
)
def test_versions_of_jetson_linux(text: str, version: str | None) -> None:
    assert parse_l4t(text) == version


def test_memory_that_is_not_told_is_unknown() -> None:
    assert parse_memory("Nothing: 3 kB") is None


# The doctor


def machine(**change: object) -> Device:
    cpu = parse_cpuinfo("flags : avx2\n", "x86_64")
    device = Device(cpu=cpu, cores=2, memory_bytes=None, gpus=(), jetson=None, l4t=None)
    return dataclasses.replace(device, **change)  # type: ignore[arg-type]


def test_this_machine_can_run_something() -> None:
    found = diagnose()
    assert found.healthy
    assert found.backends[-1].version
    assert found.versions["resdeploy"]


def test_a_missing_backend_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ENGINES", (make_engine("cpu", installed=False),))
    found = diagnose(machine())
    assert not found.healthy
    assert found.backends[0].remedy == "get it"
    assert found.advice[0] == "cpu: cpu is not installed; get it"


def test_advice_fits_the_processor_and_the_gpu() -> None:
    assert any("no VNNI" in line for line in diagnose(machine()).advice)
    vnni = parse_cpuinfo("flags : avx512_vnni\n", "x86_64")
    assert diagnose(machine(cpu=vnni)).advice == ()
    on_gpu = diagnose(machine(cpu=vnni, gpus=("H100",)))
    missing = [backend.name for backend in on_gpu.backends if not backend.available]
    assert [line.split(":")[0] for line in on_gpu.advice] == missing


@pytest.mark.parametrize(
    "change", [{}, {"memory_bytes": 8 << 30}, {"jetson": "Orin", "gpus": ("a",)}]
)
def test_the_diagnosis_fits_a_screen(change: dict[str, object]) -> None:
    text = diagnosis_text(diagnose(machine(**change)))
    assert text.startswith("machine")
    assert "None" not in text
