"""Tests of the comparison of two benchmarks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from resdeploy.errors import DocumentError
from resdeploy.result_files.benchmark import Benchmark
from resdeploy.runtime.comparison.benchmarks import compare_benchmarks
from resdeploy.statistics import Verdict
from tests.results import benchmark, timing


def scaled(document: Benchmark, contender: str, factor: float) -> Benchmark:
    """Return the benchmark with the times of one contender multiplied."""
    results = tuple(
        replace(
            line,
            p50_ms=factor * line.p50_ms,
            round_ms=tuple(factor * time for time in line.round_ms),
        )
        if line.contender == contender
        else line
        for line in document.results
    )
    return replace(document, results=results)


def other_day(**changes: Any) -> Benchmark:
    """Return a benchmark of the same network and machine, with other noise."""
    return benchmark(seed=1, date="2026-11-25T10:00:00+00:00", **changes)


def test_passes_if_only_the_whole_machine_was_slower() -> None:
    slower = other_day()
    for name in ("pytorch-eager", "onnxruntime-cpu"):
        slower = scaled(slower, name, 1.3)
    found = compare_benchmarks([benchmark()], [slower], 5)
    assert [line.verdict for line in found.lines] == [Verdict.PASS] * 2
    assert {line.relative_to for line in found.lines} == {"pytorch-eager"}
    # The reported times are those that were measured.
    assert found.lines[0].second_ms > 1.2 * found.lines[0].first_ms


def test_detects_a_slowdown_of_10_percent() -> None:
    slower = scaled(other_day(), "onnxruntime-cpu", 1.1)
    found = compare_benchmarks([benchmark()], [slower], 5)
    assert [line.verdict for line in found.lines] == [Verdict.FAIL] * 2
    assert found.lines[0].slowdown == pytest.approx(10, abs=2)


def test_identical_benchmarks_pass_20_of_20_times() -> None:
    for seed in range(20):
        document = benchmark(seed=seed)
        assert all(
            line.verdict is Verdict.PASS
            for line in compare_benchmarks([document], [document], 5).lines
        )


def test_another_version_of_pytorch_is_not_a_common_baseline() -> None:
    newer = other_day(versions={"torch": "2.14.0"})
    found = compare_benchmarks([benchmark()], [newer], 5)
    assert {line.relative_to for line in found.lines} == {None}


def test_lists_contenders_of_only_one_benchmark() -> None:
    document = benchmark()
    fewer = replace(document, results=document.results[:2])
    found = compare_benchmarks([document], [fewer], 5)
    assert found.missing == ("onnxruntime-cpu with int8-cpu, batch 1, 1 thread",)
    assert compare_benchmarks([fewer], [document], 5).added == found.missing


def test_reports_two_different_machines() -> None:
    found = compare_benchmarks([benchmark()], [other_day(cpu="Apple M9")], 5)
    assert "measured on two machines: AMD EPYC, 2 cores, and Apple M9, 2 cores" in found.notices


def test_rejects_benchmarks_that_cannot_be_compared() -> None:
    document = benchmark()
    with pytest.raises(DocumentError, match="resnet34 at 224 pixels, the second resnet34 at 32"):
        compare_benchmarks([document], [other_day(image_size=32)], 5)
    with pytest.raises(DocumentError, match="no contender in common"):
        compare_benchmarks([document], [replace(document, results=document.results[:1])], 5)
    with pytest.raises(DocumentError, match="more than once") as caught:
        compare_benchmarks([document, other_day()], [document], 5)
    assert "2026-11-25" in str(caught.value.hint)
    bare = replace(document, results=(document.results[0], replace(timing(), round_ms=())))
    with pytest.raises(DocumentError, match="has no rounds"):
        compare_benchmarks([document], [bare], 5)


def test_rounds_of_different_numbers_are_not_divided() -> None:
    document = benchmark()
    first = replace(document.results[0], round_ms=document.results[0].round_ms[:-1])
    found = compare_benchmarks(
        [document], [replace(document, results=(first, *document.results[1:]))], 5
    )
    assert {line.relative_to for line in found.lines} == {None}
    assert np.isfinite(found.lines[0].slowdown_high)
