"""Result of a calibration: ranges for every encoding, and how they were chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from resdeploy.bundle.calibration_record import (
    CalibrationRecord,
    ClassBalance,
    FloatLayers,
    Score,
    TradeOffPoint,
)
from resdeploy.bundle.manifest import Encoding
from resdeploy.calibration.ranges import TensorStatistics
from resdeploy.export.quantization.recipe import QuantizationRecipe


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureEvaluation:
    """Accuracy of one mixture of INT8 and float layers on the held-out images."""

    encoding: Encoding
    layers: tuple[str, ...]
    """Names of the layers in float."""
    nodes: frozenset[str]
    """Names of the nodes of these layers."""
    agreement: float
    """Images with FP32's predicted class, in percent."""
    drop: float
    """Accuracy lost against FP32, in percentage points."""
    images: int
    p50_ms: float | None = None
    """Median latency of one image, in ms; None if it was not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Ranges for every quantised tensor of both encodings, and how they were chosen."""

    model: ir.Model
    """FP32 graph of the ranges; its channels are equalised unless the ranges were learned."""
    recipes: Mapping[Encoding, QuantizationRecipe]
    scores: tuple[Score, ...]
    """Scores of all calibrators; empty if there was only one."""
    digests: tuple[str, ...]
    """sha256 of the pixels of each calibration image."""
    selection_digests: tuple[str, ...]
    """sha256 of the pixels of each image that scored calibrators or evaluated mixtures."""
    scoring_images: int
    skipped: Mapping[str, int]
    """Number of images that were skipped, by reason."""
    balance: ClassBalance | None
    """None if the classes of the images are not known."""
    growth_percent: float
    """Expected growth of the largest value from half of the images to all, in percent: median over
    the tensors."""
    statistics: Mapping[str, TensorStatistics]
    float_layers: tuple[FloatLayers, ...] = ()
    """Layers that a search for an accuracy or latency target kept in float."""
    evaluations: tuple[MixtureEvaluation, ...] = ()
    """All mixtures that this search evaluated, in order."""
    points: tuple[TradeOffPoint, ...] = ()
    """All graphs that were evaluated, with latencies: see `tradeoff.trade_off_points`."""

    def record(self) -> CalibrationRecord:
        """Return the form that the command prints and the manifest holds."""
        return CalibrationRecord(
            method={encoding.value: recipe.calibrator for encoding, recipe in self.recipes.items()},
            images=len(self.digests),
            classes=self.balance,
            growth_percent=self.growth_percent,
            scoring_images=self.scoring_images,
            scores=self.scores,
            skipped=dict(self.skipped),
            float_layers=self.float_layers,
            points=self.points,
        )


def with_dla(calibration: Calibration) -> Calibration:
    """Return the calibration with a recipe for the DLA, which has the CPU's ranges.

    The recipe keeps nothing in float: neither shortcuts nor the layers that a search chose.
    """
    recipe = replace(calibration.recipes[Encoding.CPU], encoding=Encoding.DLA, in_float=frozenset())
    return replace(calibration, recipes={**calibration.recipes, Encoding.DLA: recipe})
