"""Tests of the text of `resdeploy export`."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from importlib.resources import files

import pytest

from resdeploy.bundle.analysis import Remedy
from resdeploy.bundle.manifest import Encoding, ExportWarning, QualityOrigin
from resdeploy.cli.export import remedy_line

# A module that is None cannot be imported.
WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from resdeploy.cli import main; main()"

ONNX_FILE = str(files("resdeploy.runtime.bench") / "matrix_product_fp32.onnx")

REMEDY = Remedy(
    encoding=Encoding.CPU, options=("--min-agreement 99",), images=128,
    origin=QualityOrigin.HELD_OUT, agreement=98.4, sqnr_db=38.0,
)  # fmt: skip


def test_an_action_that_no_warning_has_is_optional() -> None:
    (line,) = remedy_line(REMEDY, ())
    assert line == (
        "optional: export another bundle with --min-agreement 99, and see with resdeploy compare "
        "if it is better; int8-cpu predicts FP32's class for 98.4 % of 128 images not used by the "
        "calibration (aim: 99 %), and its SQNR on the golden images is 38.0 dB (aim: 30 dB)"
    )
    other, same = (ExportWarning(message="m", hint="h", artifacts=(n,)) for n in ("a", "int8-cpu"))
    assert remedy_line(REMEDY, [other]) == [line]
    assert remedy_line(REMEDY, [same]) == []  # its hint is the action


def test_a_graph_that_needs_no_action_is_not_named() -> None:
    assert remedy_line(replace(REMEDY, options=(), agreement=100.0), ()) == []
    assert remedy_line(None, ()) == []


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["export", "no-such.pth"], "there is no checkpoint at no-such.pth"),
        (["export", ".", "--dla"], "--dla applies only to INT8 graphs"),
        (["export", ".", "-o", "."], ". exists"),
        (["export", "."], ". is not a run folder: it has no model.json"),
        (["export", __file__], f"{__file__} is not a checkpoint: it is a text file"),
        (["export", ONNX_FILE, "--labels", "gone"], "gone cannot be read"),
        (["export", ONNX_FILE, "--preprocessing", "gone"], "gone cannot be read"),
        (["export", ONNX_FILE, "--int8"], "INT8 needs calibration images"),
        (["export", ONNX_FILE, "--int8", "--calibration-data", "gone"], "there is no folder gone"),
        (["inspect", "no-such.pth"], "there is no checkpoint at no-such.pth"),
        (["preprocess", "no-such.pth", "--data", "."], "there is no checkpoint at no-such.pth"),
        (["train", "gone"], "there is no folder gone"),
        (["train", ".", "--init", "no-such.pth"], "there is no checkpoint at no-such.pth"),
    ],
)
def test_a_wrong_argument_is_refused_before_pytorch_is_loaded(
    arguments: list[str], error: str
) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert answer.returncode == 1
    assert answer.stderr.startswith(f"error: {error}")
