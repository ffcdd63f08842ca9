"""Report section of accuracy against latency, for every INT8 setting that an export tried."""

from __future__ import annotations

from collections.abc import Sequence

from resdeploy.bundle.calibration_record import TradeOffPoint
from resdeploy.bundle.manifest import Encoding
from resdeploy.pages.blocks import Block, Figure, Table
from resdeploy.pages.svg import PlotPoint, scatter
from resdeploy.tables import NONE, percentage, plural


def trade_off_blocks(points: Sequence[TradeOffPoint]) -> tuple[Block, ...]:
    """Return a plot and a table of the settings with a latency, then of those without one.

    The table of the calibrators has the settings without layers in float, so the tables here have
    only those of the bundle, FP32 and the mixtures.
    """
    timed = [point for point in points if point.p50_ms is not None]
    untimed = [point for point in points if point.p50_ms is None]
    return (
        *_blocks(
            timed,
            "Settings for CPUs. Latency of one image on all cores, at the export.",
            "latency in ms",
        ),
        *_blocks(
            untimed,
            "Settings for TensorRT. Their latency was not measured, so the cost is the share of "
            "the convolutions' multiply-accumulates (MACs) in float.",
            "% of the convolutions' MACs in float",
        ),
    )


def _blocks(points: Sequence[TradeOffPoint], caption: str, x_label: str) -> list[Block]:
    blocks: list[Block] = []
    if len({_cost(point) for point in points}) > 1 < len({point.agreement for point in points}):
        blocks.append(_plot(points, caption, x_label))
    if shown := [point for point in points if point.chosen or point.layers]:
        blocks.append(_table(shown, caption, len(points)))
    return blocks


def _plot(points: Sequence[TradeOffPoint], caption: str, x_label: str) -> Figure:
    kinds = {Encoding.FLOAT: 2, Encoding.CPU: 0, Encoding.TENSORRT: 1}
    marks = [
        PlotPoint(
            _cost(point),
            point.agreement,
            _setting(point) if point.chosen else "",
            kinds.get(point.encoding, 0),
            point.chosen,
        )
        for point in points
    ]
    described = "; ".join(
        f"{_setting(point)}: {point.agreement:.2f} % at {_cost(point):.3g}" for point in points
    )
    return Figure(
        svg=scatter(
            marks,
            x_label=x_label,
            y_label="agreement with FP32 in %",
            description=f"Agreement with FP32 in % against {x_label}. {described}",
            y_max=100.0,
        ),
        caption=f"Agreement with FP32 against {x_label}. {caption} The settings in the bundle have "
        "a dark border.",
    )


def _table(points: Sequence[TradeOffPoint], caption: str, tried: int) -> Table:
    ordered = sorted(points, key=lambda point: (point.encoding.value, -point.agreement))
    cost = "in float" if ordered[0].p50_ms is None else "latency"
    return Table(
        caption=f"{caption} {plural(tried, 'setting')} tried; those in the bundle are highlighted.",
        head=("setting", "encoding", "agreement", "drop", "images", cost),
        rows=tuple(
            (
                _setting(point),
                point.encoding.value,
                percentage(point.agreement, 2),
                NONE if point.drop is None else f"{point.drop:+.2f}",
                f"{point.images:,}",
                percentage(_cost(point)) if point.p50_ms is None else f"{point.p50_ms:.2f} ms",
            )
            for point in ordered
        ),
        highlighted=frozenset(index for index, point in enumerate(ordered) if point.chosen),
        html_only=True,
    )


def _cost(point: TradeOffPoint) -> float:
    return point.float_share_percent if point.p50_ms is None else point.p50_ms


def _setting(point: TradeOffPoint) -> str:
    layers = f", {plural(len(point.layers), 'layer')} in float" if point.layers else ""
    return f"{point.calibrator}{layers}"
