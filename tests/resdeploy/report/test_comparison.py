"""Tests of the page and the text of a comparison."""

from __future__ import annotations

from dataclasses import replace

import pytest

from resdeploy.bundle.manifest import Encoding
from resdeploy.pages.blocks import Facts, Figure, Table, Text
from resdeploy.report.comparison import comparison_text
from resdeploy.result_files.comparison import ExportChange, LatencyChange, LayerChange
from resdeploy.statistics import Verdict
from tests.resdeploy.report.test_report import page_of
from tests.results import comparison

EXCEEDED = "the accuracy drop of int8-cpu is 0.75 points, 0.55 above the limit of 0.2 points"
OPEN = "the accuracy drop of int8-cpu is between -0.20 and +0.70 points, limit 0.2 points"


@pytest.mark.parametrize(
    ("verdict", "drop", "advice"),
    [
        (Verdict.PASS, 0.0, "new.bundle can replace old.bundle."),
        (Verdict.FAIL, 0.75, "Keep old.bundle: new.bundle failed the comparison."),
        (
            Verdict.INCONCLUSIVE, 0.22,
            "Keep old.bundle: the measurements do not show that new.bundle is within the limits.",
        ),
    ],
)  # fmt: skip
def test_a_comparison_says_what_to_do_and_which_limit_decides(
    verdict: Verdict, drop: float, advice: str
) -> None:
    result = comparison(verdict)
    result = replace(result, accuracy=(replace(result.accuracy[0], drop=drop),))
    page = page_of(comparisons=[result])
    assert page.title == "Comparison of new.bundle with old.bundle"
    assert page.subject.startswith("new.bundle compared with old.bundle on 2026-11-24 on ")
    reason = {Verdict.FAIL: EXCEEDED, Verdict.INCONCLUSIVE: OPEN}.get(verdict, "")
    assert page.summary == (
        "First: old.bundle; second: new.bundle; limits: a drop of 0.2 points.",
        *([f"T{reason[1:]}."] if reason else []),
        "The folders hold different images.",
    )
    assert page.recommendation == advice
    last = comparison_text(result).splitlines()[-1]
    assert last.startswith(f"verdict: {verdict.value}; ")
    assert (EXCEEDED in last, OPEN in last) == (reason == EXCEEDED, reason == OPEN)
    table, plot = page.sections[0].blocks
    assert isinstance(table, Table)
    assert "pass if both bounds are at most 0.2, the limit" in table.caption
    needed = "1,200" if verdict is Verdict.INCONCLUSIVE else "-"
    assert (table.head[-1], table.rows[0][-1]) == ("images to decide", needed)
    assert isinstance(plot, Figure)
    assert plot.legend[1] == ("mark1", "limit: 0.2 points")


def test_a_slowdown_and_a_missing_graph_are_reasons_to_fail() -> None:
    slow = LatencyChange(
        contender="openvino", graph="fp32", batch=1, threads=2, first_ms=4.0, second_ms=4.5,
        slowdown=12.5, slowdown_low=9.0, slowdown_high=14.0, confidence=0.99, samples=8,
        samples_to_decide=8, seconds=3.0, relative_to=None, verdict=Verdict.FAIL,
    )  # fmt: skip
    slower = replace(slow, graph="fp16", slowdown=20.0)
    result = replace(
        comparison(Verdict.FAIL), latency=(slow, slower), missing=("int8",), added=("int8-dla",)
    )
    assert page_of(comparisons=[result]).summary[2:4] == (
        "The slowdown of fp16 on openvino is 20.0 %, 15.0 points above the limit of 5 % (also "
        "fail: fp32 on openvino).",
        "Missing in new.bundle: int8.",
    )
    facts = page_of(comparisons=[result]).sections[0].blocks[-1]
    assert isinstance(facts, Facts)
    assert facts.facts == (("only in old.bundle", "int8"), ("only in new.bundle", "int8-dla"))
    # Two benchmarks: neither is deployed, and another machine is no evidence.
    elsewhere = replace(
        result, verdict=Verdict.INCONCLUSIVE, accuracy=(), missing=(), notices=("two machines",)
    )
    page = page_of(comparisons=[elsewhere])
    assert page.recommendation == (
        "The measurements do not show that new.bundle is within the limits."
    )
    assert page.summary[-1] == "Two machines."


def test_an_inconclusive_comparison_names_the_graph_that_may_be_the_worst() -> None:
    fp32, cpu = (
        LatencyChange(
            contender="onnxruntime-cpu", graph=graph, batch=1, threads=2, first_ms=8.0,
            second_ms=9.0, slowdown=slowdown, slowdown_low=-10.0, slowdown_high=high,
            confidence=0.99, samples=8, samples_to_decide=None, seconds=seconds, relative_to=None,
            verdict=Verdict.INCONCLUSIVE,
        )
        for graph, slowdown, high, seconds in (
            ("fp32", 6.1, 37.3, 31.0), ("int8-cpu", -0.04, 128.6, 24.0),
        )
    )  # fmt: skip
    change = comparison().accuracy[0]
    wide = replace(change, artifact="fp32", drop=-0.1, drop_high=0.9)
    result = replace(comparison(), accuracy=(change, wide), latency=(fp32, cpu))
    _, drop, slowdown, *_ = page_of(comparisons=[result]).summary
    assert drop == (  # the interval is not that of the other graph
        "The accuracy drop of fp32 is between -0.20 and +0.90 points, limit 0.2 points (also "
        "inconclusive: int8-cpu)."
    )
    assert slowdown == (
        "The slowdown of int8-cpu on onnxruntime-cpu is between -10.0 and +128.6 %, limit 5 % "
        "(also inconclusive: fp32 on onnxruntime-cpu)."
    )
    text = comparison_text(result)
    assert "-0.0 %" not in text
    # What both have in common is said once.
    assert (
        "onnxruntime-cpu fp32 after 31 s (8 starts of both), onnxruntime-cpu int8-cpu after 24 s "
        "(8 starts of both): latency inconclusive, and more would not decide: " in text
    )


def test_changed_layers_are_named_with_their_graph() -> None:
    change = LayerChange(
        encoding=Encoding.TENSORRT, calibrators=("max", "mse"), to_float=(), to_int8=("a", "b")
    )
    assert (
        "int8.onnx: 2 layers from float to INT8 (a, b); calibrator from max to mse"
        in comparison_text(replace(comparison(), layers=(change,)))
    )


def test_a_comparison_says_what_differs_between_the_exports_and_what_is_not_timed() -> None:
    found = replace(
        comparison(),
        accuracy=tuple(
            replace(comparison().accuracy[0], artifact=name) for name in ("int8-cpu", "int8")
        ),
        exports=(ExportChange("calibration images", "128", "512"),),
        latency=(
            LatencyChange(
                contender="onnxruntime-cpu", graph="int8-cpu", batch=1, threads=2, first_ms=0.46,
                second_ms=0.45, slowdown=0.8, slowdown_low=-4.7, slowdown_high=4.9,
                confidence=0.99, samples=8, samples_to_decide=8, seconds=23.4, relative_to=None,
                verdict=Verdict.PASS,
            ),
        ),
    )  # fmt: skip
    assert "calibration images: from 128 to 512" in comparison_text(found)
    blocks = page_of(comparisons=[found]).sections[0].blocks
    texts = [block.text for block in blocks if isinstance(block, Text)]
    assert texts == ["int8 is made for NVIDIA GPUs (TensorRT), and is not timed here."]
    captions = [block.caption for block in blocks if isinstance(block, Table)]
    assert captions[1].startswith("Median latency of both, measured for 23 s (8 starts of both). ")


def test_identical_bundles_are_not_measured() -> None:
    same = replace(comparison(Verdict.PASS), identical=True, accuracy=(), notices=("the same",))
    page = page_of(comparisons=[same])
    assert page.summary == (
        "First: old.bundle; second: new.bundle.",
        "The same.",
    )
    assert page.sections[0].blocks == (Text(text="Nothing was measured."),)
