"""Tests of the diagnosis: each advice appears on a machine that needs it, and only there."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from resdeploy.bundle.bundle import Bundle
from resdeploy.cli.doctor import diagnosis_text
from resdeploy.errors import install_hint
from resdeploy.machine.device import read_device
from resdeploy.runtime.backends import openvino, registry
from resdeploy.runtime.diagnosis import doctor
from resdeploy.runtime.diagnosis.advice import Situation, advise
from resdeploy.runtime.diagnosis.doctor import diagnose
from resdeploy.statistics import Verdict
from tests.boards import (
    AGX_ORIN,
    AGX_THOR,
    BOARDS,
    ORIN_NANO,
    Files,
    host_of,
    power_mode,
)
from tests.fake_nvml import FakeNvml
from tests.fakes import make_engine

FASTEST = power_mode("MAXN", 0)


def situation(
    root: Path, files: Files, *, mode: str = FASTEST, installed: dict[str, str] | None = None,
    sees_tensorrt: bool = True, **change: Any,
) -> Situation:  # fmt: skip
    host = host_of(root, files, mode, **change)
    return Situation(
        host=host,
        device=read_device(host),
        sees_tensorrt=sees_tensorrt,
        installed=installed or {},
    )


def without(files: Files, *names: str) -> dict[str, str]:
    return {name: text for name, text in files.items() if not any(n in name for n in names)}


def test_a_board_with_the_best_settings_needs_no_advice(tmp_path: Path) -> None:
    assert advise(situation(tmp_path, AGX_ORIN)) == []


def test_recommends_openvino_for_a_processor_with_amx(tmp_path: Path) -> None:
    for installed, expected in (({}, 1), ({"openvino": "1"}, 0)):
        board = situation(tmp_path, AGX_ORIN, installed=installed)
        device = dataclasses.replace(board.device, cpu_features=("amx_int8", "avx512_vnni"))
        advice = advise(dataclasses.replace(board, device=device))
        assert len(advice) == expected
        assert all(line.endswith(f"; {install_hint('openvino')}") for line in advice)


def test_the_power_mode_command_has_the_number_of_this_board(tmp_path: Path) -> None:
    assert advise(situation(tmp_path, ORIN_NANO, mode=power_mode("25W", 1))) == [
        "the power mode is 25W (1), which is slower than MAXN_SUPER; sudo nvpmodel -m 2",
        "clocks follow the load, so benchmarks vary more; sudo jetson_clocks",
    ]


def test_jetpack_6_0_is_too_old(tmp_path: Path) -> None:
    release = {"etc/nv_tegra_release": "# R36 (release), REVISION: 3.0, GCID: 1\n"}
    (advice,) = advise(situation(tmp_path, {**AGX_ORIN, **release}))
    assert "JetPack 6.0" in advice
    assert "install JetPack 6.1" in advice


def test_tensorrt_is_hidden_by_a_virtual_environment(tmp_path: Path) -> None:
    (advice,) = advise(
        situation(
            tmp_path, AGX_ORIN, sees_tensorrt=False, python=(3, 10), environment=Path("/home/me/v")
        )
    )
    assert advice.startswith("TensorRT 10.3.0 is not visible in the virtual environment /home/me/v")
    assert advice.endswith("include-system-site-packages = true/' /home/me/v/pyvenv.cfg")


def test_the_command_for_a_virtual_environment_works(tmp_path: Path) -> None:
    import subprocess

    settings = tmp_path / "pyvenv.cfg"
    settings.write_text("home = /usr/bin\ninclude-system-site-packages = false\nversion = 3.10\n")
    (advice,) = advise(
        situation(
            tmp_path / "root", AGX_ORIN, sees_tensorrt=False, python=(3, 10), environment=tmp_path
        )
    )
    subprocess.run(advice.partition("; ")[2], shell=True, check=True)
    assert settings.read_text().splitlines()[1] == "include-system-site-packages = true"


def test_tensorrt_for_another_python(tmp_path: Path) -> None:
    (advice,) = advise(situation(tmp_path, AGX_ORIN, sees_tensorrt=False, python=(3, 11)))
    assert "supports Python 3.10, but this is Python 3.11" in advice
    assert advice.endswith("python3.10 -m venv --system-site-packages .venv")


def test_tensorrt_without_its_python_module(tmp_path: Path) -> None:
    files = without(AGX_ORIN, "dist-packages")
    (advice,) = advise(situation(tmp_path, files, sees_tensorrt=False))
    assert advice.endswith("sudo apt-get install python3-libnvinfer")


def test_no_tensorrt_at_all(tmp_path: Path) -> None:
    files = without(AGX_ORIN, "libnvinfer", "dist-packages")
    (advice,) = advise(situation(tmp_path / "board", files, sees_tensorrt=False))
    assert advice.endswith("sudo apt-get install nvidia-jetpack")
    inside = {**files, ".dockerenv": ""}
    (advice,) = advise(situation(tmp_path / "inside", inside, sees_tensorrt=False))
    assert "--runtime nvidia" in advice


def test_a_missing_dla_compiler(tmp_path: Path) -> None:
    files = without(AGX_ORIN, "libnvdla")
    (advice,) = advise(situation(tmp_path / "board", files))
    assert advice.endswith("sudo apt-get install --reinstall nvidia-l4t-dla-compiler")
    (advice,) = advise(situation(tmp_path / "inside", {**files, ".dockerenv": ""}))
    assert advice.endswith("start the container with --runtime nvidia")
    thor = situation(tmp_path / "thor", AGX_THOR)  # TensorRT does not need the library there
    assert not any("libnvdla" in advice for advice in advise(thor))


@pytest.mark.parametrize(
    ("installed", "command"),
    [
        (
            {"nvidia-cublas-cu12": "12.6", "nvidia-cudnn-cu13": "9.1", "cuda-bindings": "13.0"},
            "pip uninstall -y nvidia-cublas-cu12",
        ),
        (
            {"nvidia-cublas-cu12": "12.6", "tensorrt-cu13": "10.13", "cuda-bindings": "12.8.0"},
            "pip uninstall -y tensorrt-cu13",
        ),
        (
            {"nvidia-cuda-runtime": "13.0.1", "nvidia-cublas-cu12": "12.6"},
            "pip uninstall -y nvidia-cublas-cu12",
        ),
    ],
)
def test_wheels_for_two_versions_of_cuda(
    tmp_path: Path, installed: dict[str, str], command: str
) -> None:
    (advice,) = advise(situation(tmp_path, {}, installed=installed))
    assert "CUDA 12 and 13" in advice
    assert advice.endswith(command)


def test_wheels_for_one_version_of_cuda_need_no_advice(tmp_path: Path) -> None:
    installed = {"nvidia-cublas-cu12": "12.6", "nvidia-cudnn-cu12": "9", "nvidia-ml-py": "13.0"}
    assert advise(situation(tmp_path, {}, installed=installed)) == []


def test_two_onnx_runtimes(tmp_path: Path) -> None:
    installed = {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.32.0"}
    (advice,) = advise(situation(tmp_path, {}, installed=installed))
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in advice


def test_wheels_for_servers_on_an_orin(tmp_path: Path) -> None:
    installed = {"onnxruntime-gpu": "1.23.2", "nvidia-cudnn-cu12": "9.1", "numpy": "2.2.6"}
    (advice,) = advise(situation(tmp_path / "orin", AGX_ORIN, installed=installed))
    assert advice.endswith("pip uninstall -y nvidia-cudnn-cu12 onnxruntime-gpu")
    assert advise(situation(tmp_path / "server", {}, installed=installed)) == []


def refuse(*names: str) -> Any:
    def read(path: Path) -> bytes:
        if any(name in str(path) for name in names):
            raise PermissionError(path)
        return path.read_bytes()

    return read


def test_power_sensors_that_only_root_may_read(tmp_path: Path) -> None:
    (advice,) = advise(situation(tmp_path, AGX_ORIN, read_bytes=refuse("curr", "in1_input")))
    assert "may not read 5 power sensors" in advice
    pattern = f"{tmp_path}/sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/*_input"
    assert advice.endswith(f"sudo chmod a+r {pattern}")
    assert len(list(Path("/").glob(pattern[1:]))) == 10  # the pattern includes voltages


def test_rapl_that_only_root_may_read(tmp_path: Path) -> None:
    zone = "sys/class/powercap/intel-rapl:0"
    files = {f"{zone}/name": "package-0\n", f"{zone}/energy_uj": "1\n"}
    (advice,) = advise(situation(tmp_path, files, read_bytes=refuse("energy_uj")))
    assert advice.endswith(f"sudo chmod a+r {tmp_path}/sys/class/powercap/intel-rapl:*/energy_uj")


def test_this_machine_has_a_backend() -> None:
    found = diagnose()
    assert found.healthy
    assert any(backend.version for backend in found.backends if backend.available)
    assert found.versions["resdeploy"]
    assert found.self_test is None


def test_a_missing_backend_names_the_package_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "ENGINES", (make_engine("cpu", installed=False),))
    found = diagnose(host=host_of(tmp_path, {}))
    assert not found.healthy
    assert found.backends[0].remedy == "get it"
    assert found.advice[0] == "cpu: cpu is not installed; get it"


def test_recommends_gpu_backends_only_with_a_gpu(tmp_path: Path) -> None:
    server = diagnose(host=host_of(tmp_path / "server", {}, nvml=FakeNvml))
    missing = [backend.name for backend in server.backends if not backend.available]
    assert [line.split(":")[0] for line in server.advice][: len(missing)] == missing
    board = diagnose(host=host_of(tmp_path / "board", AGX_ORIN))
    # The wheel on PyPI does not work on this board.
    assert not any("onnxruntime-gpu" in line for line in board.advice)


def test_a_bundle_is_checked(tiny_bundle: Bundle) -> None:
    found = diagnose(tiny_bundle.path)
    assert found.self_test is not None
    assert found.healthy
    assert "verdict: reproduced" in diagnosis_text(found)


def test_a_failed_self_test_is_not_healthy(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "ENGINES", (make_engine("broken", factor=0.9),))
    found = diagnose(tiny_bundle.path)
    assert found.self_test is not None
    assert found.self_test.verdict is Verdict.FAIL
    assert not found.healthy


@pytest.mark.parametrize("name", BOARDS)
def test_the_diagnosis_of_a_board_fits_on_a_screen(tmp_path: Path, name: str) -> None:
    found = diagnose(host=host_of(tmp_path, BOARDS[name], power_mode("15W", 0)))
    text = diagnosis_text(found)
    assert text.startswith("machine   NVIDIA Jetson")
    assert len(text.splitlines()) <= 24
    assert "None" not in text
    assert "power mode 15W (0)" in text


def test_the_diagnosis_of_an_unknown_machine(tmp_path: Path) -> None:
    found = diagnose(host=host_of(tmp_path, {}))
    bare = dataclasses.replace(found, gpu=())
    assert "None" not in diagnosis_text(bare)
    assert "gpu       none" in diagnosis_text(bare)


@pytest.mark.parametrize("has_amx", [False, True])
def test_says_once_what_installing_openvino_brings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, has_amx: bool
) -> None:
    monkeypatch.setattr(openvino, "installed_version", lambda: None)
    monkeypatch.setattr(doctor, "installed_packages", dict)
    host = host_of(tmp_path, {"proc/cpuinfo": f"flags : avx2 {'amx_int8' * has_amx}\n"})
    (advice,) = [line for line in diagnose(host=host).advice if "openvino" in line.lower()]
    assert advice.endswith(install_hint("openvino"))
    assert ("it runs INT8 faster on many CPUs: " in advice) != has_amx


def test_no_line_of_versions_is_long() -> None:
    lines = [line for line in diagnosis_text(diagnose()).splitlines() if line[:6] == "python"]
    assert len(lines) > 1
    assert max(map(len, lines)) < 110
