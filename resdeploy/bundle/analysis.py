"""`analysis.json`: the quantisation noise of an INT8 export, for reports and comparisons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from resdeploy.bundle.bundle import ANALYSIS, Bundle
from resdeploy.json_documents import decode, parse

SCHEMA = "resdeploy.analysis/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """The quantisation noise of a convolution or the classifier in the graph for TensorRT."""

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
class Analysis:
    """The content of `analysis.json`."""

    layers: tuple[LayerCost, ...]
    """Layers in the order of the graph."""
    histograms: tuple[ActivationHistogram, ...]
    """Histograms of the activations with the most quantisation noise."""
    schema: str = SCHEMA


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
