"""Tests of the plot of the noisiest layers and of the table."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ET

import pytest

from resdeploy.bundle.analysis import ActivationHistogram, Analysis, FloatMixture, LayerCost, Remedy
from resdeploy.bundle.manifest import Encoding, QualityOrigin
from resdeploy.pages.blocks import Figure, Table, Text
from resdeploy.report.layers import layer_blocks, noise_text, remedy_lines

REMEDY = Remedy(
    encoding=Encoding.CPU, options=(), images=32, origin=None, agreement=100.0, sqnr_db=31.0
)


def layer(name: str, input_db: float | None, weight_db: float | None) -> LayerCost:
    return LayerCost(
        name=name, kind="Conv", macs=100, input_sqnr_db=input_db, weight_sqnr_db=weight_db,
        in_float=(),
    )  # fmt: skip


ANALYSIS = Analysis(
    encoding=Encoding.CPU,
    remedy=REMEDY,
    layers=(layer("good", 55, 50), layer("bad", 20, 40), layer("middle", 45, 30)),
    histograms=(),
)


def test_a_longer_bar_is_a_worse_layer() -> None:
    (figure,) = (block for block in layer_blocks(ANALYSIS, None) if isinstance(block, Figure))
    drawing = list(ET.fromstring(figure.svg))
    texts = [part.text or "" for part in drawing if part.tag == "text"]
    assert texts[:3] == ["bad", "middle", "good"]
    widths = [float(part.attrib["width"][:-1]) for part in drawing if part.tag == "rect"]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] == pytest.approx(10 * widths[1], rel=0.01)
    assert texts[-1] == "noise, in % of the signal's power"
    assert "int8-cpu.onnx" in figure.caption


def test_the_layers_of_the_report_have_an_action() -> None:
    texts = [block.text for block in layer_blocks(ANALYSIS, None) if isinstance(block, Text)]
    assert texts == [
        "No action is needed: int8-cpu.onnx predicts the class of FP32 for 100.0 % of 32 golden "
        "images; 99 % and more need no remedy (the limit of the export's warning is 98 %).",
        "On the golden images, the SQNR of its logits is 31.0 dB; 30 dB and more need no remedy.",
    ]


def test_layers_in_float_are_named_with_the_reason() -> None:
    layers = tuple(
        dataclasses.replace(layer, in_float=("cpu",) if layer.name == "bad" else ())
        for layer in ANALYSIS.layers
    )
    blocks = layer_blocks(dataclasses.replace(ANALYSIS, layers=layers), None)
    assert [block.text for block in blocks if isinstance(block, Text)][-1] == (
        "int8-cpu.onnx keeps 1 of 3 layers in float (bad): the search for the target chose them, "
        "because in INT8 they lose the most accuracy for the time that they save."
    )


@pytest.mark.parametrize(
    ("origin", "images"),
    [
        (None, "32 golden images"),
        (QualityOrigin.HELD_OUT, "32 held-out images"),
        (QualityOrigin.CROSS_VALIDATION, "32 images (by cross-validation)"),
    ],
)
def test_the_images_of_an_agreement_are_named(origin: QualityOrigin | None, images: str) -> None:
    first, _ = remedy_lines(dataclasses.replace(REMEDY, origin=origin))
    assert f"for 100.0 % of {images}; " in first


@pytest.mark.parametrize(
    ("origin", "share"),
    [
        (None, "96.9 % of them have FP32's class instead of 97.5 %. "),
        (QualityOrigin.HELD_OUT, "FP32's class (the share above is of other images). "),
    ],
)
def test_the_effect_of_a_remedy_has_its_images(origin: QualityOrigin | None, share: str) -> None:
    mixture = FloatMixture(
        layers=("a", "b"), candidates=21, float_share_percent=3.0, agreement=96.9, sqnr_db=31.2,
        latency_ratio=None, latency_ratio_low=None, latency_ratio_high=None,
    )  # fmt: skip
    needed = dataclasses.replace(
        REMEDY, origin=origin, agreement=97.5, sqnr_db=28.7, options=("--min-agreement 99",),
        mixture=mixture, sufficient=True,
    )  # fmt: skip
    line = remedy_lines(needed)[3]
    assert line.startswith(
        "On the golden images, with 2 of 21 layers in float (a, b), the SQNR is 31.2 dB instead of "
        "28.7 dB, and "
    )
    assert share in line


def test_a_histogram_speaks_of_clipping_only_if_values_are_clipped() -> None:
    inside = ActivationHistogram(
        tensor="x", heights=(1.0, 0.5), low=0.0, high=2.0, range_low=0.0, range_high=2.0
    )
    beyond = dataclasses.replace(inside, range_high=1.5)
    blocks = layer_blocks(dataclasses.replace(ANALYSIS, histograms=(inside, beyond)), None)
    legends = [block.legend for block in blocks if isinstance(block, Figure)][-2:]
    assert legends == [
        (("mark0", "quantisation range"),),
        (("mark0", "quantisation range; values outside are clipped"),),
    ]


def test_the_table_has_the_noise_in_percent() -> None:
    (table,) = (block for block in layer_blocks(ANALYSIS, None) if isinstance(block, Table))
    assert table.head[3:5] == ("noise, input", "noise, weights")
    assert [row[3] for row in table.rows] == ["0.00032 %", "1.0 %", "0.0032 %"]
    in_float = dataclasses.replace(ANALYSIS, layers=(layer("float", None, None),))
    (table,) = (block for block in layer_blocks(in_float, None) if isinstance(block, Table))
    assert table.rows[0][3] == "-"


@pytest.mark.parametrize(
    ("decibels", "text"),
    [(0, "100 %"), (10, "10 %"), (15, "3.2 %"), (39, "0.013 %"), (70, "< 0.0001 %"), (None, "-")],
)
def test_noise_is_short(decibels: float | None, text: str) -> None:
    assert noise_text(decibels) == text
