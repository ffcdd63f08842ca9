"""Two benchmarks of different days."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from resdeploy.errors import DocumentError
from resdeploy.results.benchmark import BenchmarkDocument
from resdeploy.runtime.comparison.benchmarks import compare_benchmarks
from resdeploy.statistics import Verdict
from tests.results import benchmark, timing


def scaled(document: BenchmarkDocument, contender: str, factor: float) -> BenchmarkDocument:
    """The same with one contender's times multiplied."""
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


def other_day(**changes: Any) -> BenchmarkDocument:
    """The same network on the same machine, with noise of its own."""
    return benchmark(seed=1, date="2026-11-25T10:00:00+00:00", **changes)


def test_the_same_passes_though_the_whole_machine_was_slower() -> None:
    slower = other_day()
    for name in ("pytorch-eager", "onnxruntime-cpu"):
        slower = scaled(slower, name, 1.3)
    found = compare_benchmarks([benchmark()], [slower], 5)
    assert [line.verdict for line in found.lines] == [Verdict.PASS] * 2
    assert {line.relative_to for line in found.lines} == {"pytorch-eager"}
    assert found.lines[0].second_ms > 1.2 * found.lines[0].first_ms  # what was measured


def test_a_tenth_more_is_caught() -> None:
    slower = scaled(other_day(), "onnxruntime-cpu", 1.1)
    found = compare_benchmarks([benchmark()], [slower], 5)
    assert [line.verdict for line in found.lines] == [Verdict.FAIL] * 2
    assert found.lines[0].slowdown == pytest.approx(10, abs=2)


def test_identical_documents_pass_20_times_of_20() -> None:
    for seed in range(20):
        document = benchmark(seed=seed)
        assert all(
            line.verdict is Verdict.PASS
            for line in compare_benchmarks([document], [document], 5).lines
        )


def test_another_pytorch_is_no_common_measure() -> None:
    newer = other_day(versions={"torch": "2.14.0"})
    found = compare_benchmarks([benchmark()], [newer], 5)
    assert {line.relative_to for line in found.lines} == {None}


def test_contenders_of_one_side_are_named() -> None:
    one = benchmark()
    fewer = replace(one, results=one.results[:2])
    found = compare_benchmarks([one], [fewer], 5)
    assert found.missing == ("onnxruntime-cpu with int8-cpu, batch 1, 1 thread",)
    assert compare_benchmarks([fewer], [one], 5).added == found.missing


def test_two_machines_are_noticed() -> None:
    found = compare_benchmarks([benchmark()], [other_day(cpu="Apple M9")], 5)
    assert "measured on two machines: AMD EPYC, 2 cores, and Apple M9, 2 cores" in found.notices


def test_what_cannot_be_compared_is_refused() -> None:
    one = benchmark()
    with pytest.raises(DocumentError, match="resnet34 at 224 pixels, the other of resnet34 at 32"):
        compare_benchmarks([one], [other_day(image_size=32)], 5)
    with pytest.raises(DocumentError, match="no contender in common"):
        compare_benchmarks([one], [replace(one, results=one.results[:1])], 5)
    with pytest.raises(DocumentError, match="more than once") as caught:
        compare_benchmarks([one, other_day()], [one], 5)
    assert "2026-11-25" in str(caught.value.hint)
    bare = replace(one, results=(one.results[0], replace(timing(), round_ms=())))
    with pytest.raises(DocumentError, match="measured without rounds"):
        compare_benchmarks([one], [bare], 5)


def test_rounds_that_do_not_match_are_not_divided() -> None:
    one = benchmark()
    first = replace(one.results[0], round_ms=one.results[0].round_ms[:-1])
    found = compare_benchmarks([one], [replace(one, results=(first, *one.results[1:]))], 5)
    assert {line.relative_to for line in found.lines} == {None}
    assert np.isfinite(found.lines[0].slowdown_high)
