"""`analysis.json`: what an export found out about its INT8 graphs, for reports and comparisons."""

from __future__ import annotations

import json
from dataclasses import dataclass

from resdeploy.bundle.bundle import ANALYSIS, Bundle
from resdeploy.documents import parse
from resdeploy.errors import BundleError

SCHEMA = "resdeploy.analysis/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """A convolution or the classifier; the noise is that of the encoding for TensorRT."""

    name: str
    """Of the node."""
    kind: str
    """ONNX's operator."""
    macs: int
    """Multiply-accumulates for one image."""
    input_sqnr_db: float | None
    """At the logits, with what it reads quantised and nothing else; None where that is float."""
    weight_sqnr_db: float | None
    in_float: tuple[str, ...]
    """Encodings in which it went back to float."""

    @property
    def worst_db(self) -> float | None:
        """The noisier of the two."""
        known = [db for db in (self.input_sqnr_db, self.weight_sqnr_db) if db is not None]
        return min(known, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationHistogram:
    """A tensor's values over all calibration images."""

    tensor: str
    heights: tuple[float, ...]
    """Of equally wide bars, 0 to 1, by the logarithm of the count."""
    low: float
    """Where the first bar begins."""
    high: float
    """Where the last bar ends."""
    range_low: float
    """The range that was chosen: what lies outside is clipped."""
    range_high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """The document."""

    layers: tuple[LayerCost, ...]
    """In the order of the graph."""
    histograms: tuple[ActivationHistogram, ...]
    """Of the activations that cost most."""
    schema: str = SCHEMA


def read_analysis(bundle: Bundle) -> Analysis | None:
    """What the bundle's `analysis.json` holds; None where it has none.

    Raises:
        BundleError: it is damaged, or of another schema.
    """
    if ANALYSIS not in bundle.manifest.files:
        return None
    try:
        analysis = parse(Analysis, json.loads(bundle.read(ANALYSIS)))
    except (ValueError, TypeError, RecursionError) as error:
        raise BundleError(
            f"{bundle.path / ANALYSIS} cannot be used: {error}", "export the bundle again"
        ) from error
    if analysis.schema != SCHEMA:
        raise BundleError(
            f"{bundle.path / ANALYSIS} has schema {analysis.schema!r:.60}", "export it again"
        )
    return analysis
