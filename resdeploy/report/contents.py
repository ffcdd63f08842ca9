"""What is in a bundle, and how it was made."""

from __future__ import annotations

from collections.abc import Sequence

from resdeploy.bundle import Encoding, Manifest
from resdeploy.calibration.record import CalibrationRecord, Handback, Point
from resdeploy.documents import parse
from resdeploy.errors import BundleError
from resdeploy.report import svg
from resdeploy.report.analysis import ActivationHistogram, Analysis, LayerCost
from resdeploy.report.blocks import Block, Facts, Figure, Section, Table, Text
from resdeploy.report.layer_times import LayerTimes
from resdeploy.runtime.environment import Environment

NONE = "-"
WORST = 12  # layers, in the plot
BUNDLE_HINT = "export the bundle again"


def export_summary(manifest: Manifest) -> str:
    """One sentence: what the graphs proved when they were written."""
    agreement = min(artifact.parity.agreement for artifact in manifest.artifacts)
    images = manifest.artifacts[0].parity.images
    count = len(manifest.artifacts)
    graphs = "The graph keeps" if count == 1 else f"All {count} graphs keep"
    return (
        f"{graphs} PyTorch's class for {agreement:.1f} % or more of {images} golden images, as "
        "measured at the export."
    )


def contents_sections(
    manifest: Manifest, analysis: Analysis | None, times: LayerTimes | None = None
) -> tuple[Section, ...]:
    """Parity, input, calibration, trade-off, layers.

    Raises:
        BundleError: the manifest's record of the calibration is damaged.
    """
    sections = [Section(title="The graphs", blocks=(_parity(manifest), _input(manifest)))]
    if manifest.calibration is not None:
        record = calibration_record(manifest)
        sections.append(Section(title="Calibration", blocks=_calibration(record)))
        if record.points:
            sections.append(Section(title="Accuracy or speed", blocks=_trade_off(record.points)))
    if analysis is not None:
        sections.append(Section(title="Layers", blocks=_layers(analysis, times)))
    return tuple(sections)


def calibration_record(manifest: Manifest) -> CalibrationRecord:
    """The typed form of the manifest's key.

    Raises:
        BundleError: it is damaged.
    """
    try:
        return parse(CalibrationRecord, manifest.calibration, "calibration")
    except (TypeError, ValueError) as error:
        raise BundleError(f"the manifest is damaged: {error}", BUNDLE_HINT) from error


def export_environment(manifest: Manifest) -> Environment:
    """Where and when the bundle was made.

    Raises:
        BundleError: the manifest does not say it.
    """
    try:
        return parse(Environment, manifest.provenance, "provenance")
    except (TypeError, ValueError) as error:
        raise BundleError(f"the manifest is damaged: {error}", BUNDLE_HINT) from error


def _parity(manifest: Manifest) -> Table:
    rows = tuple(
        (
            artifact.file,
            f"{artifact.bytes / 1e6:.1f} MB",
            f"{artifact.int8_convs} of {artifact.convs}",
            f"{artifact.parity.agreement:.1f} %",
            f"{artifact.parity.sqnr_db:.1f} dB",
            f"{artifact.parity.sqnr_db_p5:.1f} dB",
            f"{artifact.parity.max_error:.2g}",
        )
        for artifact in manifest.artifacts
    )
    head = ("graph", "size", "INT8 convs", "same class", "SQNR", "worst 5 %", "max error")
    images = manifest.artifacts[0].parity.images
    caption = (
        "Logits of each graph in ONNX Runtime on a CPU, against PyTorch in FP32, on the "
        f"{images} golden images that travel in the bundle; SQNR is the median over them."
    )
    return Table(caption=caption, head=head, rows=rows)


def _input(manifest: Manifest) -> Facts:
    prep, size = manifest.preprocessing, manifest.preprocessing.image_size
    model = manifest.model
    return Facts(
        facts=(
            ("network", f"{model.get('name')}, {manifest.classes} classes"),
            ("weights", str(model.get("source", "unknown"))),
            ("their sha256", str(model.get("source_sha256", "unknown"))),
            ("input", f"uint8 RGB, (batch, {size}, {size}, 3)"),
            (
                "from a picture",
                f"shorter side to {prep.resize} pixels ({prep.interpolation}), central {size} x "
                f"{size}",
            ),
            (
                "in the graph",
                f"(pixel / 255 - mean) / std, mean {_numbers(prep.mean)}, std {_numbers(prep.std)}",
            ),
        )
    )


def _calibration(record: CalibrationRecord) -> tuple[Block, ...]:
    facts = [
        ("calibrator", ", ".join(f"{name} for {kind}" for kind, name in record.method.items())),
        ("images", f"{record.images:,}, listed by sha256 in manifest.json"),
        (
            "coverage",
            f"the largest value grows by {record.growth_percent:.0f} % from half of the images to "
            "all (median of the tensors)",
        ),
        *(("passed over", f"{count} {reason}") for reason, count in record.refused.items()),
    ]
    if record.classes:
        one = record.classes
        facts.append(
            ("classes", f"{one.seen} of {one.of}, with {one.fewest} to {one.most} images each")
        )
    blocks: list[Block] = [Facts(facts=tuple(facts))]
    if record.scores:
        blocks.append(_scores(record))
    blocks += [Text(text=handback_sentence(one)) for one in record.handed_back]
    return tuple(blocks)


def _scores(record: CalibrationRecord) -> Table:
    return Table(
        caption=f"Every calibrator that was tried, on {record.scoring_images} images that it had "
        "not seen, against FP32.",
        head=("calibrator", "for", "same class", "SQNR", "worst 5 %"),
        rows=tuple(
            (
                score.calibrator,
                score.encoding.value,
                f"{score.agreement:.1f} %",
                f"{score.sqnr_db:.1f} dB",
                f"{score.sqnr_db_p5:.1f} dB",
            )
            for score in record.scores
        ),
        chosen=frozenset(
            index
            for index, score in enumerate(record.scores)
            if record.method.get(score.encoding.value) == score.calibrator
        ),
        aside=True,
    )


def handback_sentence(handback: Handback) -> str:
    """What was given up for a gate, and what that bought."""
    kept = f"{handback.agreement:.2f} % of {handback.images:,} images keep their class"
    late = " The time for the search ended; fewer layers might do." * handback.out_of_time
    if not handback.layers:
        return f"Nothing was handed back to float for {handback.encoding.value}: {kept}.{late}"
    return (
        f"For {handback.encoding.value}, {len(handback.layers)} layers went back to float, with "
        f"{handback.conv_share_percent:.1f} % of the convolutions' work: {kept} instead of "
        f"{handback.agreement_before:.2f} %. They are {', '.join(handback.layers)}.{late}"
    )


def _trade_off(points: Sequence[Point]) -> tuple[Block, ...]:
    """Of the settings with a time by that, of the others by what is in float."""
    blocks: list[Block] = []
    for timed in (True, False):
        some = [point for point in points if (point.p50_ms is not None) is timed]
        if len(some) > 1:
            blocks += [_trade_off_plot(some, timed=timed), _trade_off_table(some, timed=timed)]
    return tuple(blocks)


def _trade_off_plot(points: Sequence[Point], *, timed: bool) -> Figure:
    kinds = {Encoding.FLOAT: 2, Encoding.CPU: 0, Encoding.TENSORRT: 1}
    marks = [
        svg.Point(
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
        ),
        caption=f"Every setting that was tried ({where}); those of the bundle are ringed.",
    )


def _trade_off_table(points: Sequence[Point], *, timed: bool) -> Table:
    ordered = sorted(points, key=lambda point: (point.encoding.value, -point.agreement))
    return Table(
        caption="The same in figures."
        if timed
        else "The same in figures: nothing here runs this graph fast, so the cost is the share of "
        "the convolutions' products that is in float.",
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


def point_name(point: Point) -> str:
    """The calibrator, and how much went back to float."""
    if not point.layers:
        return point.calibrator
    layers = "layer" if len(point.layers) == 1 else "layers"
    return f"{point.calibrator}, {len(point.layers)} {layers} in float"


def _layers(analysis: Analysis, times: LayerTimes | None) -> tuple[Block, ...]:
    noisiest = sorted(
        (layer for layer in analysis.layers if layer.worst_db is not None),
        key=lambda layer: layer.worst_db or 0.0,
    )[:WORST]
    names = {layer.name for layer in noisiest}
    total = sum(layer.macs for layer in analysis.layers) or 1
    table = Table(
        caption="Every convolution and the classifier, in the order of the graph: its share of "
        "the products, and the SQNR at the logits when what it reads, or its weights, are all "
        f"that is quantised for TensorRT. The {len(names)} noisiest stand out."
        + (f" Milliseconds in {times.graph}, by ONNX Runtime's profile." if times else ""),
        head=(
            "layer",
            "kind",
            "products",
            "input alone",
            "weights alone",
            "back in float",
            *(["time"] if times else []),
        ),
        rows=tuple(
            (
                layer.name,
                layer.kind,
                f"{100 * layer.macs / total:.1f} %",
                _decibels(layer.input_sqnr_db),
                _decibels(layer.weight_sqnr_db),
                ", ".join(layer.in_float) or NONE,
                *([_time(times, layer.name)] if times else []),
            )
            for layer in analysis.layers
        ),
        chosen=frozenset(i for i, layer in enumerate(analysis.layers) if layer.name in names),
        aside=True,
    )
    plots = [_noise(noisiest)] if noisiest else []
    return (*plots, table, *(_histogram(one) for one in analysis.histograms))


def _noise(layers: Sequence[LayerCost]) -> Figure:
    worst = layers[0].worst_db or 0.0
    rows = [
        (layer.name, 10 ** ((worst - (layer.worst_db or 0.0)) / 20), _decibels(layer.worst_db))
        for layer in layers
    ]
    return Figure(
        svg=svg.bars(
            rows,
            description="Noise at the logits by layer. "
            + "; ".join(f"{name}: {figure}" for name, _, figure in rows),
        ),
        caption="Which layers make most noise at the logits of int8.onnx when they alone are "
        "quantised, by amplitude.",
    )


def _histogram(one: ActivationHistogram) -> Figure:
    shown = f"values from {one.low:.3g} to {one.high:.3g}, the range is {one.range_low:.3g} to "
    clipped = f"{shown}{one.range_high:.3g}"
    return Figure(
        svg=svg.histogram(
            one.heights,
            one.low,
            one.high,
            (one.range_low, one.range_high),
            f"Histogram of {one.tensor}: {clipped}",
        ),
        caption=f"{one.tensor} over the calibration images: {clipped}. Counts are on a logarithmic "
        "scale; what lies outside of the dashed lines is clipped.",
    )


def _time(times: LayerTimes, layer: str) -> str:
    return f"{times.ms[layer]:.3f} ms" if layer in times.ms else NONE


def _decibels(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f} dB"


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
