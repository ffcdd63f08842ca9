"""Plots as inline SVG: no script, no font, no colour of their own; the page's style sheet has both.

A plot is `WIDTH` units wide, at which its text is as large as the page's on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

WIDTH = 480
LEFT, RIGHT = 8, 472
ROW = 42
AXIS = 34
PLOT_HEIGHT = 300
GUTTER = 58  # for the numbers of a vertical axis
BANDS = ((1, 99, "outer"), (5, 95, "middle"), (25, 75, "inner"))
"""Percentiles that a band spans."""


@dataclass(frozen=True, slots=True)
class AxisScale:
    """From values to units of the drawing."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Where `value` lies; what is outside lies on the nearer end."""
        low, high = self.low, self.high
        value = min(max(value, low), high)
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values, about five."""
        return _decades(self) if self.logarithmic else _round(self)


def scale(
    values: Sequence[float], start: float, end: float, *, logarithmic: bool = False
) -> AxisScale:
    """One on which all of `values` can be seen, with some room around."""
    low, high = min(values), max(values)
    if logarithmic:
        room = max((high / low) ** 0.06, 1.02)
        return AxisScale(low / room, high * room, start, end, logarithmic=True)
    room = 0.06 * (high - low) or max(abs(high), 1.0) / 20
    return AxisScale(low - room, high + room, start, end)


def bands(rows: Sequence[tuple[str, Sequence[float], str]], *, axis: str, description: str) -> str:
    """How values spread, a row each, on one logarithmic axis.

    Args:
        rows: A label, 101 percentiles, and what to write on the right.
        axis: What the values are.
        description: For who cannot see it.
    """
    ends = [percentiles[end] for _, percentiles, _ in rows for end in (1, 99)]
    across = scale(ends, LEFT, RIGHT, logarithmic=True)
    parts = []
    for index, (label, percentiles, figure) in enumerate(rows):
        top = index * ROW
        parts += [text(LEFT, top + 13, label), text(RIGHT, top + 13, figure, "end")]
        for low, high, name in BANDS:
            start, end = across(percentiles[low]), across(percentiles[high])
            parts.append(_rectangle(start, top + 19, max(end - start, 1.5), 14, name))
        middle = across(percentiles[50])
        parts.append(_line(middle, top + 17, middle, top + 35, "median"))
    bottom = len(rows) * ROW + 2
    return document(bottom + AXIS, description, [*parts, *_axis(across, bottom, axis)])


def intervals(
    rows: Sequence[tuple[str, float, float, float, str]],
    *,
    axis: str,
    description: str,
    marks: Sequence[tuple[float, str]] = (),
    logarithmic: bool = False,
) -> str:
    """A value with its interval, a row each.

    Args:
        rows: A label, lower end, value, upper end, and what to write on the right.
        axis: What the values are.
        description: For who cannot see it.
        marks: Vertical lines with a name, such as a limit.
        logarithmic: Whether the axis is.
    """
    values = [value for row in rows for value in row[1:4]] + [mark for mark, _ in marks]
    across = scale(values, LEFT, RIGHT, logarithmic=logarithmic)
    bottom = len(rows) * ROW + 2
    parts = []
    for value, name in marks:
        x = across(value)
        anchor = "end" if x > WIDTH / 2 else "start"
        parts.append(_line(x, 0, x, bottom, "mark"))
        parts.append(text(x + (-4 if anchor == "end" else 4), bottom - 2, name, anchor, "dim"))
    for index, (label, low, value, high, figure) in enumerate(rows):
        top = index * ROW
        parts += [text(LEFT, top + 13, label), text(RIGHT, top + 13, figure, "end")]
        parts.append(_line(across(low), top + 26, across(high), top + 26, "whisker"))
        parts.append(f'<circle class="dot" cx="{across(value):.1f}" cy="{top + 26}" r="5"/>')
    return document(bottom + AXIS, description, [*parts, *_axis(across, bottom, axis)])


@dataclass(frozen=True, slots=True)
class PlotPoint:
    """In a plane, with a mark and a word beside it."""

    x: float
    y: float
    label: str
    kind: int = 0
    """Shape and colour: 0 circle, 1 square, 2 triangle."""
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class PlotLine:
    """Straight pieces through a plane."""

    points: tuple[tuple[float, float], ...]
    label: str = ""
    dashed: bool = False


def plane(
    points: Sequence[PlotPoint],
    lines: Sequence[PlotLine],
    *,
    across: str,
    up: str,
    description: str,
    logarithmic: tuple[bool, bool],
    most: float = math.inf,
) -> str:
    """Points and lines over two axes, which are named `across` and `up`; none is above `most`."""
    xs = [p.x for p in points] + [x for line in lines for x, _ in line.points]
    ys = [p.y for p in points] + [y for line in lines for _, y in line.points]
    horizontal = scale(xs, GUTTER, RIGHT, logarithmic=logarithmic[0])
    vertical = scale(ys, PLOT_HEIGHT, 24, logarithmic=logarithmic[1])
    vertical = replace(vertical, high=min(vertical.high, most))
    parts = [text(LEFT, 12, up, "start", "dim"), *_axis(horizontal, PLOT_HEIGHT, across)]
    for value in vertical.ticks():
        y = vertical(value)
        parts.append(_line(GUTTER, y, RIGHT, y, "grid"))
        parts.append(text(GUTTER - 6, y + 4, number(value), "end", "dim"))
    for line in lines:
        path = " ".join(f"{horizontal(x):.1f},{vertical(y):.1f}" for x, y in line.points)
        parts.append(f'<polyline class="{"dashed" if line.dashed else "roof"}" points="{path}"/>')
        if line.label:
            x, y = line.points[-1]
            parts.append(text(horizontal(x), vertical(y) - 5, line.label, "end", "dim"))
    parts += _marks(points, horizontal, vertical)
    return document(PLOT_HEIGHT + AXIS, description, parts)


def _marks(points: Sequence[PlotPoint], horizontal: AxisScale, vertical: AxisScale) -> list[str]:
    parts, taken = [], list[tuple[float, float]]()
    for point in points:
        x, y = horizontal(point.x), vertical(point.y)
        parts.append(_mark(x, y, point.kind, chosen=point.chosen))
        beside = "end" if x > 0.7 * WIDTH else "start"
        # A word that would cover another one goes below it.
        word = y + 4
        while any(abs(word - other) < 13 and abs(x - where) < 110 for where, other in taken):
            word += 13
        if point.label and word < PLOT_HEIGHT:
            taken.append((x, word))
            parts.append(text(x + (-10 if beside == "end" else 10), word, point.label, beside))
    return parts


def _mark(x: float, y: float, kind: int, *, chosen: bool) -> str:
    name = f"point kind{kind}{' chosen' if chosen else ''}"
    if kind == 0:
        return f'<circle class="{name}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
    if kind == 1:
        return f'<rect class="{name}" x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10"/>'
    corners = f"{x:.1f},{y - 6:.1f} {x + 6:.1f},{y + 5:.1f} {x - 6:.1f},{y + 5:.1f}"
    return f'<polygon class="{name}" points="{corners}"/>'


def bars(rows: Sequence[tuple[str, float, str]], *, description: str) -> str:
    """A share, 0 to 1, in each row, with a label and a figure above it."""
    parts = []
    for index, (label, share, figure) in enumerate(rows):
        top = index * 32
        parts += [text(LEFT, top + 13, label), text(RIGHT, top + 13, figure, "end")]
        parts.append(_rectangle(LEFT, top + 18, max(share * (RIGHT - LEFT), 1), 8, "value"))
    return document(len(rows) * 32 + 2, description, parts)


def histogram(
    heights: Sequence[float], low: float, high: float, clip: tuple[float, float], description: str
) -> str:
    """Bars of heights 0 to 1 from `low` to `high`; those outside of `clip` stand out."""
    across = AxisScale(low, high, LEFT, RIGHT)
    width, tall = (RIGHT - LEFT) / len(heights), 110
    parts = []
    for index, height in enumerate(heights):
        left, right = LEFT + index * width, LEFT + (index + 1) * width
        inside = left < across(clip[1]) and right > across(clip[0])
        name = "value" if inside else "clipped"
        parts.append(_rectangle(left, 6 + tall * (1 - height), width * 0.9, tall * height, name))
    parts += [_line(across(value), 0, across(value), 6 + tall, "mark") for value in clip]
    return document(6 + tall + AXIS - 12, description, [*parts, *_axis(across, 6 + tall, "")])


def document(height: float, description: str, parts: Sequence[str]) -> str:
    """The drawing with its text alternative."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(description)}">'
        + "".join(parts)
        + "</svg>"
    )


def text(x: float, y: float, words: str, anchor: str = "start", name: str = "") -> str:
    """Escaped."""
    kind = f' class="{name}"' if name else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def number(value: float) -> str:
    """Short: 0.5, 20, 1.5k, 3G."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):g}{letter}"
    return f"{value:.4g}"


def _axis(across: AxisScale, y: float, name: str) -> list[str]:
    parts = [_line(across.start, y, RIGHT, y, "axis")]
    for value in across.ticks():
        x = across(value)
        anchor = "start" if x < LEFT + 14 else "end" if x > RIGHT - 14 else "middle"
        parts += [_line(x, y, x, y + 4, "axis"), text(x, y + 16, number(value), anchor, "dim")]
    if name:
        parts.append(text((across.start + RIGHT) / 2, y + 31, name, "middle", "dim"))
    return parts


def _rectangle(x: float, y: float, width: float, height: float, name: str) -> str:
    return (
        f'<rect class="{name}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, name: str) -> str:
    return f'<line class="{name}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _decades(scale: AxisScale) -> list[float]:
    powers = range(math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8)):
        found = [
            step * 10.0**power
            for power in powers
            for step in steps
            if scale.low <= step * 10.0**power <= scale.high
        ]
        if len(found) >= 4:
            return found
    return found if len(found) > 1 else _round(scale)


def _round(scale: AxisScale) -> list[float]:
    span = (scale.high - scale.low) / 5
    power = 10.0 ** math.floor(math.log10(span))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= span)
    first = math.ceil(scale.low / step)
    last = math.floor(scale.high / step)
    return [round(index * step, 12) for index in range(first, last + 1)]
