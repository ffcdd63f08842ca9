"""The build options that each TensorRT supports on each board; sources in `options.py`."""

from __future__ import annotations

import re

import pytest

from resdeploy.errors import BackendError
from resdeploy.machine.device import Device
from resdeploy.machine.jetson import Jetson
from resdeploy.runtime.backends.base import Batches
from resdeploy.runtime.backends.tensorrt.options import BuildOptions, check_options
from resdeploy.runtime.backends.tensorrt.tensorrt_or_rtx import Flavour

ORIN = "NVIDIA Jetson AGX Orin Developer Kit"
ORIN_NX = "NVIDIA Jetson Orin NX Engineering Reference Developer Kit"
NANO = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
THOR = "NVIDIA Jetson AGX Thor Developer Kit"
SERVER = ""


def machine(jetson: str, l4t: str | None) -> Device:
    board = Jetson(board=jetson, l4t=l4t) if jetson else None
    return Device(architecture="aarch64", cores=8, jetson=board)


def check(
    options: BuildOptions, version: str, jetson: str = SERVER, l4t: str | None = None,
    flavour: Flavour = Flavour.TENSORRT,
) -> None:  # fmt: skip
    check_options(options, flavour, version, machine(jetson, l4t))


PLAIN = BuildOptions()
ON_DLA = BuildOptions(dla_core=0)


@pytest.mark.parametrize("version", ["10.3.0.26", "10.13.3", "10.16.1", "11.0.0", "11.4.1"])
@pytest.mark.parametrize(("jetson", "l4t"), [(SERVER, None), (ORIN, "36.4.7"), (THOR, "38.2")])
def test_supported_versions_build_for_the_gpu(version: str, jetson: str, l4t: str | None) -> None:
    check(PLAIN, version, jetson, l4t)


@pytest.mark.parametrize("version", ["8.6.2", "10.0.1", "10.2.0"])
def test_rejects_old_versions(version: str) -> None:
    with pytest.raises(BackendError, match=r"these graphs need 10\.3") as caught:
        check(PLAIN, version)
    assert "JetPack 6.1" in str(caught.value.hint)


def test_accepts_rtx_1_7() -> None:
    check(PLAIN, "1.7.1", flavour=Flavour.RTX)


@pytest.mark.parametrize(
    "options", [BuildOptions(version_compatible=True), BuildOptions(hardware_compatible=True)]
)
def test_rtx_has_no_compatible_engines(options: BuildOptions) -> None:
    with pytest.raises(BackendError, match="neither version-compatible nor"):
        check(options, "1.7.1", flavour=Flavour.RTX)
    check(options, "10.13.0")


def test_a_jetson_has_no_hardware_compatible_engines() -> None:
    with pytest.raises(BackendError, match="no hardware-compatible engines on a Jetson"):
        check(BuildOptions(hardware_compatible=True), "10.3.0", ORIN, "36.4.7")


# The deep-learning accelerator


def test_the_dla_of_an_agx_orin_with_a_new_jetpack() -> None:
    check(ON_DLA, "11.4.1", ORIN, "39.2.2")
    check(BuildOptions(dla_core=1), "11.5.0.7", ORIN, "40.1")


@pytest.mark.parametrize(
    ("version", "jetson", "l4t", "sentence"),
    [
        ("11.4.1", SERVER, None, "only a Jetson has a DLA"),
        ("11.4.1", THOR, "39.2.2", "Thor Developer Kit has no DLA"),
        ("11.4.1", NANO, "39.2.2", "Super has no DLA"),
        ("11.4.1", ORIN_NX, "39.2.2", "supports only the DLA of an AGX Orin"),
        ("11.4.1", ORIN, "39.2", "with L4T 39.2"),
        ("11.4.1", ORIN, "39.2.1", "with L4T 39.2.1"),
        ("11.4.0", ORIN, "39.2.2", "11.4.0 does not support DLA; 10.8 to 11.4.0 do not"),
        ("11.0.0", ORIN, "39.2.2", "does not support DLA"),
        ("10.13.0", ORIN, "38.2", "does not support DLA"),
        ("10.8.0", ORIN, "36.4.7", "does not support DLA"),
        ("10.3.0", ORIN, "36.4.7", "supports INT8 on a DLA only with a calibration cache"),
        ("10.7.0", ORIN, "36.4.7", "supports INT8 on a DLA only with a calibration cache"),
    ],
)
def test_rejects_unsupported_dlas(
    version: str, jetson: str, l4t: str | None, sentence: str
) -> None:
    with pytest.raises(BackendError, match=re.escape(sentence)) as caught:
        check(ON_DLA, version, jetson, l4t)
    assert caught.value.hint


def test_hint_gives_the_trtexec_command() -> None:
    with pytest.raises(BackendError) as caught:
        check(BuildOptions(dla_core=1), "10.3.0", ORIN, "36.4.7")
    hint = str(caught.value.hint)
    assert "trtexec --onnx=fp32.onnx --int8 --fp16 --calib=calibration.cache" in hint
    assert "--useDLACore=1" in hint


@pytest.mark.parametrize("core", [-1, 2])
def test_rejects_other_dla_cores(core: int) -> None:
    with pytest.raises(BackendError, match=f"no DLA core {core}"):
        check(BuildOptions(dla_core=core), "11.4.1", ORIN, "39.2.2")


def test_rtx_has_no_dla() -> None:
    with pytest.raises(BackendError, match="TensorRT-RTX cannot build for a DLA"):
        check(ON_DLA, "1.7.1", ORIN, "39.2.2", Flavour.RTX)


# Batches


@pytest.mark.parametrize(
    ("text", "batches"),
    [("1,8,32", Batches(1, 8, 32)), ("4", Batches(4, 4, 4)), (" 1, 1 ,2", Batches(1, 1, 2))],
)
def test_parses_batches(text: str, batches: Batches) -> None:
    assert Batches.parse(text) == batches
    assert Batches.parse(str(batches)) == batches


@pytest.mark.parametrize("text", ["", "0", "1,2", "1,2,3,4", "8,1,32", "1,8,4", "a", "-1,1,1"])
def test_rejects_invalid_batches(text: str) -> None:
    with pytest.raises(ValueError):
        Batches.parse(text)
