"""Typed records of a calibration: `calibration` in the manifest, and `calibration.json`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from resdeploy.bundle.bundle import CALIBRATION, Bundle
from resdeploy.bundle.manifest import Encoding, Precision, QualityOrigin, graph_name, with_use
from resdeploy.bundle.quality import judged_images
from resdeploy.json_documents import decode
from resdeploy.statistics import Verdict
from resdeploy.tables import plural

SMALLEST_DIVERGENCE = 1e-20  # counts as 200 dB, the limit of `statistics.sqnr_db`


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Accuracy of one calibrator's ranges, on images that were not used for calibration."""

    calibrator: str
    encoding: Encoding
    agreement: float
    """Images with the same predicted class as FP32, in percent."""
    sqnr_db: float
    """Median SQNR of the logits over the images, in dB."""
    sqnr_db_p5: float
    """5th percentile of the SQNR over the images, in dB."""
    divergence: float
    """Mean Kullback-Leibler divergence of the probabilities from FP32's, in nats."""

    @property
    def merit(self) -> tuple[float, float]:
        """Sort key of a ranking: the sum of three figures in dB, then the agreement.

        The median of the SQNR is that of typical images, the 5th percentile that of atypical ones.
        The divergence counts changed probabilities, which a few clipped images can cause while
        both percentiles are high. For small errors, it grows with their square, as noise does.

        Source: NVIDIA Model Optimizer, `auto_quantize(method="kl_div")`, which ranks formats by
        this divergence; Dutta et al., "Accuracy is not all you need" (2024), arXiv:2407.09141: it
        is correlated with the number of changed predictions.
        """
        divergence_db = -10 * math.log10(max(self.divergence, SMALLEST_DIVERGENCE))
        return self.sqnr_db + self.sqnr_db_p5 + divergence_db, self.agreement


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassBalance:
    """Distribution of the calibration images over the classes of the network."""

    represented: int
    """Number of classes that have at least one image."""
    classes: int
    fewest: int
    """Number of images of the rarest class, possibly 0."""
    most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatLayers:
    """Layers of one INT8 graph that a search kept in float, and their effect on the accuracy."""

    encoding: Encoding
    layers: tuple[str, ...]
    """Names of the layers, in the order of their gain per cost, the largest first."""
    convolutions: int
    """Number of convolutions among the layers."""
    conv_share_percent: float
    """Share of these convolutions in the multiply-accumulates of all convolutions, in percent."""
    agreement: float
    """Images of the search with the same predicted class as FP32, in percent; flattering, because
    the layers were chosen on these images."""
    drop: float
    """Drop in accuracy against FP32 on these images, in percentage points; negative if it rose."""
    expected_agreement: float
    """Lower bound, with 95 % confidence, of an estimate of the agreement on other images from the
    noise and the margins, in percent."""
    agreement_before: float
    """Agreement with all layers in INT8, in percent."""
    images: int
    """Number of images of the search."""
    evaluations: int
    seconds: float
    out_of_time: bool
    """True if the search reached its time limit, so that fewer layers may suffice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetResult:
    """Verdict about a target for one INT8 graph."""

    encoding: Encoding
    option: str
    """Option that sets the target: `--min-agreement`, `--max-drop` or `--target-ms`."""
    limit: float
    figure: float
    """Measured agreement in percent, drop in percentage points, or latency in ms."""
    bound: float
    """One-sided bound of the true figure with 95 % confidence: a lower bound of the agreement, an
    upper bound of the drop or of the latency."""
    samples: int
    """Number of images, or of measurements of the latency."""
    origin: QualityOrigin | None
    """Origin of the images; None for a latency."""
    images_to_decide: int | None
    """Number of images that would decide, if predictions change as often; None if the verdict is
    decided, or no number of images is expected to decide."""
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class TradeOffPoint:
    """Accuracy and latency of one graph that an export evaluated."""

    encoding: Encoding
    calibrator: str
    layers: tuple[str, ...]
    """Layers in float that could be in INT8."""
    float_share_percent: float
    """Share of the convolutions' multiply-accumulates that is in float, in percent."""
    agreement: float | None
    """Images with the same predicted class as FP32, in percent; None if no images chose between
    graphs."""
    drop: float | None
    """Drop in accuracy against FP32, in percentage points; negative if it rose, None if unknown."""
    images: int
    """Number of images on which `agreement` and `drop` were measured."""
    p50_ms: float | None
    """Median latency of one image on ONNX Runtime's CPU provider, with all cores, in ms."""
    chosen: bool
    """True if the bundle holds this graph."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRecord:
    """The key `calibration` of a manifest, without the digests of the images."""

    method: dict[str, str]
    """Calibrator of each encoding."""
    images: int
    available: int
    """Number of images in the folder for calibration."""
    classes: ClassBalance | None
    """Distribution over the classes; None if the classes of the images are not known."""
    growth_percent: float
    """Expected growth of a tensor's largest value from half of the images to all, in percent:
    median over the tensors."""
    scoring_images: int
    scores: tuple[Score, ...]
    skipped: dict[str, int]
    """Number of skipped images, by reason."""
    float_layers: tuple[FloatLayers, ...]
    points: tuple[TradeOffPoint, ...] = ()
    """All graphs that the export evaluated."""
    targets: tuple[TargetResult, ...] = ()
    """Verdict of every target for each INT8 graph."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRange:
    """Range of one quantised tensor in `calibration.json`."""

    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeRecord:
    """Content of `calibration.json` for one encoding."""

    calibrator: str
    in_float: tuple[str, ...]
    """Names of the nodes that stay in float."""
    ranges: dict[str, TensorRange]
    """Range of every quantised tensor, by its name in `fp32.onnx`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeRecords:
    """Content of `calibration.json`: one record for each encoding."""

    tensorrt: RecipeRecord
    cpu: RecipeRecord
    dla: RecipeRecord | None = None


def explain_calibrator(name: str) -> str:
    """Return the name of a calibrator, which a bundle states, and the range that it chooses."""
    kind, _, percent = name.partition("-")
    ranges = {
        "max": "of all values",
        "image": f"that {percent} % of the images do not exceed",
        "percentile": f"that {percent} % of the values do not exceed",
        "entropy": "with the smallest Kullback-Leibler divergence",
        "mse": "with the smallest mean squared error",
        "learned": "that the training learned",
    }
    return f"{name}: the range {ranges.get(kind, 'of a rule that this version does not know')}"


def float_layers_sentence(chosen: FloatLayers) -> str:
    """Return a sentence that names the layers in float and the agreement with FP32."""
    graph = with_use(graph_name(Precision.INT8, chosen.encoding), chosen.encoding)
    agreement = (
        f"on the {plural(chosen.images, 'image')} of the search, its agreement with FP32 is "
        f"{chosen.agreement:.2f} % (at least {chosen.expected_agreement:.2f} % is expected on "
        "others)"
    )
    note = "; the search ran out of time, so fewer layers may suffice" if chosen.out_of_time else ""
    if not chosen.layers:
        return f"{graph}: the search keeps no layer in float; {agreement}{note}."
    return (
        f"{graph} keeps {plural(len(chosen.layers), 'layer')} in float "
        f"({', '.join(chosen.layers)}), with {plural(chosen.convolutions, 'convolution')} and "
        f"{chosen.conv_share_percent:.1f} % of all convolutions' products; {agreement}; it "
        f"is {chosen.agreement_before:.2f} % with all layers in INT8{note}."
    )


def target_sentence(result: TargetResult) -> str:
    """Return a sentence with the verdict about a target, the figure and its bound."""
    graph = with_use(graph_name(Precision.INT8, result.encoding), result.encoding)
    word = {Verdict.PASS: "held", Verdict.FAIL: "missed"}.get(result.verdict, "undecided")
    if result.origin is None:
        return (
            f"{graph}: {word}: {result.figure:.2f} ms for one image, at most {result.bound:.2f} ms "
            f"in {result.samples} measurements ({result.option} {result.limit:g})"
        )
    lower = result.option == "--min-agreement"
    unit, side = ("%", "least") if lower else ("points", "most")
    images = judged_images(result.samples, result.origin)
    text = (
        f"{graph}: {word}: {'' if lower else 'a drop of '}{result.figure:.2f} {unit} on "
        f"{images}, at {side} {result.bound:.2f} {unit} (one-sided 95 % bound; {result.option} "
        f"{result.limit:g})"
    )
    if result.images_to_decide is not None:
        misses = result.figure < result.limit if lower else result.figure > result.limit
        text += (
            f"; about {result.images_to_decide:,} images would show that it is "
            f"{'missed' if misses else 'held'}, if predictions change as often"
        )
    elif result.verdict is Verdict.INCONCLUSIVE:
        text += "; more images are not expected to decide"
    return text


def read_recipe_record(bundle: Bundle, encoding: Encoding) -> RecipeRecord:
    """Read the record of one encoding from the bundle's `calibration.json`.

    Raises:
        BundleError: The file is damaged or has no record of this encoding.
    """
    try:
        records = decode(RecipeRecords, bundle.read(CALIBRATION))
        record: RecipeRecord | None = getattr(records, encoding.value)
        if record is None:
            raise ValueError(f"it has no record for {encoding.value}")
    except ValueError as error:
        raise bundle.damaged(CALIBRATION, error) from error
    return record
