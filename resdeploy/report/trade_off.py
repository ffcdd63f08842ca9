"""Accuracy against time: every setting that an export tried."""

from __future__ import annotations

from collections.abc import Sequence

from resdeploy.bundle.calibration_record import TradeOffPoint
from resdeploy.bundle.manifest import Encoding
from resdeploy.pages import svg
from resdeploy.pages.blocks import Block, Figure, Table

NONE = "-"


def trade_off_blocks(points: Sequence[TradeOffPoint]) -> tuple[Block, ...]:
    """Of the settings with a time by that, of the others by what is in float."""
    blocks: list[Block] = []
    for timed in (True, False):
        some = [point for point in points if (point.p50_ms is not None) is timed]
        if len({point.p50_ms if timed else point.float_share_percent for point in some}) > 1:
            blocks.append(_trade_off_plot(some, timed=timed))
        if some:
            blocks.append(_trade_off_table(some, timed=timed))
    return tuple(blocks)


def _trade_off_plot(points: Sequence[TradeOffPoint], *, timed: bool) -> Figure:
    kinds = {Encoding.FLOAT: 2, Encoding.CPU: 0, Encoding.TENSORRT: 1}
    marks = [
        svg.PlotPoint(
            point.p50_ms if point.p50_ms is not None else point.float_share_percent,
            point.agreement,
            point_name(point) if point.chosen else "",
            kinds.get(point.encoding, 0),
            point.chosen,
        )
        for point in points
    ]
    where = "measured at the export, one image on all cores" if timed else "not measured here"
    across = "milliseconds" if timed else "% of the convolutions' products in float"
    described = "; ".join(
        f"{point_name(point)}: {mark.y:.2f} % at {mark.x:.3g}" for point, mark in zip(points, marks)
    )
    return Figure(
        svg=svg.plane(
            marks,
            [],
            across=across,
            up="% of images with FP32's class",
            description=f"Agreement against {across}. {described}",
            logarithmic=(False, False),
            most=100.0,
        ),
        caption=f"Every setting that was tried ({where}); those of the bundle are ringed.",
    )


def _trade_off_table(points: Sequence[TradeOffPoint], *, timed: bool) -> Table:
    ordered = sorted(points, key=lambda point: (point.encoding.value, -point.agreement))
    return Table(
        caption="Every setting that was tried for CPUs; the bundle's stand out."
        if timed
        else "Every setting that was tried for TensorRT. Nothing here runs that graph fast, so the "
        "cost is the share of the convolutions' products that is in float.",
        head=("setting", "for", "same class", "drop", "images", "latency" if timed else "in float"),
        rows=tuple(
            (
                point_name(point),
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
        chosen=frozenset(index for index, point in enumerate(ordered) if point.chosen),
        aside=True,
    )


def point_name(point: TradeOffPoint) -> str:
    """The calibrator, and how much went back to float."""
    if not point.layers:
        return point.calibrator
    layers = "layer" if len(point.layers) == 1 else "layers"
    return f"{point.calibrator}, {len(point.layers)} {layers} in float"
