"""Tests of the text of `resdeploy export`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from resdeploy.bundle.analysis import Remedy
from resdeploy.bundle.manifest import Encoding, QualityOrigin
from resdeploy.cli.export import remedy_line

REMEDY = Remedy(
    encoding=Encoding.CPU, options=("--min-agreement 99",), images=128,
    origin=QualityOrigin.HELD_OUT, agreement=98.4, sqnr_db=38.0,
)  # fmt: skip


def test_a_graph_that_needs_an_action_is_named_as_in_the_report() -> None:
    (line,) = remedy_line(REMEDY, Path("photos.bundle"))
    assert line.startswith("int8-cpu.onnx predicts the class of FP32 for 98.4 % of 128 ")
    assert "Below 99 %, an action is named here; below 98 %, the export also warns." in line
    assert "Action: export again with --min-agreement 99." in line
    assert line.endswith(" See Layers in photos.bundle/report.html.")
    assert "\n" not in line


def test_a_graph_that_needs_no_action_is_not_named() -> None:
    assert remedy_line(replace(REMEDY, options=(), agreement=100.0), Path("photos.bundle")) == []
    assert remedy_line(None, Path("photos.bundle")) == []
