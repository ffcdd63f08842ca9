"""Tests of the plot of the noisiest layers and of the table."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ET

import pytest

from resdeploy.bundle.analysis import ActivationHistogram, Analysis, FloatMixture, LayerCost, Remedy
from resdeploy.bundle.manifest import Encoding, QualityOrigin
from resdeploy.pages.blocks import Figure, Table, Text
from resdeploy.report.layers import layer_blocks, noise_text, remedy_lines
from resdeploy.result_files.benchmark import LayerTimes

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
        "images. An action is recommended if more than 1 % of them, and at least two, have another "
        "class; the export warns above 2 %.",
        "On the golden images, the SQNR of its logits is 31.0 dB; below 30 dB, an action is "
        "recommended.",
    ]


def test_no_text_denies_the_action_of_a_warning() -> None:
    """A target may be undecided or missed although the figures need no action."""
    blocks = layer_blocks(ANALYSIS, None, warned=True)
    texts = [block.text for block in blocks if isinstance(block, Text)]
    assert texts[0].startswith("int8-cpu.onnx predicts the class of FP32 for 100.0 % of 32 ")
    assert texts[2:] == [
        "These figures need no action; the warning about this graph has its own remedy."
    ]


@pytest.mark.parametrize(
    ("agreement", "sqnr_db", "reason"),
    [
        (100 * 33 / 34, 29.6, "SQNR"),  # one image of 34 is 2.9 %
        (100 * 32 / 34, 30.0, "agreement"),
        (100 * 32 / 34, 29.6, "agreement and the SQNR"),
    ],
)
def test_an_action_has_the_limit_that_is_missed(
    agreement: float, sqnr_db: float, reason: str
) -> None:
    remedy = dataclasses.replace(
        REMEDY, images=34, agreement=agreement, sqnr_db=sqnr_db, options=("--calibrator auto",)
    )
    action = (
        "export another bundle with --calibrator auto, and see with resdeploy compare if it is "
        "better"
    )
    for warned in (False, True):
        line = remedy_lines(remedy, warned=warned)[2]
        assert line == f"Action, because of the {reason}: {action}."


@pytest.mark.parametrize(
    ("agreement", "sqnr_db", "options"),
    [(100.0, 29.0, ()), (100.0, 31.0, ()), (98.0, 29.0, ("--calibrator auto",))],
)
def test_enough_images_decide_without_the_sqnr(
    agreement: float, sqnr_db: float, options: tuple[str, ...]
) -> None:
    """The rule of `find_remedy`: from 100 judged images on, the agreement decides alone."""
    remedy = dataclasses.replace(
        REMEDY, images=100, agreement=agreement, sqnr_db=sqnr_db, options=options
    )
    _, sqnr, *action = remedy_lines(remedy)
    assert sqnr == (
        f"On the golden images, the SQNR of its logits is {sqnr_db} dB (good: at least 30 dB); the "
        "agreement decides."
    )
    assert [line.partition(":")[0] for line in action] == (
        ["Action, because of the agreement", "No option keeps layers of int8-cpu.onnx in float."]
        if options
        else []
    )


def test_layers_in_float_are_named_with_the_reason() -> None:
    layers = tuple(
        dataclasses.replace(layer, in_float=("cpu",) if layer.name == "bad" else ())
        for layer in ANALYSIS.layers
    )
    blocks = layer_blocks(dataclasses.replace(ANALYSIS, layers=layers), None)
    (table,) = (block for block in blocks if isinstance(block, Table))
    assert (
        "because in INT8 they lose the most accuracy for the time that they save" in table.caption
    )
    column = table.head.index("in float in")
    assert [row[column] for row in table.rows] == ["-", "int8-cpu", "-"]
    # The calibration's sentence names and counts all, with the additions, which have no row here.
    texts = [block.text for block in blocks if isinstance(block, Text)]
    assert not any("layers in float" in text for text in texts)


@pytest.mark.parametrize(
    ("origin", "images"),
    [
        (None, "32 golden images"),
        (QualityOrigin.HELD_OUT, "32 images not used by the calibration"),
        (QualityOrigin.CROSS_VALIDATION, "32 cross-validated images"),
    ],
)
def test_the_images_of_an_agreement_are_named(origin: QualityOrigin | None, images: str) -> None:
    first, _ = remedy_lines(dataclasses.replace(REMEDY, origin=origin))
    assert f"for 100.0 % of {images}. " in first


@pytest.mark.parametrize(
    ("sufficient", "sqnr_db", "end"),
    [
        (
            True, 31.2,
            "The search of the export measures on other images, and may choose other layers.",
        ),
        (False, 29.7, "It stays below 30 dB, so layers in float alone may not be enough."),
        (
            False, 31.2,
            "Only 96.9 % of them have FP32's class, less than 99 %, so layers in float alone may "
            "not be enough.",
        ),
    ],
)  # fmt: skip
def test_of_two_limits_only_the_missed_one_is_named(
    sufficient: bool, sqnr_db: float, end: str
) -> None:
    mixture = FloatMixture(
        layers=("a", "b"), candidates=21, float_share_percent=3.0, agreement=96.9,
        sqnr_db=sqnr_db,
        latency_ratio=None, latency_ratio_low=None, latency_ratio_high=None,
    )  # fmt: skip
    needed = dataclasses.replace(
        REMEDY, agreement=97.5, sqnr_db=28.7, options=("--min-agreement 99",), mixture=mixture,
        sufficient=sufficient,
    )  # fmt: skip
    line = remedy_lines(needed)[3]
    assert line == (
        "On the golden images, with 2 of 21 layers (additions included) in float (a, b), the SQNR "
        f"is {sqnr_db} dB instead of 28.7 dB. {end}"
    )


def test_a_histogram_speaks_of_clipping_only_if_values_are_clipped() -> None:
    inside = ActivationHistogram(
        tensor="x", heights=(1.0, 0.5), low=0.0, high=2.0, range_low=0.0, range_high=2.0
    )
    beyond = dataclasses.replace(inside, range_high=1.5)
    blocks = layer_blocks(dataclasses.replace(ANALYSIS, histograms=(inside, beyond)), None)
    figures = [block for block in blocks if isinstance(block, Figure)][-2:]
    assert [figure.legend for figure in figures] == [
        (("mark0", "quantisation range"),),
        (("mark0", "quantisation range; values outside are clipped"),),  # no whole bar is outside
    ]
    assert figures[1].caption == (
        "Output of x on the calibration images. It is one of the 2 activations whose quantisation "
        "causes the most noise of int8-cpu.onnx; the table has the inputs of the layers, and not "
        "their outputs. Values from 0.00 to 2.00, quantisation range from 0.00 to 1.50."
    )
    far = dataclasses.replace(inside, range_high=0.5)
    *_, figure = layer_blocks(dataclasses.replace(ANALYSIS, histograms=(far,)), None)
    assert isinstance(figure, Figure)
    assert figure.legend[1:] == (("clipped", "clipped values"),)


def test_times_of_layers_are_shares_of_their_sum() -> None:
    times = LayerTimes("int8-cpu.onnx", {"good": 0.3, "bad": 0.1})
    (table,) = (block for block in layer_blocks(ANALYSIS, times) if isinstance(block, Table))
    assert [row[-1] for row in table.rows] == ["75.0 %", "25.0 %", "-"]


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
