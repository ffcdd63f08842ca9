"""`analysis.json`: the quantisation noise of an INT8 export, for reports and comparisons."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from resdeploy.bundle.bundle import ANALYSIS, Bundle
from resdeploy.bundle.manifest import Artifact, Encoding, Precision, QualityOrigin
from resdeploy.bundle.quality import export_figures
from resdeploy.json_documents import decode, parse

SCHEMA = "resdeploy.analysis/3"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """The quantisation noise of a convolution or the classifier in the analysed INT8 graph."""

    name: str
    kind: str
    """ONNX operator."""
    macs: int
    """Multiply-accumulate operations for one image."""
    input_sqnr_db: float | None
    """SQNR of the logits in dB if only this layer's input is quantised; None if it is in float."""
    weight_sqnr_db: float | None
    """SQNR of the logits in dB if only this layer's weights are quantised; None if in float."""
    in_float: tuple[str, ...]
    """Encodings that keep this layer in float."""

    @property
    def worst_db(self) -> float | None:
        """The lower of the two SQNRs, in dB."""
        known = [db for db in (self.input_sqnr_db, self.weight_sqnr_db) if db is not None]
        return min(known, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationHistogram:
    """A histogram of a tensor's values over all calibration images."""

    tensor: str
    heights: tuple[float, ...]
    """Heights of equally wide bars, 0 to 1, proportional to the logarithm of the count."""
    low: float
    high: float
    """Right edge of the last bar; `low` is the left edge of the first."""
    range_low: float
    range_high: float
    """Upper end of the calibrated range, which starts at `range_low`; other values are clipped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatMixture:
    """The measured effect of more layers in float in one INT8 graph."""

    layers: tuple[str, ...]
    """Layers that were in INT8, in the order of their gain per cost, the largest first."""
    candidates: int
    """Number of layers in INT8 that can be kept in float."""
    float_share_percent: float
    """Share of the convolutions' multiply-accumulates in float, in percent."""
    agreement: float
    """Golden images with PyTorch's predicted class, in percent."""
    sqnr_db: float
    latency_ratio: float | None
    """Latency of one image on all cores of a CPU, divided by that of the graph in the bundle, which
    is measured in turns with it; None for other engines."""
    latency_ratio_low: float | None
    """Lower end of the 95 % interval of this ratio."""
    latency_ratio_high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """Action against the quantisation noise of one INT8 graph, and its measured effect."""

    encoding: Encoding
    options: tuple[str, ...]
    """Options of `export` to add; `train --qat` if the network must be trained again. Empty if the
    graph is accurate enough."""
    images: int
    """Number of images on which `agreement` was measured."""
    origin: QualityOrigin | None
    """Origin of these images; None for golden images."""
    agreement: float
    """Images with the predicted class of the float network, in percent."""
    sqnr_db: float
    """Median SQNR of the logits on the golden images, in dB."""
    mixture: FloatMixture | None = None
    """The layers in float that were tried; None if the graph needs or allows none."""
    sufficient: bool = False
    """True if the mixture is accurate enough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """The content of `analysis.json`."""

    encoding: Encoding
    """Encoding of the analysed graph: the worst INT8 graph of the bundle."""
    remedy: Remedy
    layers: tuple[LayerCost, ...]
    """Layers in the order of the graph."""
    histograms: tuple[ActivationHistogram, ...]
    """Histograms of the activations with the most quantisation noise."""
    schema: str = SCHEMA


def worst_int8(artifacts: Iterable[Artifact]) -> Artifact | None:
    """Return the INT8 graph with the lowest agreement, then the lowest SQNR; None without INT8.

    The figures are those of the images that judged the graphs, or else of the golden images.
    """
    int8 = [artifact for artifact in artifacts if artifact.precision is Precision.INT8]
    figures = [(export_figures(artifact)[0], artifact) for artifact in int8]
    _, worst = min(
        figures, key=lambda pair: (pair[0].agreement, pair[0].sqnr_db), default=(None, None)
    )
    return worst


def read_analysis(bundle: Bundle) -> Analysis | None:
    """Return the bundle's `analysis.json`, or None if it has none.

    Raises:
        BundleError: The file is damaged, or has an unknown schema.
    """
    if ANALYSIS not in bundle.manifest.files:
        return None
    try:
        document = decode(dict[str, Any], bundle.read(ANALYSIS))
        if document.get("schema") != SCHEMA:
            raise ValueError(f"its schema is {document.get('schema')!r:.60}, not {SCHEMA}")
        return parse(Analysis, document)
    except ValueError as error:
        raise bundle.damaged(ANALYSIS, error) from error
