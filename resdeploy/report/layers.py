"""Report section of the layers: quantisation noise, remedy, times, histograms of activations."""

from __future__ import annotations

from collections.abc import Sequence

from resdeploy.bundle.analysis import (
    ActivationHistogram,
    Analysis,
    FloatMixture,
    LayerCost,
    Remedy,
)
from resdeploy.bundle.manifest import Encoding, Precision, graph_name, with_use
from resdeploy.bundle.quality import (
    ENOUGH_AGREEMENT,
    ENOUGH_IMAGES,
    ENOUGH_SQNR_DB,
    LIMITS,
    action_text,
    judged_images,
)
from resdeploy.pages import svg
from resdeploy.pages.blocks import Block, Figure, Table, Text
from resdeploy.result_files.benchmark import LayerTimes
from resdeploy.tables import NONE, capitalised, factor, percentage, plural, two_digits

NOISIEST = 12  # layers in the plot
MAX_NAMES = 8


def layer_blocks(
    analysis: Analysis, times: LayerTimes | None, *, warned: bool = False
) -> tuple[Block, ...]:
    """Return the remedy, a plot of the noisiest layers, a table of all layers, and histograms.

    `warned` says that a warning is about the graph of the analysis.
    """
    graph = f"{graph_name('int8', analysis.encoding)}.onnx"
    noisiest = sorted(
        (layer for layer in analysis.layers if layer.worst_db is not None),
        key=lambda layer: layer.worst_db or 0.0,
    )[:NOISIEST]
    names = {layer.name for layer in noisiest}
    whole_ms = sum(times.ms.values()) if times else 0.0
    shares = (
        {name: percentage(100 * ms / whole_ms) for name, ms in times.ms.items()} if times else {}
    )
    time_head = ["time"] if times else []
    float_head = ["in float in"] if any(layer.in_float for layer in analysis.layers) else []
    total = sum(layer.macs for layer in analysis.layers) or 1
    table = Table(
        caption="All convolutions and the classifier, in graph order. Share of the "
        f"multiply-accumulates (MACs), and noise at the logits of {graph} in percent of the "
        "signal's power when only the input, or only the weights, of this layer are quantised: "
        "more is worse. The "
        f"{len(names)} noisiest are highlighted."
        + (
            " In float in: the search for the target keeps these layers in float in these graphs, "
            "because in INT8 they lose the most accuracy for the time that they save. It may keep "
            "additions in float, too, which this table does not have."
            if float_head
            else ""
        )
        + (
            f" Time: share of the time of all layers of {times.graph}, for one image on all cores, "
            "from ONNX Runtime's profile."
            if times
            else ""
        ),
        head=(
            "layer",
            "kind",
            "MACs",
            "noise, input",
            "noise, weights",
            *float_head,
            *time_head,
        ),
        rows=tuple(
            (
                layer.name,
                layer.kind,
                percentage(100 * layer.macs / total),
                noise_text(layer.input_sqnr_db),
                noise_text(layer.weight_sqnr_db),
                *([_graph_names(layer.in_float)] if float_head else []),
                *([shares.get(layer.name, NONE)] if times else []),
            )
            for layer in analysis.layers
        ),
        highlighted=frozenset(i for i, layer in enumerate(analysis.layers) if layer.name in names),
        html_only=True,
    )
    plots = [_noise(graph, noisiest)] if noisiest else []
    texts = tuple(Text(text=line) for line in remedy_lines(analysis.remedy, warned=warned))
    count = len(analysis.histograms)
    histograms = [_histogram(graph, values, count) for values in analysis.histograms]
    return (*texts, *plots, table, *histograms)


def _some_names(layers: Sequence[str]) -> str:
    return ", ".join(layers[:MAX_NAMES]) + (", ..." * (len(layers) > MAX_NAMES))


def _graph_names(encodings: Sequence[str]) -> str:
    names = {encoding.value: graph_name("int8", encoding) for encoding in Encoding}
    return ", ".join(names.get(value, value) for value in encodings) or NONE


def noise_percent(sqnr_db: float) -> float:
    """Return the power of the noise in percent of the signal's power."""
    return 100 * 10 ** (-sqnr_db / 10)


def noise_text(sqnr_db: float | None) -> str:
    """Return the noise in percent with two significant digits."""
    if sqnr_db is None:
        return NONE
    percent = noise_percent(sqnr_db)
    if percent < 1e-4:  # 60 dB; nobody needs to tell smaller values apart
        return "< 0.0001 %"
    return f"{two_digits(percent)} %"


def remedy_lines(remedy: Remedy, *, warned: bool = False) -> list[str]:
    """Return sentences with the action, what it gains and what it costs.

    If the figures need none, but the graph is `warned` about, they refer to the warning.
    """
    graph = f"{graph_name('int8', remedy.encoding)}.onnx"
    images = (
        judged_images(remedy.images, remedy.origin)
        if remedy.origin
        else plural(remedy.images, "golden image")
    )
    step = f" (one image is {percentage(100 / remedy.images)})" if remedy.agreement < 100 else ""
    agreement = (
        f"{with_use(graph, remedy.encoding)} predicts the class of FP32 for "
        f"{percentage(remedy.agreement)} of {images}{step}. An action is recommended if more than "
        f"{100 - ENOUGH_AGREEMENT:g} % of them, and at least two, have another class; the export "
        f"warns above {100 - LIMITS[Precision.INT8].agreement:g} %."
    )
    enough = remedy.images >= ENOUGH_IMAGES  # their agreement decides alone
    sqnr = f"On the golden images, the SQNR of its logits is {remedy.sqnr_db:.1f} dB" + (
        f" (good: at least {ENOUGH_SQNR_DB:g} dB); the agreement decides."
        if enough
        else f"; below {ENOUGH_SQNR_DB:g} dB, an action is recommended."
    )
    is_low = remedy.sqnr_db < ENOUGH_SQNR_DB and not enough
    if not (action := action_text(remedy)):
        if warned:
            rest = "These figures need no action; the warning about this graph has its own remedy."
            return [agreement, sqnr, rest]
        return [f"No action is needed: {agreement}", sqnr]
    changed = round(remedy.images * (1 - remedy.agreement / 100))
    has_changed = changed > max(1.0, remedy.images * (1 - ENOUGH_AGREEMENT / 100))
    reasons = ["agreement"] * has_changed + ["SQNR"] * is_low
    reason = f", because of the {' and the '.join(reasons)}" if reasons else ""
    lines = [agreement, sqnr, f"Action{reason}: {action}."]
    if remedy.mixture is None:
        return [*lines, f"No option keeps layers of {graph} in float."]
    mixture = remedy.mixture
    names = _some_names(mixture.layers)
    lines.append(
        f"On the golden images, with {len(mixture.layers)} of "
        f"{plural(mixture.candidates, 'layer')} (additions included) in float ({names}), the SQNR "
        f"is {mixture.sqnr_db:.1f} dB instead of {remedy.sqnr_db:.1f} dB. "
        + (
            "The search of the export measures on other images, and may choose other layers."
            if remedy.sufficient
            else f"{_missed_limit(mixture)}, so layers in float alone may not be enough."
        )
    )
    share = percentage(mixture.float_share_percent)
    cost = f"Cost: {share} of the multiply-accumulates in float"
    return [*lines, f"{cost}{_latency_change(mixture)}."]


def _missed_limit(mixture: FloatMixture) -> str:
    if mixture.sqnr_db >= ENOUGH_SQNR_DB:
        agreement = percentage(mixture.agreement)
        return f"Only {agreement} of them have FP32's class, less than {ENOUGH_AGREEMENT:g} %"
    return f"It stays below {ENOUGH_SQNR_DB:g} dB"


def _latency_change(mixture: FloatMixture) -> str:
    """Return a clause; the latencies themselves are those of another time than in other tables."""
    ratio, low, high = mixture.latency_ratio, mixture.latency_ratio_low, mixture.latency_ratio_high
    if ratio is None or low is None or high is None:
        return ""
    if low <= 1 <= high:
        return "; no measurable change of the latency of one image on a CPU"
    return f"; one image takes {factor(ratio)} times as long with ONNX Runtime on all cores"


def _noise(graph: str, layers: Sequence[LayerCost]) -> Figure:
    known = [(layer.name, layer.worst_db) for layer in layers if layer.worst_db is not None]
    rows = [(name, noise_percent(worst), "") for name, worst in known]
    return Figure(
        svg=svg.bars(
            rows,
            axis="noise, in % of the signal's power",
            description=f"Noise at the logits of {graph} by layer, in % of the signal's power.",
        ),
        caption=f"The noisiest layers of {graph}. It is the INT8 graph of the bundle with the "
        "lowest agreement on the images that judged the graphs, or the lowest SQNR of equal ones. "
        "A longer bar is worse: "
        "noise at the logits, the network's outputs, when only the layer's input, or only its "
        "weights, are quantised, whichever is worse. Layers that share their input share its "
        "noise.",
    )


def _histogram(graph: str, values: ActivationHistogram, count: int) -> Figure:
    low, high, range_low, range_high = (
        f"{value:#.3g}".removesuffix(".")
        for value in (values.low, values.high, values.range_low, values.range_high)
    )
    ranges = f"values from {low} to {high}, quantisation range from {range_low} to {range_high}"
    inside = values.range_low <= values.low and values.high <= values.range_high
    clipped = "" if inside else "; values outside are clipped"
    drawing = svg.histogram(
        values.heights,
        values.low,
        values.high,
        (values.range_low, values.range_high),
        axis="value of the activation",
        y_label="number of values (logarithmic)",
        description=f"Histogram of {values.tensor}: {ranges}",
    )
    has_clipped_bars = 'class="clipped"' in drawing
    rank = "the activation" if count == 1 else f"one of the {count} activations"
    return Figure(
        svg=drawing,
        caption=f"Output of {values.tensor} on the calibration images. It is {rank} whose "
        f"quantisation causes the most noise of {graph}; the table has the inputs of the layers, "
        f"and not their outputs. {capitalised(ranges)}.",
        legend=(
            ("mark0", f"quantisation range{clipped}"),
            *((("clipped", "clipped values"),) if has_clipped_bars else ()),
        ),
    )
