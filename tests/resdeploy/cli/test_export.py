"""Tests of the text of `resdeploy export`."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from resdeploy.bundle.analysis import Remedy
from resdeploy.bundle.manifest import Encoding, QualityOrigin
from resdeploy.cli.export import remedy_line

# A module that is None cannot be imported.
WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from resdeploy.cli import main; main()"

REMEDY = Remedy(
    encoding=Encoding.CPU, options=("--min-agreement 99",), images=128,
    origin=QualityOrigin.HELD_OUT, agreement=98.4, sqnr_db=38.0,
)  # fmt: skip


def test_a_graph_that_needs_an_action_is_named_as_in_the_report() -> None:
    (line,) = remedy_line(REMEDY, Path("photos.bundle"))
    assert line.startswith("int8-cpu.onnx predicts the class of FP32 for 98.4 % of 128 ")
    assert "have another class; above 2 %, the export also warns." in line
    assert "Action: export again with --min-agreement 99." in line
    assert line.endswith(" See Layers in photos.bundle/report.html.")
    assert "\n" not in line


def test_a_graph_that_needs_no_action_is_not_named() -> None:
    assert remedy_line(replace(REMEDY, options=(), agreement=100.0), Path("photos.bundle")) == []
    assert remedy_line(None, Path("photos.bundle")) == []


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["export", "no-such.pth"], "there is no checkpoint at no-such.pth"),
        (["export", ".", "--dla"], "--dla applies only to INT8 graphs"),
        (["export", ".", "-o", "."], ". exists"),
        (["export", ".", "--int8", "--calibration-data", "gone"], "there is no folder gone"),
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
