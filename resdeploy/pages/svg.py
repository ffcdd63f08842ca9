"""Plots as inline SVG without scripts; the style sheet of the page sets fonts and colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

WIDTH = 480  # about the width of a phone, so that text is as large as on the rest of the page
LEFT, RIGHT = 8, 472
ROW = 42
AXIS = 34
PLOT_HEIGHT = 300
LETTER = 7  # approximate width of a letter
GUTTER = 58  # width of the tick labels of a vertical axis
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


@dataclass(frozen=True, slots=True)
class PlotLine:
    """A polyline of a scatter plot, with a label at its end."""

    points: tuple[tuple[float, float], ...]
    label: str = ""
    dashed: bool = False


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


def bands(rows: Sequence[tuple[str, Sequence[float], str]], *, axis: str, description: str) -> str:
    """Draw distributions as bands of percentiles, one per row, on a logarithmic axis.

    Args:
        rows: Label, 101 percentiles, and text on the right.
        axis: Label of the axis.
        description: Beginning of the text alternative, which also has the numbers of the rows.
    """
    ends = [percentiles[end] for _, percentiles, _ in rows for end in (1, 99)]
    x_scale = axis_scale(ends, LEFT, RIGHT, logarithmic=True)
    parts = []
    for index, (label, percentiles, value_text) in enumerate(rows):
        top = index * ROW
        parts += [_text(LEFT, top + 13, label), _text(RIGHT, top + 13, value_text, "end")]
        for low, high, css in BANDS:
            start, end = x_scale(percentiles[low]), x_scale(percentiles[high])
            parts.append(_rectangle(start, top + 19, max(end - start, 1.5), 14, css))
        middle = x_scale(percentiles[50])
        parts.append(_line(middle, top + 17, middle, top + 35, "median"))
    numbers = "; ".join(
        f"{label}: {value_text}, 50 % from {values[25]:.2f} to {values[75]:.2f}, "
        f"98 % from {values[1]:.2f} to {values[99]:.2f}"
        for label, values, value_text in rows
    )
    bottom = len(rows) * ROW + 2
    parts += _axis(x_scale, bottom, axis)
    return _svg(bottom + AXIS, f"{description} {numbers}", parts)


def intervals(
    rows: Sequence[tuple[str, float, float, float, str]],
    *,
    axis: str,
    description: str,
    marks: Sequence[tuple[float, str]] = (),
    logarithmic: bool = False,
) -> str:
    """Draw values with their intervals, one per row.

    Args:
        rows: Label, lower end, value, upper end, and text on the right.
        axis: Label of the axis.
        description: Beginning of the text alternative, which also has the numbers of the rows.
        marks: Positions and names of vertical lines, such as a limit.
        logarithmic: True for a logarithmic axis.
    """
    values = [value for row in rows for value in row[1:4]] + [mark for mark, _ in marks]
    x_scale = axis_scale(values, LEFT, RIGHT, logarithmic=logarithmic)
    bottom = len(rows) * ROW + 2
    parts = []
    for value, name in marks:
        x = x_scale(value)
        anchor = "end" if x > WIDTH / 2 else "start"
        parts.append(_line(x, 0, x, bottom, "mark"))
        parts.append(_text(x + (-4 if anchor == "end" else 4), bottom - 2, name, anchor, "dim"))
    for index, (label, low, value, high, value_text) in enumerate(rows):
        top = index * ROW
        parts += [_text(LEFT, top + 13, label), _text(RIGHT, top + 13, value_text, "end")]
        parts.append(_line(x_scale(low), top + 26, x_scale(high), top + 26, "whisker"))
        parts.append(f'<circle class="dot" cx="{x_scale(value):.1f}" cy="{top + 26}" r="5"/>')
    numbers = "; ".join(
        f"{label}: {value_text}, {low:.2f} to {high:.2f}"
        for label, low, _, high, value_text in rows
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
    y_max: float = math.inf,
) -> str:
    """Draw points, and lines below them, in a plane.

    Args:
        points: Points with their labels.
        lines: Polylines with their labels.
        x_label: Label of the horizontal axis.
        y_label: Label of the vertical axis.
        description: Text alternative.
        logarithmic: True if both axes are logarithmic.
        y_max: Largest possible value: the vertical axis does not go beyond it.
    """
    xs = [p.x for p in points] + [x for line in lines for x, _ in line.points]
    ys = [p.y for p in points] + [y for line in lines for _, y in line.points]
    x_scale = axis_scale(xs, GUTTER, RIGHT, logarithmic=logarithmic)
    y_scale = axis_scale(ys, PLOT_HEIGHT, 24, logarithmic=logarithmic)
    y_scale = replace(y_scale, high=min(y_scale.high, y_max))
    parts = [_text(LEFT, 12, y_label, "start", "dim"), *_axis(x_scale, PLOT_HEIGHT, x_label)]
    for value in y_scale.ticks():
        y = y_scale(value)
        parts.append(_line(GUTTER, y, RIGHT, y, "grid"))
        parts.append(_text(GUTTER - 6, y + 4, short_number(value), "end", "dim"))
    for line in lines:
        path = " ".join(f"{x_scale(x):.1f},{y_scale(y):.1f}" for x, y in line.points)
        parts.append(f'<polyline class="{"dashed" if line.dashed else "roof"}" points="{path}"/>')
        if line.label:
            x, y = line.points[-1]
            parts.append(_text(x_scale(x), y_scale(y) - 5, line.label, "end", "dim"))
    parts += _marks(points, x_scale, y_scale)
    return _svg(PLOT_HEIGHT + AXIS, description, parts)


def bars(rows: Sequence[tuple[str, float, str]], *, description: str) -> str:
    """Draw horizontal bars, one per row.

    Args:
        rows: Label, length from 0 to 1, and text on the right.
        description: Beginning of the text alternative, which also has the numbers of the rows.
    """
    numbers = "; ".join(f"{label}: {value_text}" for label, _, value_text in rows)
    parts = []
    for index, (label, share, value_text) in enumerate(rows):
        top = index * 32
        parts += [_text(LEFT, top + 13, label), _text(RIGHT, top + 13, value_text, "end")]
        parts.append(_rectangle(LEFT, top + 18, max(share * (RIGHT - LEFT), 1), 8, "value"))
    return _svg(len(rows) * 32 + 2, f"{description} {numbers}", parts)


def histogram(
    heights: Sequence[float], low: float, high: float, clip: tuple[float, float], description: str
) -> str:
    """Draw bars of heights 0 to 1 from `low` to `high`; those outside `clip` differ in colour."""
    x_scale = AxisScale(low, high, LEFT, RIGHT)
    width, full = (RIGHT - LEFT) / len(heights), 110
    parts = []
    for index, height in enumerate(heights):
        left, right = LEFT + index * width, LEFT + (index + 1) * width
        inside = left < x_scale(clip[1]) and right > x_scale(clip[0])
        css = "value" if inside else "clipped"
        parts.append(_rectangle(left, 6 + full * (1 - height), width * 0.9, full * height, css))
    parts += [_line(x_scale(value), 0, x_scale(value), 6 + full, "mark") for value in clip]
    return _svg(6 + full + AXIS - 12, description, [*parts, *_axis(x_scale, 6 + full, "")])


def short_number(value: float) -> str:
    """Format a number in short: 0.5, 20, 15k, 3G."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):g}{letter}"
    return f"{value:.4g}"


def _svg(height: float, description: str, parts: Sequence[str]) -> str:
    view, label = f"0 0 {WIDTH} {height:.0f}", escape(description)
    return f'<svg viewBox="{view}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _text(x: float, y: float, words: str, anchor: str = "start", css: str = "") -> str:
    css = f' class="{css}"' if css else ""
    return f'<text{css} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _marks(points: Sequence[PlotPoint], x_scale: AxisScale, y_scale: AxisScale) -> list[str]:
    """Return the marks of points, each with its label at the first free place beside or below."""
    parts, occupied = [], list[tuple[float, float, float]]()
    for point in points:
        x, y = x_scale(point.x), y_scale(point.y)
        parts.append(_mark(x, y, point.kind, highlighted=point.highlighted))
        width = LETTER * len(point.label)
        sides = [(x + 10, x + 10 + width, "start"), (x - 10 - width, x - 10, "end")]
        places = [
            (left, right, y + 4 + lines * 13, anchor)
            for lines in range(int(PLOT_HEIGHT - y) // 13)
            for left, right, anchor in (sides if x < 0.7 * WIDTH else sides[::-1])
            if left > GUTTER and right < WIDTH
        ]
        for left, right, label_y, anchor in places if point.label else ():
            if all(
                right < other_left or other_right < left or abs(label_y - other_y) >= 13
                for other_left, other_right, other_y in occupied
            ):
                occupied.append((left, right, label_y))
                label_x = left if anchor == "start" else right
                parts.append(_text(label_x, label_y, point.label, anchor))
                break
    return parts


def _mark(x: float, y: float, kind: int, *, highlighted: bool) -> str:
    css = f"point kind{kind}{' highlighted' if highlighted else ''}"
    if kind == 0:
        return f'<circle class="{css}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
    if kind == 1:
        return f'<rect class="{css}" x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10"/>'
    corners = f"{x:.1f},{y - 6:.1f} {x + 6:.1f},{y + 5:.1f} {x - 6:.1f},{y + 5:.1f}"
    return f'<polygon class="{css}" points="{corners}"/>'


def _axis(x_scale: AxisScale, y: float, label: str) -> list[str]:
    parts = [_line(x_scale.start, y, RIGHT, y, "axis")]
    for value in x_scale.ticks():
        x = x_scale(value)
        anchor = "start" if x < LEFT + 14 else "end" if x > RIGHT - 14 else "middle"
        parts.append(_line(x, y, x, y + 4, "axis"))
        parts.append(_text(x, y + 16, short_number(value), anchor, "dim"))
    if label:
        parts.append(_text((x_scale.start + RIGHT) / 2, y + 31, label, "middle", "dim"))
    return parts


def _rectangle(x: float, y: float, width: float, height: float, css: str) -> str:
    size = f'width="{width:.1f}" height="{height:.1f}"'
    return f'<rect class="{css}" x="{x:.1f}" y="{y:.1f}" {size}/>'


def _line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    return f'<line class="{css}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


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
