"""Accuracy against latency of every INT8 setting that an export tried."""

from __future__ import annotations

from collections.abc import Sequence

from resdeploy.bundle.calibration_record import TradeOffPoint
from resdeploy.bundle.manifest import Encoding
from resdeploy.pages.blocks import Block, Figure, Table
from resdeploy.pages.svg import PlotPoint, scatter
from resdeploy.tables import NONE, plural


def trade_off_blocks(points: Sequence[TradeOffPoint]) -> tuple[Block, ...]:
    """Return a plot and a table of the settings with a latency, then of those without one."""
    blocks: list[Block] = []
    for timed in (True, False):
        some = [point for point in points if (point.p50_ms is not None) is timed]
        if len({point.p50_ms if timed else point.float_share_percent for point in some}) > 1:
            blocks.append(_trade_off_plot(some, timed=timed))
        if some:
            blocks.append(_trade_off_table(some, timed=timed))
    return tuple(blocks)


def setting_name(point: TradeOffPoint) -> str:
    """Return the calibrator of a setting and its number of layers in float."""
    if not point.layers:
        return point.calibrator
    return f"{point.calibrator}, {plural(len(point.layers), 'layer')} in float"


def _trade_off_plot(points: Sequence[TradeOffPoint], *, timed: bool) -> Figure:
    kinds = {Encoding.FLOAT: 2, Encoding.CPU: 0, Encoding.TENSORRT: 1}
    marks = [
        PlotPoint(
            point.p50_ms if point.p50_ms is not None else point.float_share_percent,
            point.agreement,
            setting_name(point) if point.chosen else "",
            kinds.get(point.encoding, 0),
            point.chosen,
        )
        for point in points
    ]
    x_label = "latency in ms" if timed else "% of the convolutions' MACs in float"
    described = "; ".join(
        f"{setting_name(point)}: {mark.y:.2f} % at {mark.x:.3g}"
        for point, mark in zip(points, marks)
    )
    return Figure(
        svg=scatter(
            marks,
            [],
            x_label=x_label,
            y_label="agreement with FP32 in %",
            description=f"Agreement with FP32 in % against {x_label}. {described}",
            logarithmic=(False, False),
            y_max=100.0,
        ),
        caption=_caption(timed=timed) + " The settings in the bundle have a dark border.",
    )


def _trade_off_table(points: Sequence[TradeOffPoint], *, timed: bool) -> Table:
    ordered = sorted(points, key=lambda point: (point.encoding.value, -point.agreement))
    return Table(
        caption=_caption(timed=timed) + " The settings in the bundle are highlighted.",
        head=(
            "setting",
            "encoding",
            "agreement",
            "drop",
            "images",
            "latency" if timed else "in float",
        ),
        rows=tuple(
            (
                setting_name(point),
                point.encoding.value,
                f"{point.agreement:.2f} %",
                NONE if point.drop is None else f"{point.drop:+.2f}",
                f"{point.images:,}",
                f"{point.float_share_percent:.1f} %"
                if point.p50_ms is None
                else f"{point.p50_ms:.2f} ms",
            )
            for point in ordered
        ),
        highlighted=frozenset(index for index, point in enumerate(ordered) if point.chosen),
        html_only=True,
    )


def _caption(*, timed: bool) -> str:
    if timed:
        return "Settings tried for CPUs; latency of one image on all cores, at the export."
    return (
        "Settings tried for TensorRT; their latency was not measured, so the cost is the share of "
        "the convolutions' multiply-accumulates (MACs) in float."
    )
