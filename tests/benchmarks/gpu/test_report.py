"""The document and the tables, from times that were made up."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu.report import (
    RULES,
    Missing,
    Row,
    Timed,
    answers_text,
    document,
    engines_text,
    rows_of,
    times_text,
)
from resdeploy.bench.roofline import Ceilings
from resdeploy.bundle.work import LayerWork, Work

WORK = Work(layers=(LayerWork(name="conv", macs=1_000_000, weights=0, activations=1),))
CEILINGS = Ceilings(operations_per_second={"tf32": 2e9, "fp16": 4e9}, bytes_per_second=1e9)
GOLDEN = {"images": 32, "agreement": 100.0, "sqnr_db": 51.25, "floor_db": 40.0, "passed": True}
LABELLED = {
    "images": 2000, "agreement": 99.9, "top1": 75.5, "fp32_top1": 75.55, "drop": 0.05,
    "drop_upper95": 0.21,
}  # fmt: skip
ENGINE = {
    "flavour": "tensorrt", "artifact": "int8", "batch": 8, "cached": False, "seconds": 41.25,
    "bytes": 23_400_000, "convs": 36, "int8_convs": 35, "int8_convs_expected": 36,
}  # fmt: skip


def timed(name: str, precision: str, ms: float, answers: Any = None) -> Timed:
    """Four rounds of four runs, one of which took twice as long; one round was slow for all."""
    facts = {"cuda_graphs": "yes", "answers": answers}
    rounds = [np.array([ms, ms, ms, 2 * ms]) * slow for slow in (1.0, 3.0, 1.0, 1.0)]
    return Timed(name=name, precision=precision, facts=facts, rounds=rounds)


@pytest.fixture
def rows() -> list[Row]:
    contenders = [
        timed("tensorrt", "int8", 1.0, {"golden": {**GOLDEN, "passed": False}, "labelled": None}),
        timed("tensorrt", "fp16", 2.0, {"golden": GOLDEN, "labelled": LABELLED}),
        timed("pytorch-eager", "fp32", 8.0),
        timed("pytorch-compile", "fp16", 4.0),
    ]
    return rows_of(contenders, 8, WORK, CEILINGS)


def test_figures_follow_from_the_times(rows: list[Row]) -> None:
    half = rows[1]
    assert (half.contender, half.precision, half.batch, half.runs) == ("tensorrt", "fp16", 8, 16)
    assert half.p50_ms == 2.0
    assert half.p99_ms == pytest.approx(np.percentile([2, 2, 2, 4] * 3 + [6, 6, 6, 12], 99))
    assert half.images_per_second == pytest.approx(1000 * 8 * 16 / (3 * 10 + 30))
    # A round that was slow for all changes no ratio.
    assert half.to_eager_fp32 is not None
    assert (half.to_eager_fp32.low, half.to_eager_fp32.median, half.to_eager_fp32.high) == (4, 4, 4)
    assert half.to_compile_fp16 is not None
    assert half.to_compile_fp16.median == 2.0
    # 16 million operations at 4 billion a second take 4 ms, which 2 ms beats: times are made up.
    assert (half.roofline_ms, half.roofline_bound, half.roofline_share) == (4.0, "compute", 2.0)


def test_the_baselines_are_once_themselves(rows: list[Row]) -> None:
    eager, compiled = rows[2], rows[3]
    assert eager.to_eager_fp32 is not None
    assert eager.to_eager_fp32.median == 1.0
    assert compiled.to_compile_fp16 is not None
    assert compiled.to_compile_fp16.median == 1.0


def test_without_a_baseline_or_a_ceiling_there_is_no_figure() -> None:
    (row,) = rows_of([timed("tensorrt", "int8", 1.0)], 1, WORK, CEILINGS)
    assert row.to_eager_fp32 is None
    assert row.to_compile_fp16 is None
    assert (row.roofline_ms, row.roofline_bound, row.roofline_share) == (None, None, None)
    assert row.right is None
    line = times_text([row]).splitlines()[-1]
    assert line.split()[-7:] == ["-"] * 7


def test_the_table_says_what_is_wrong_and_how_it_was_run(rows: list[Row]) -> None:
    heading, head, _, *lines = times_text(rows).splitlines()
    assert heading == "batch 8"
    assert "CUDA graphs" in head
    assert [line.split()[-1] for line in lines] == ["WRONG", "right", "-", "-"]
    assert lines[1].split() == [
        "tensorrt", "fp16", "yes", "2.000", "ms", "11.100", "ms", "2133", "4.00x", "4.00-4.00",
        "2.00x", "2.00-2.00", "200", "%", "compute", "right",
    ]  # fmt: skip
    assert times_text([]) == ""


def test_answers_and_engines_have_a_line_each(rows: list[Row]) -> None:
    _, _, *lines = answers_text(rows).splitlines()
    assert len(lines) == 2
    assert lines[0].endswith("-")
    assert lines[1].split()[-9:] == [
        "40.0", "dB", "99.90", "%", "75.50", "%", "+0.05", "+0.21", "2000"
    ]  # fmt: skip
    _, _, *lines = engines_text([ENGINE, {**ENGINE, "cached": True, "convs": None}]).splitlines()
    assert lines[0].split()[-7:] == ["8", "41.2", "s", "23.4", "MB", "35/36", "36"]
    assert "was there" in lines[1]
    assert lines[1].split()[-2:] == ["-", "36"]
    assert answers_text([]) == engines_text([]) == ""


def test_the_document_holds_all_and_is_json(rows: list[Row]) -> None:
    written = document(
        machine={"gpu": {"name": "a GPU"}, "device": {"cores": 2}},
        network={"name": "resnet34"},
        settings={"seconds": 3.0},
        ceilings=None,
        work=WORK,
        engines=[ENGINE],
        rows=rows,
        missing=[Missing(what="tensorrt-rtx", why="not installed")],
    )
    read = json.loads(json.dumps(written))
    assert read == written
    assert read["gpu"] == {"name": "a GPU"}
    assert read["network"]["work_of_one_image"]["macs"] == 1_000_000
    assert read["rules"] == RULES
    assert read["engines"] == [ENGINE]
    assert read["missing"] == [{"what": "tensorrt-rtx", "why": "not installed"}]
    assert [row["contender"] for row in read["rows"]] == [row.contender for row in rows]
    assert read["rows"][1]["to_eager_fp32"] == {"median": 4.0, "low": 4.0, "high": 4.0}
    assert read["rows"][0]["facts"]["answers"]["golden"]["passed"] is False
