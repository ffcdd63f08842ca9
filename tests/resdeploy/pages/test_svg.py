"""Tests of the positions of marks, ticks and text in a plot."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resdeploy.pages.svg import (
    GUTTER,
    LEFT,
    LETTER,
    LONGEST_LABEL,
    NARROWEST,
    PLOT_HEIGHT,
    RIGHT,
    AxisScale,
    PlotLine,
    PlotPoint,
    axis_scale,
    bands,
    bars,
    histogram,
    intervals,
    scatter,
    short_number,
)

positive = st.floats(1e-6, 1e12)


@given(st.lists(positive, min_size=1, max_size=9), st.booleans())
def test_every_value_lies_on_its_axis(values: list[float], logarithmic: bool) -> None:
    x_scale = axis_scale(values, LEFT, RIGHT, logarithmic=logarithmic)
    for value in values:
        assert LEFT <= x_scale(value) <= RIGHT
    ordered = sorted(values)
    assert [x_scale(value) for value in ordered] == sorted(x_scale(value) for value in ordered)
    ticks = x_scale.ticks()
    assert 1 <= len(ticks) <= 24
    assert all(x_scale.low <= tick <= x_scale.high * (1 + 1e-9) for tick in ticks)


def test_ticks_are_round() -> None:
    assert AxisScale(0, 10, 0, 100).ticks() == [0, 2, 4, 6, 8, 10]
    assert AxisScale(1, 1000, 0, 100, logarithmic=True).ticks() == [1, 10, 100, 1000]
    assert AxisScale(15, 90, 0, 100, logarithmic=True).ticks() == [15, 20, 30, 40, 50, 60, 70, 80]


@pytest.mark.parametrize(
    ("value", "short"),
    [
        (0.25, "0.25"),
        (1500, "1500"),
        (15_000, "15k"),
        (3e9, "3G"),
        (2.5e12, "2.5T"),
        (-2, "\N{MINUS SIGN}2"),
    ],
)
def test_numbers_are_short(value: float, short: str) -> None:
    assert short_number(value) == short


def test_a_plot_is_well_formed_inside_its_frame_and_described() -> None:
    percentiles = [1 + index / 100 for index in range(101)]
    plots = [
        bands([("<a & b>", percentiles)], axis="ms", description="what & where"),
        intervals([("a", -1, 0, 2)], axis="x", description="d", marks=(1, 1)),
        intervals([("same", 1, 1, 1)], axis="x", description="d", logarithmic=True),
        bars([("a", 0.5, "0.5 %")], axis="%", description="d"),
        bars([("a", 1e-18, ""), ("b", 0.0, "")], axis="%", description="d"),
        histogram([0, 0.5, 1], -1, 2, (0, 1.5), axis="x", y_label="y", description="d"),
        scatter(
            [
                PlotPoint(1, 10, "a"), PlotPoint(1.1, 10, "b", 1),
                PlotPoint(2, 90, "c", 2, highlighted=True),
            ],
            [
                PlotLine(((1, 10), (2, 100)), "line0"),
                PlotLine(((2, -math.inf), (2, math.inf)), "mark0"),
            ],
            x_label="x", y_label="y", description="d", y_max=80,
        ),
    ]  # fmt: skip
    for plot in plots:
        drawing = ET.fromstring(plot)
        assert drawing.attrib["role"] == "img"
        assert drawing.attrib["aria-label"]
        for part in drawing:
            for name in ("x", "x1", "x2", "cx", "width"):
                assert part.get(name, "0%").endswith("%")
                assert 0 <= float(part.get(name, "0%")[:-1]) <= 100
            for name in ("y", "y1", "y2", "cy"):
                assert 0 <= float(part.get(name, 0)) <= float(drawing.attrib["height"])
        for line in drawing.iter("polyline"):
            for point in line.attrib["points"].split():
                x, y = map(float, point.split(","))
                assert GUTTER <= x <= RIGHT
                assert 0 <= y <= PLOT_HEIGHT


def test_a_long_label_keeps_its_end() -> None:
    name = "resnet.encoder.stages.3.layers.1.layer.1.convolution"
    (label,) = re.findall(
        ">([^<]*convolution)<", bars([(name, 1.0, "")], axis="%", description="d")
    )
    assert len(label) == LONGEST_LABEL
    assert name.endswith(label[1:])


@pytest.mark.parametrize("width", [NARROWEST, 900])
def test_a_label_covers_no_mark(width: int) -> None:
    points = [PlotPoint(0.48, 98, "1"), PlotPoint(0.658, 99.5, "2"), PlotPoint(0.664, 99.5, "3"),
              PlotPoint(0.9, 98.6, "4")]  # fmt: skip
    drawing = ET.fromstring(scatter(points, x_label="x", y_label="y", description="d"))
    labels = {part.text: part.attrib for part in drawing if part.tag == "text" and part.text}
    marks = [part.attrib for part in drawing if part.tag == "circle"]
    for label in (labels[point.label] for point in points):
        x = float(label["x"][:-1]) * width / 100 + float(label["dx"])
        middle = x + LETTER / 2 * (1 if label["text-anchor"] == "start" else -1)
        for mark in marks:
            beside = abs(middle - float(mark["cx"][:-1]) * width / 100) >= LETTER / 2 + 5
            assert beside or abs(float(label["y"]) - 4 - float(mark["cy"])) >= 9


def test_small_numbers_have_no_exponent() -> None:
    assert [short_number(value) for value in (5e-5, 1.5e-4, 0.25, 2e4, 3e9)] == [
        "0.00005", "0.00015", "0.25", "20k", "3G",
    ]  # fmt: skip


def test_an_axis_ends_at_the_largest_possible_value() -> None:
    points = [PlotPoint(1, 100, "a"), PlotPoint(2, 100, "b")]
    drawing = scatter(points, x_label="x", y_label="%", description="d", y_max=100.0)
    ticks = [
        float(part.text or "0")
        for part in ET.fromstring(drawing)
        if part.tag == "text" and (part.text or "").replace(".", "").isdigit()
    ]
    assert max(ticks) == 100


def test_the_length_of_a_bar_is_its_value() -> None:
    drawing = ET.fromstring(bars([("a", 4, ""), ("b", 1, "")], axis="%", description="d"))
    widths = [float(part.attrib["width"][:-1]) for part in drawing if part.tag == "rect"]
    assert widths[0] == pytest.approx(4 * widths[1], rel=0.01)  # coordinates have one decimal
    assert [part.text for part in drawing if part.tag == "text"][-1] == "%"


def test_clipped_bars_have_another_colour() -> None:
    drawing = histogram([1.0] * 4, 0.0, 4.0, (1.0, 3.0), axis="x", y_label="y", description="d")
    assert [part.get("class") for part in ET.fromstring(drawing) if part.tag == "rect"] == [
        "clipped", "value", "value", "clipped",
    ]  # fmt: skip
