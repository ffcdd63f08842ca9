"""Tests of the document and the tables, with invented times."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.gpu.report import (
    GpuResult,
    TimedContender,
    checks_text,
    engines_text,
    summarise_gpu,
    times_text,
)
from resdeploy.benchmark_process.roofline import Ceilings
from resdeploy.bundle.operation_counts import LayerWork, Work

WORK = Work(layers=(LayerWork(name="conv", macs=1_000_000, weights=1, activations=1),))
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


def timed(name: str, precision: str, ms: float, answers: Any = None) -> TimedContender:
    """Return four rounds of four calls, one of them twice as long; one round is slow."""
    facts = {"cuda_graphs": "yes", "answers": answers}
    rounds = [np.array([ms, ms, ms, 2 * ms]) * slow for slow in (1.0, 3.0, 1.0, 1.0)]
    return TimedContender(name=name, precision=precision, facts=facts, rounds=rounds)


@pytest.fixture
def rows() -> list[GpuResult]:
    contenders = [
        timed("tensorrt", "int8", 1.0, {"golden": {**GOLDEN, "passed": False}, "labelled": None}),
        timed("tensorrt", "fp16", 2.0, {"golden": GOLDEN, "labelled": LABELLED}),
        timed("pytorch-eager", "fp32", 8.0),
        timed("pytorch-compile", "fp16", 4.0),
    ]
    return summarise_gpu(contenders, 8, WORK.totals, CEILINGS)


def test_computes_the_figures_from_the_times(rows: list[GpuResult]) -> None:
    fp16 = rows[1]
    assert (fp16.contender, fp16.precision, fp16.batch, fp16.calls) == ("tensorrt", "fp16", 8, 16)
    assert fp16.p50_ms == 2.0
    assert fp16.p99_ms == pytest.approx(np.percentile([2, 2, 2, 4] * 3 + [6, 6, 6, 12], 99))
    assert fp16.images_per_second == pytest.approx(1000 * 8 * 16 / (3 * 10 + 30))
    # A round that is slow for all contenders does not change the ratios.
    assert fp16.to_eager_fp32 is not None
    assert (fp16.to_eager_fp32.low, fp16.to_eager_fp32.median, fp16.to_eager_fp32.high) == (4, 4, 4)
    assert fp16.to_compile_fp16 is not None
    assert fp16.to_compile_fp16.median == 2.0
    # 16 million operations at 4 billion a second take 4 ms; the invented time is shorter.
    assert (fp16.roofline_ms, fp16.roofline_bound, fp16.roofline_share) == (4.0, "compute", 2.0)


def test_the_ratio_of_a_baseline_to_itself_is_1(rows: list[GpuResult]) -> None:
    eager, compiled = rows[2], rows[3]
    assert eager.to_eager_fp32 is not None
    assert eager.to_eager_fp32.median == 1.0
    assert compiled.to_compile_fp16 is not None
    assert compiled.to_compile_fp16.median == 1.0


def test_figures_are_none_without_a_baseline_or_a_ceiling() -> None:
    (row,) = summarise_gpu([timed("tensorrt", "int8", 1.0)], 1, WORK.totals, CEILINGS)
    assert row.to_eager_fp32 is None
    assert row.to_compile_fp16 is None
    assert (row.roofline_ms, row.roofline_bound, row.roofline_share) == (None, None, None)
    assert row.passed is None
    line = times_text([row]).splitlines()[-1]
    assert line.split()[-7:] == ["-"] * 7


def test_the_table_shows_the_check_and_the_cuda_graphs(rows: list[GpuResult]) -> None:
    heading, head, _, *lines = times_text(rows).splitlines()
    assert heading == "batch 8"
    assert "CUDA graphs" in head
    assert [line.split()[-1] for line in lines] == ["FAILED", "passed", "-", "-"]
    assert lines[1].split() == [
        "tensorrt", "fp16", "yes", "2.000", "ms", "11.100", "ms", "2133", "4.00x", "4.00-4.00",
        "2.00x", "2.00-2.00", "200", "%", "compute", "passed",
    ]  # fmt: skip
    assert times_text([]) == ""


def test_the_tables_of_outputs_and_engines(rows: list[GpuResult]) -> None:
    _, _, *lines = checks_text(rows).splitlines()
    assert len(lines) == 2
    assert lines[0].endswith("-")
    assert lines[1].split()[-9:] == [
        "40.0", "dB", "99.90", "%", "75.50", "%", "+0.05", "+0.21", "2000"
    ]  # fmt: skip
    _, _, *lines = engines_text([ENGINE, {**ENGINE, "cached": True, "convs": None}]).splitlines()
    assert lines[0].split()[-7:] == ["8", "41.2", "s", "23.4", "MB", "35/36", "36"]
    assert "cached" in lines[1]
    assert lines[1].split()[-2:] == ["-", "36"]
    assert checks_text([]) == engines_text([]) == ""
