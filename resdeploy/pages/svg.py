"""Plots as inline SVG without scripts; the style sheet of the page sets fonts and colours.

Horizontal positions are percentages of the width, so a plot fills a page of any width, and its text
keeps its size. Text stands beside the data, never in it: rows have their labels above, axes below,
and a legend, which is a part of the page, names the lines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import product

LEFT, RIGHT = 2.0, 98.0  # percent of the width
GUTTER = 15.0  # width of the tick labels of a vertical axis, in percent
ROW = 50
BAR_ROW = 36
AXIS = 38
PLOT_HEIGHT = 240
NARROWEST = 300  # pixels: the width on a small phone, on which no label may cover another
# Widths in pixels from which on the style sheet shows the lines of a class.
SHOWN_FROM = {NARROWEST: "", 600: " wide", 850: " wider"}
WIDTHS = (NARROWEST, 400, 500, 600, 750, 900)  # of plots on phones and on wide pages, in pixels
LETTER = 7  # approximate width of a letter, in pixels
LONGEST_LABEL = 38  # letters that fit beside each other on the narrowest page
BANDS = ((1, 99, "outer"), (5, 95, "middle"), (25, 75, "inner"))  # percentiles, CSS class


@dataclass(frozen=True, slots=True)
class AxisScale:
    """A linear or logarithmic map from values to coordinates of the drawing."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Return the coordinate of `value`, or the nearer end if it lies outside the axis."""
        low, high = self.low, self.high
        value = min(max(value, low), high)
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return about five round values."""
        return _decades(self) if self.logarithmic else _round(self)


@dataclass(frozen=True, slots=True)
class PlotPoint:
    """A point of a scatter plot, with a label beside it."""

    x: float
    y: float
    label: str
    kind: int = 0
    """Shape and colour: 0 circle, 1 square, 2 triangle."""
    highlighted: bool = False
    style: str = ""
    """CSS class of a line, whose colour the point has instead of that of its kind."""


@dataclass(frozen=True, slots=True)
class PlotLine:
    """A polyline of a scatter plot; infinite coordinates reach to the end of the axis."""

    points: tuple[tuple[float, float], ...]
    style: str
    """CSS class, which the legend repeats: `line0` to `line4`, or `mark0` and `mark1`."""


def axis_scale(
    values: Sequence[float], start: float, end: float, *, logarithmic: bool = False
) -> AxisScale:
    """Return a scale that shows all of `values`, with a margin."""
    low, high = min(values), max(values)
    if logarithmic:
        room = max((high / low) ** 0.06, 1.02)
        return AxisScale(low / room, high * room, start, end, logarithmic=True)
    room = 0.06 * (high - low) or max(abs(high), 1.0) / 20
    return AxisScale(low - room, high + room, start, end)


def bands(rows: Sequence[tuple[str, Sequence[float]]], *, axis: str, description: str) -> str:
    """Draw distributions as bands of percentiles, one per row, on a logarithmic axis.

    Args:
        rows: Label and 101 percentiles.
        axis: Label of the axis.
        description: Beginning of the text alternative, which also has the numbers of the rows.
    """
    ends = [percentiles[end] for _, percentiles in rows for end in (1, 99)]
    x_scale = axis_scale(ends, LEFT, RIGHT, logarithmic=True)
    parts = []
    for index, (label, percentiles) in enumerate(rows):
        top = index * ROW
        parts.append(_text(LEFT, top + 13, _shortened(label)))
        for low, high, css in BANDS:
            start, end = x_scale(percentiles[low]), x_scale(percentiles[high])
            parts.append(_rectangle(start, top + 19, max(end - start, 0.3), 14, css))
        middle = x_scale(percentiles[50])
        parts.append(_line(middle, top + 17, middle, top + 35, "median"))
    numbers = "; ".join(
        f"{label}: median {values[50]:.2f}, 50 % from {values[25]:.2f} to {values[75]:.2f}, "
        f"98 % from {values[1]:.2f} to {values[99]:.2f}"
        for label, values in rows
    )
    bottom = len(rows) * ROW + 2
    parts += _axis(x_scale, bottom, axis)
    return _svg(bottom + AXIS, f"{description} {numbers}", parts)


def intervals(
    rows: Sequence[tuple[str, float, float, float]],
    *,
    axis: str,
    description: str,
    marks: Sequence[float] = (),
    logarithmic: bool = False,
) -> str:
    """Draw values with their intervals, one per row.

    Args:
        rows: Label, lower end, value and upper end.
        axis: Label of the axis.
        description: Beginning of the text alternative, which also has the numbers of the rows.
        marks: Positions of vertical lines, of the styles `mark0` and `mark1`.
        logarithmic: True for a logarithmic axis.
    """
    values = [value for row in rows for value in row[1:4]] + list(marks)
    x_scale = axis_scale(values, LEFT, RIGHT, logarithmic=logarithmic)
    bottom = len(rows) * ROW + 2
    parts = []
    for index, (label, low, value, high) in enumerate(rows):
        top, y = index * ROW, index * ROW + 26
        parts.append(_text(LEFT, top + 13, _shortened(label)))
        pixels = (len(_shortened(label)) + 1) * LETTER  # of the label
        for number, mark in enumerate(marks):
            x = x_scale(mark)
            parts.append(_line(x, y - 9, x, top + ROW - 1, f"mark{number}"))  # below the label
            beside = (css for width, css in SHOWN_FROM.items() if x > LEFT + pixels * 100 / width)
            if (css := next(beside, None)) is not None:
                parts.append(_line(x, top, x, y - 9, f"mark{number}{css}"))
        parts.append(_line(x_scale(low), y, x_scale(high), y, "whisker"))
        parts.append(_mark(x_scale(value), y, "dot", 0))
    numbers = "; ".join(
        f"{label}: {value:.2f}, {low:.2f} to {high:.2f}" for label, low, value, high in rows
    )
    parts += _axis(x_scale, bottom, axis)
    return _svg(bottom + AXIS, f"{description} {numbers}", parts)


def scatter(
    points: Sequence[PlotPoint],
    lines: Sequence[PlotLine] = (),
    *,
    x_label: str,
    y_label: str,
    description: str,
    logarithmic: bool = False,
    y_logarithmic: bool = False,
    y_max: float = math.inf,
    whole_x: bool = False,
) -> str:
    """Draw points, and lines below them, in a plane.

    Args:
        points: Points with their labels.
        lines: Polylines.
        x_label: Label of the horizontal axis.
        y_label: Label of the vertical axis.
        description: Text alternative.
        logarithmic: True if both axes are logarithmic.
        y_logarithmic: True if the vertical axis is logarithmic.
        y_max: Largest value of the vertical axis; higher ones are drawn at its end.
        whole_x: True if only whole numbers have a tick on the horizontal axis.
    """
    ends = [*((p.x, p.y) for p in points), *(end for line in lines for end in line.points)]
    xs, ys = ([value for value in values if math.isfinite(value)] for values in zip(*ends))
    x_scale = axis_scale(xs, GUTTER, RIGHT, logarithmic=logarithmic)
    if whole_x:  # no tick before the first number
        x_scale = replace(x_scale, low=max(x_scale.low, min(xs) - 0.5))
    heights, y_logarithmic = [min(y, y_max) for y in ys], logarithmic or y_logarithmic
    y_scale = axis_scale(heights, PLOT_HEIGHT, 24, logarithmic=y_logarithmic)
    y_scale = replace(y_scale, high=min(y_scale.high, y_max))
    parts = [_text(GUTTER, 12, y_label, "start", "dim")]
    parts += _axis(x_scale, PLOT_HEIGHT, x_label, whole=whole_x)
    free = math.inf
    for value in y_scale.ticks():
        y = y_scale(value)
        parts.append(_line(GUTTER, y, RIGHT, y, "grid"))
        if y + 13 < free:
            parts.append(_text(GUTTER, y + 4, short_number(value), "end", "dim", -6))
            free = y
    # Points of a polyline cannot be percentages, but a drawing of its own can be stretched.
    box = f'viewBox="0 0 100 {PLOT_HEIGHT}" height="{PLOT_HEIGHT}" preserveAspectRatio="none"'
    parts.append(f'<svg width="100%" {box}>')
    for line in lines:
        path = " ".join(f"{x_scale(x):.2f},{y_scale(y):.1f}" for x, y in line.points)
        parts.append(f'<polyline class="{line.style}" points="{path}"/>')
    parts.append("</svg>")
    parts += _marks(points, x_scale, y_scale)
    return _svg(PLOT_HEIGHT + AXIS, description, parts)


def bars(rows: Sequence[tuple[str, float, str]], *, axis: str, description: str) -> str:
    """Draw horizontal bars, one per row, on a linear axis from 0.

    Args:
        rows: Label, positive value, and text on the right, which a table may make superfluous.
        axis: Label of the axis.
        description: Beginning of the text alternative, which also has the numbers of the rows.
    """
    x_scale = AxisScale(0, max(value for _, value, _ in rows), LEFT, RIGHT)
    numbers = "; ".join(f"{label}: {words or f'{value:.2g}'}" for label, value, words in rows)
    parts = []
    for index, (label, value, value_text) in enumerate(rows):
        top = index * BAR_ROW
        parts.append(_text(LEFT, top + 13, _shortened(label)))
        if value_text:
            parts.append(_text(RIGHT, top + 13, value_text, "end"))
        parts.append(_rectangle(LEFT, top + 18, max(x_scale(value) - LEFT, 0.2), 8, "value"))
    bottom = len(rows) * BAR_ROW + 2
    parts += _axis(x_scale, bottom, axis)
    return _svg(bottom + AXIS, f"{description} {numbers}", parts)


def histogram(
    heights: Sequence[float],
    low: float,
    high: float,
    clip: tuple[float, float],
    *,
    axis: str,
    y_label: str,
    description: str,
) -> str:
    """Draw bars of heights 0 to 1 from `low` to `high`; those outside `clip` differ in colour."""
    x_scale = AxisScale(low, high, LEFT, RIGHT)
    width, full, top = (RIGHT - LEFT) / len(heights), 110, 22
    parts = [_text(LEFT, 12, y_label, "start", "dim")]
    for index, height in enumerate(heights):
        left, right = LEFT + index * width, LEFT + (index + 1) * width
        inside = left < x_scale(clip[1]) and right > x_scale(clip[0])
        css = "value" if inside else "clipped"
        parts.append(_rectangle(left, top + full * (1 - height), width * 0.9, full * height, css))
    parts += [_line(x_scale(value), top, x_scale(value), top + full, "mark0") for value in clip]
    parts += _axis(x_scale, top + full, axis)
    return _svg(top + full + AXIS, description, parts)


def short_number(value: float) -> str:
    """Format a number in short: 0.00005, 0.5, 20, 15k, 3G; with a true minus sign."""
    if value < 0:
        return f"\N{MINUS SIGN}{short_number(-value)}"
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):g}{letter}"
    if 1e-8 < abs(value) < 1e-4:
        return f"{value:.12f}".rstrip("0")
    return f"{value:.4g}"


def _svg(height: float, description: str, parts: Sequence[str]) -> str:
    label = escape(description)
    return f'<svg height="{height:.0f}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _text(
    x: float, y: float, words: str, anchor: str = "start", css: str = "", shift: int = 0
) -> str:
    """Return text at `x` percent of the width, moved by `shift` pixels."""
    css = f' class="{css}"' if css else ""
    place = f'x="{x:.2f}%" y="{y:.1f}" dx="{shift}" text-anchor="{anchor}"'
    return f"<text{css} {place}>{escape(words)}</text>"


def _shortened(label: str) -> str:
    """Return the end of a label that does not fit on a phone: it differs most between labels."""
    return label if len(label) <= LONGEST_LABEL else f"…{label[1 - LONGEST_LABEL :]}"


def _marks(points: Sequence[PlotPoint], x_scale: AxisScale, y_scale: AxisScale) -> list[str]:
    """Return the marks of points, each with its label at the first free place beside or below.

    A label covers a mark only if no place is free of marks, and never another label.
    """
    places = [(x_scale(point.x), y_scale(point.y)) for point in points]
    covered = [_Box(x, -6, 6, y + 4) for x, y in places]
    marks, labels, occupied = list[str](), list[str](), list[_Box]()
    for point, (x, y) in zip(points, places):
        colour = point.style or f"kind{point.kind}"
        css = f"point {colour}{' highlighted' if point.highlighted else ''}"
        marks.append(_mark(x, y, css, point.kind))
        width = LETTER * len(point.label)
        heights = [h for h in (y + 4, y + 17, y - 9, y + 30) if h <= PLOT_HEIGHT]
        sides = (10, -10 - width)
        boxes = [_Box(x, left, left + width, h) for h, left in product(heights, sides)]
        free = (
            box
            for others in ([*occupied, *covered], occupied)
            for box in boxes
            if box.is_inside(x_scale.start) and not any(map(box.touches, others))
        )
        if point.label and (found := next(free, None)):
            occupied.append(found)
            anchor, shift = ("start", 10) if found.left > 0 else ("end", -10)
            labels.append(_text(x, found.height, point.label, anchor, shift=shift))
    return marks + labels  # a label is never below a mark


@dataclass(frozen=True, slots=True)
class _Box:
    """A place of 13 pixels in height at `x` percent of the width, from `left` to `right` pixels."""

    x: float
    left: float
    right: float
    height: float
    """Base line of a text."""

    def is_inside(self, start: float) -> bool:
        """Return whether a place begins after `start` percent and ends on the narrowest page."""
        pixel = 100 / NARROWEST
        return self.x + self.left * pixel >= start and self.x + self.right * pixel <= 100

    def touches(self, other: _Box) -> bool:
        """Return whether two places overlap on a page of any width."""
        if abs(self.height - other.height) >= 13:
            return False
        apart = self.x - other.x
        return any(
            apart * width / 100 + self.left <= other.right
            and apart * width / 100 + self.right >= other.left
            for width in WIDTHS
        )


def _mark(x: float, y: float, css: str, kind: int) -> str:
    place = f'class="{css}" x="{x:.2f}%" y="{y:.1f}"'
    if kind == 0:
        return f'<circle class="{css}" cx="{x:.2f}%" cy="{y:.1f}" r="5"/>'
    corners = "-5,-5 5,-5 5,5 -5,5" if kind == 1 else "0,-6 6,5 -6,5"
    return f'<svg {place} overflow="visible"><polygon points="{corners}"/></svg>'


def _axis(x_scale: AxisScale, y: float, label: str, *, whole: bool = False) -> list[str]:
    """Return a line with ticks; numbers that would touch on the narrowest page are left out."""
    parts, free = [_line(x_scale.start, y, RIGHT, y, "axis")], -math.inf
    for value in x_scale.ticks():
        if whole and value != round(value):
            continue
        x, width = x_scale(value), (len(short_number(value)) + 1) * LETTER * 100 / NARROWEST
        anchor = "start" if x < LEFT + 4 else "end" if x > RIGHT - 4 else "middle"
        start = x - width * {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor]
        parts.append(_line(x, y, x, y + 4, "axis"))
        if start >= free:
            parts.append(_text(x, y + 17, short_number(value), anchor, "dim"))
            free = start + width
    parts.append(_text((x_scale.start + RIGHT) / 2, y + 33, label, "middle", "dim"))
    return parts


def _rectangle(x: float, y: float, width: float, height: float, css: str) -> str:
    size = f'width="{width:.2f}%" height="{height:.1f}"'
    return f'<rect class="{css}" x="{x:.2f}%" y="{y:.1f}" {size}/>'


def _line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    return f'<line class="{css}" x1="{x1:.2f}%" y1="{y1:.1f}" x2="{x2:.2f}%" y2="{y2:.1f}"/>'


def _decades(axis: AxisScale) -> list[float]:
    powers = range(math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8)):
        values = [step * 10.0**power for power in powers for step in steps]
        found = [value for value in values if axis.low <= value <= axis.high]
        if len(found) >= 4:
            return found
    return found if len(found) > 1 else _round(axis)


def _round(axis: AxisScale) -> list[float]:
    span = (axis.high - axis.low) / 5
    power = 10.0 ** math.floor(math.log10(span))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= span)
    indices = range(math.ceil(axis.low / step), math.floor(axis.high / step) + 1)
    return [round(index * step, 12) for index in indices]
