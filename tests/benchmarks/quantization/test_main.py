"""Test of the benchmark of INT8 accuracy on a small network, with one other quantiser."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from benchmarks.quantization.__main__ import OURS, _compare_all, _prepare
from resdeploy.export.inputs import read_source
from tests.samples import CLASSES, SIZE


@pytest.mark.slow
def test_compares_resdeploy_with_another_quantiser(
    tiny_checkpoint: Path, image_data: Path, tmp_path: Path
) -> None:
    source = read_source(tiny_checkpoint, image_size=SIZE, calibration_data=image_data)
    source = dataclasses.replace(source, labels=CLASSES)
    validation = _prepare(source, image_data, tmp_path)
    rows = list(
        _compare_all(
            source, tiny_checkpoint, image_data, 16, 0, tmp_path, validation,
            {"onnxruntime MinMax": Path(sys.executable)},
        )
    )  # fmt: skip
    assert [row.contender for row in rows] == [*OURS.values(), "onnxruntime MinMax"]
    assert [row.int8_convs for row in rows] == [12, 12, 12]
    assert all(row.sqnr_db > 5 and row.processor_seconds > 0 and row.peak_mb > 0 for row in rows)
