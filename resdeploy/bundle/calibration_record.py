"""What a manifest tells of a calibration: what was tried, what was chosen, what was given up."""

from __future__ import annotations

from dataclasses import dataclass

from resdeploy.bundle.manifest import Encoding


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How a calibrator's ranges do on images that were not calibrated on, against FP32."""

    calibrator: str
    encoding: Encoding
    agreement: float
    """Images with the same most likely class, in percent."""
    sqnr_db: float
    """Median over the images."""
    sqnr_db_p5: float
    """The worst twentieth of the images."""

    @property
    def merit(self) -> tuple[float, float]:
        """What decides: usual and odd images count alike; then the answers themselves."""
        return self.sqnr_db + self.sqnr_db_p5, self.agreement


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassBalance:
    """How the calibration images spread over the classes."""

    seen: int
    of: int
    fewest: int
    """Images of the class that has fewest, 0 included."""
    most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatLayers:
    """What one encoding gave up to hold the gate."""

    encoding: Encoding
    layers: tuple[str, ...]
    """The layers that are float again; what buys most per cost comes first."""
    convolutions: int
    conv_share_percent: float
    """Their share of the products of all convolutions."""
    agreement: float
    """On the gate's images, as are the next two."""
    drop: float
    agreement_before: float
    images: int
    evaluations: int
    seconds: float
    out_of_time: bool
    """The search ended early: fewer layers might do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TradeOffPoint:
    """A setting that was tried: how good, and how fast."""

    encoding: Encoding
    calibrator: str
    layers: tuple[str, ...]
    """What is float in it that need not be."""
    float_share_percent: float
    """Their share of the products of all convolutions: the cost, where no time was measured."""
    agreement: float
    """Images that keep FP32's class, in percent."""
    drop: float | None
    """Points of accuracy that FP32 has more; None where the classes are not known."""
    images: int
    """On which both were found."""
    p50_ms: float | None
    """For one image, on ONNX Runtime's CPU provider with all cores of the machine that exported."""
    chosen: bool
    """Whether the bundle's graph is this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRecord:
    """The key `calibration` of a manifest, without the images."""

    method: dict[str, str]
    """The calibrator of each encoding."""
    images: int
    classes: ClassBalance | None
    growth_percent: float
    """By how much the largest value grew as the images doubled: of the tensors, the median."""
    scoring_images: int
    scores: tuple[Score, ...]
    refused: dict[str, int]
    """Images that were passed over, by reason."""
    float_layers: tuple[FloatLayers, ...]
    scales_file: str
    points: tuple[TradeOffPoint, ...] = ()
    """Of the encodings' settings that were tried, all."""
