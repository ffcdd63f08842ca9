"""Tests of the text of `resdeploy demo`, and of what it times; running it takes minutes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from resdeploy.bundle.bundle import Bundle
from resdeploy.predictions import Prediction
from resdeploy.runtime.file_predictions import FilePredictions
from resdeploy.runtime.verification.verify import verify
from resdeploy.statistics import Verdict
from tests.results import benchmark, timing


def test_the_demo_times_openvino_if_it_verifies_it(tiny_bundle: Bundle, image_data: Path) -> None:
    pytest.importorskip("torch")
    from resdeploy.cli.demo import demo_text
    from resdeploy.demo import DemoResult, benchmark_of

    found = verify(
        tiny_bundle, data=image_data, backend="onnxruntime-cpu", precision="fp32", max_drop=50
    )
    both = replace(found, results=(*found.results, replace(found.results[0], backend="openvino")))
    assert benchmark_of(found).also == ()
    assert benchmark_of(both).also == ("openvino",)
    measured = benchmark()
    measured = replace(measured, results=(*measured.results, timing("openvino", ms=5.0)))
    picture = FilePredictions(
        path=Path("7.png"),
        backend="b",
        artifact="a",
        predictions=(Prediction(label="seven", index=7, probability=0.9),),
    )
    text = demo_text(
        DemoResult(
            accuracy=97.0, bundle=tiny_bundle.path, verdict=Verdict.PASS, speedup=None, seconds=9.0,
            report=Path("r"), verification=both, benchmark=measured,
            prediction=picture,
        )
    )  # fmt: skip
    rows = [line.split() for line in text.splitlines() if line.startswith("fp32.onnx")]
    assert [row[-2] for row in rows] == ["1.21x"]  # a table of the graphs
