"""Report section of accuracy against latency, for every INT8 setting that an export tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from resdeploy.bundle.calibration_record import TradeOffPoint
from resdeploy.bundle.manifest import Encoding, Precision, graph_name
from resdeploy.pages.blocks import Block, Figure, Table, Text
from resdeploy.pages.svg import PlotPoint, scatter
from resdeploy.tables import DROP, NONE, percentage, plural, signed

SHAPES = {Encoding.FLOAT: 2, Encoding.CPU: 0, Encoding.TENSORRT: 1}


@dataclass(frozen=True, slots=True)
class _Costs:
    """Words about the cost of the settings of one graph."""

    caption: str
    axis: str
    column: str


_CPU = _Costs(
    "Layers in float in int8-cpu.onnx. Latency: one image in ONNX Runtime on all cores of the "
    "machine of the export.",
    "latency in ms",
    "latency",
)
_TENSORRT = _Costs(
    "Layers in float in int8.onnx. The latency was not measured, because TensorRT was not used; "
    "the cost is the share of the multiply-accumulates in float.",
    "% of the multiply-accumulates in float",
    "in float",
)


def trade_off_blocks(points: Sequence[TradeOffPoint]) -> tuple[Block, ...]:
    """Return a plot and a table for each graph for which a search tried layers in float.

    The calibrators that the bundle does not use are left out: they have a table of their own, and
    the same cost as the one that it uses.
    """
    used = {(point.encoding, point.calibrator) for point in points if point.chosen}
    kept: dict[tuple[Encoding, str, tuple[str, ...]], TradeOffPoint] = {}
    for point in points:
        key = point.encoding, point.calibrator, point.layers
        # All layers in INT8 are evaluated for the calibrators, and in a search on more images.
        if point.agreement is None:
            continue
        if key[:2] in used and (key not in kept or point.images > kept[key].images):
            kept[key] = point
    ordered = sorted(kept.values(), key=lambda point: (not point.chosen, _cost(point)))
    # A search times only the last of its mixtures for the CPU.
    timed = [point for point in ordered if point.p50_ms is not None]
    tensorrt = [point for point in ordered if point.encoding is Encoding.TENSORRT]
    return (*_blocks(timed, _CPU), *_blocks(tensorrt, _TENSORRT))


def _blocks(points: Sequence[TradeOffPoint], costs: _Costs) -> list[Block]:
    if not any(point.layers for point in points):
        return []
    blocks: list[Block] = []
    if len({_cost(point) for point in points}) > 1 < len({_agreement(point) for point in points}):
        blocks.append(_plot(points, costs))
    return [*blocks, _table(points, costs), *_slower(points)]


def _slower(points: Sequence[TradeOffPoint]) -> list[Text]:
    """Return a sentence if the search made the INT8 graph for CPUs as slow as FP32."""
    times = {point.encoding: point.p50_ms or 0.0 for point in points if point.chosen}
    fp32, int8 = times.get(Encoding.FLOAT), times.get(Encoding.CPU)
    if not fp32 or not int8 or int8 < fp32:
        return []
    return [
        Text(
            text="With so many layers in float, int8-cpu.onnx was not faster than fp32.onnx "
            f"({int8:.2f} and {fp32:.2f} ms)."
        )
    ]


def _plot(points: Sequence[TradeOffPoint], costs: _Costs) -> Figure:
    numbers: dict[tuple[float, float], list[str]] = {}
    for number, point in enumerate(points, 1):
        numbers.setdefault((_cost(point), _agreement(point)), []).append(str(number))
    marks = [
        PlotPoint(
            _cost(point),
            _agreement(point),
            ", ".join(numbers.pop((_cost(point), _agreement(point)), [])),
            SHAPES.get(point.encoding, 0),
            point.chosen,
        )
        for point in points
    ]
    described = "; ".join(
        f"{_setting(point)}: {_agreement(point):.2f} % at {_cost(point):.3g}" for point in points
    )
    return Figure(
        svg=scatter(
            marks,
            x_label=costs.axis,
            y_label="agreement with FP32 in %",
            description=f"Agreement with FP32 in % against {costs.axis}. {described}",
            y_max=100.0,
        ),
        caption=f"Agreement with FP32 against {costs.axis}. The numbers are those of the table "
        f"below. {'The triangle is FP32. ' if points[0].p50_ms is not None else ''}A thick border "
        "marks the graphs of the bundle.",
    )


def _table(points: Sequence[TradeOffPoint], costs: _Costs) -> Table:
    drop_known = any(point.drop is not None for point in points)
    drop_text = " Drop: of top-1 accuracy against FP32, in points." if drop_known else ""
    count = plural(len(points), "graph")
    return Table(
        caption=f"{costs.caption} Agreement: share of the images of the search with the same "
        "predicted class as FP32; other images judge the finished graphs, because this choice "
        f"favours them here.{drop_text} {count}; those of the bundle are highlighted.",
        head=("graph", "agreement", costs.column, *((DROP,) if drop_known else ()), "images"),
        rows=tuple(
            (
                f"{number}: {_setting(point)}",
                percentage(_agreement(point), 2),
                percentage(_cost(point)) if point.p50_ms is None else f"{point.p50_ms:.2f} ms",
                *((_drop(point),) if drop_known else ()),
                NONE if point.encoding is Encoding.FLOAT else f"{point.images:,}",
            )
            for number, point in enumerate(points, 1)
        ),
        highlighted=frozenset(index for index, point in enumerate(points) if point.chosen),
        html_only=True,
    )


def _drop(point: TradeOffPoint) -> str:
    return NONE if point.drop is None else signed(point.drop, 2)


def _agreement(point: TradeOffPoint) -> float:
    assert point.agreement is not None  # `trade_off_blocks` leaves such points out
    return point.agreement


def _cost(point: TradeOffPoint) -> float:
    return point.float_share_percent if point.p50_ms is None else point.p50_ms


def _setting(point: TradeOffPoint) -> str:
    if point.encoding is Encoding.FLOAT:
        return "fp32.onnx"
    if point.chosen:
        return f"{graph_name(Precision.INT8, point.encoding)}.onnx"
    return f"{plural(len(point.layers), 'layer')} in float" if point.layers else "all in INT8"
