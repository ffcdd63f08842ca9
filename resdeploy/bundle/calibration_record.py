"""Typed records of a calibration: `calibration` in the manifest, and `calibration.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass

from resdeploy.bundle.bundle import CALIBRATION, Bundle
from resdeploy.bundle.manifest import Encoding
from resdeploy.documents import parse
from resdeploy.errors import BundleError
from resdeploy.tables import plural


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Accuracy of one calibrator's ranges against FP32, on images that did not calibrate."""

    calibrator: str
    encoding: Encoding
    agreement: float
    """Images with FP32's predicted class, in percent."""
    sqnr_db: float
    """Median SQNR of the logits over the images, in dB."""
    sqnr_db_p5: float
    """5th percentile of the SQNR over the images, in dB."""

    @property
    def merit(self) -> tuple[float, float]:
        """Return the key for ranking: typical and atypical images count equally."""
        return self.sqnr_db + self.sqnr_db_p5, self.agreement


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassBalance:
    """Distribution of the calibration images over the classes."""

    represented: int
    """Classes that have at least one image."""
    classes: int
    """Classes of the network."""
    fewest: int
    """Images of the class that has the fewest, possibly 0."""
    most: int
    """Images of the class that has the most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatLayers:
    """Layers of one INT8 graph that a search kept in float, and the effect on the accuracy."""

    encoding: Encoding
    layers: tuple[str, ...]
    """Names of the layers; the largest gain per cost comes first."""
    convolutions: int
    """Convolutions among the layers."""
    conv_share_percent: float
    """Share of all convolutions' products (MACs) that these convolutions have, in percent."""
    agreement: float
    """Held-out images with FP32's predicted class, in percent."""
    drop: float
    """Accuracy that the graph loses against FP32 on these images, in percentage points."""
    agreement_before: float
    """Agreement in percent with all layers in INT8."""
    images: int
    """Number of held-out images."""
    evaluations: int
    seconds: float
    out_of_time: bool
    """True if the search ended early, so that fewer layers may suffice."""


def float_layers_sentence(chosen: FloatLayers) -> str:
    """Return a sentence that names the layers in float and the agreement with FP32."""
    graph = f"The {chosen.encoding.value} graph"
    agreement = f"its agreement with FP32 is {chosen.agreement:.2f} % on {chosen.images:,} images"
    late = "; the search ran out of time, so fewer layers may suffice" if chosen.out_of_time else ""
    if not chosen.layers:
        return f"{graph} keeps no further layer in float; {agreement}{late}."
    return (
        f"{graph} keeps {plural(len(chosen.layers), 'layer')} in float "
        f"({', '.join(chosen.layers)}), with {plural(chosen.convolutions, 'convolution')} and "
        f"{chosen.conv_share_percent:.1f} % of all convolutions' products; {agreement}, and "
        f"{chosen.agreement_before:.2f} % with all layers in INT8{late}."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TradeOffPoint:
    """Accuracy and latency of one graph that an export evaluated."""

    encoding: Encoding
    calibrator: str
    layers: tuple[str, ...]
    """Layers in float that could be INT8."""
    float_share_percent: float
    """Share of all convolutions' products that is in float, in percent."""
    agreement: float
    """Images with FP32's predicted class, in percent."""
    drop: float | None
    """Accuracy lost against FP32, in percentage points; None if it was not measured."""
    images: int
    """Images on which `agreement` and `drop` were measured."""
    p50_ms: float | None
    """Median latency of one image on ONNX Runtime's CPU provider with all cores of the machine."""
    chosen: bool
    """True if the bundle holds this graph."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRecord:
    """The key `calibration` of a manifest, without the digests of the images."""

    method: dict[str, str]
    """Calibrator of each encoding."""
    images: int
    classes: ClassBalance | None
    """None if the classes of the images are not known."""
    growth_percent: float
    """Expected growth of the largest value from half of the images to all: median of the tensors,
    in percent."""
    scoring_images: int
    scores: tuple[Score, ...]
    skipped: dict[str, int]
    """Number of images that were skipped, by reason."""
    float_layers: tuple[FloatLayers, ...]
    scales_file: str
    points: tuple[TradeOffPoint, ...] = ()
    """All graphs that the export evaluated."""


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
    """Names of the nodes in float."""
    ranges: dict[str, TensorRange]
    """Range of every quantised tensor, by its name in `fp32.onnx`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeRecords:
    """Content of `calibration.json`: one record for each encoding."""

    tensorrt: RecipeRecord
    cpu: RecipeRecord
    dla: RecipeRecord | None = None


def read_recipe_record(bundle: Bundle, encoding: Encoding) -> RecipeRecord:
    """Read the record of one encoding from the bundle's `calibration.json`.

    Raises:
        BundleError: The file is damaged or has no record of this encoding.
    """
    try:
        records = parse(RecipeRecords, json.loads(bundle.read(CALIBRATION)), CALIBRATION)
        record: RecipeRecord | None = getattr(records, encoding.value)
        if record is None:
            raise ValueError(f"it has no record for {encoding.value}")
    except (TypeError, ValueError) as error:
        raise BundleError(
            f"{bundle.path / CALIBRATION} is damaged: {error}", "export the bundle again"
        ) from error
    return record
