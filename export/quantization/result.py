"""Result of a calibration: ranges for every encoding, and how they were chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from resdeploy.bundle.calibration_record import (
    CalibrationRecord,
    ClassBalance,
    FloatLayers,
    Score,
    TargetResult,
    TradeOffPoint,
)
from resdeploy.bundle.manifest import Encoding
from resdeploy.calibration.ranges import TensorStatistics
from resdeploy.changed_predictions import ChangedPredictions, ExpectedChanges
from resdeploy.export.quantization.held_out import HeldOutImages
from resdeploy.export.quantization.recipe import QuantizationRecipe
from resdeploy.images.preprocessing import UInt8Array


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureEvaluation:
    """Accuracy of one mixture of INT8 and float layers on the held-out images."""

    encoding: Encoding
    layers: tuple[str, ...]
    """Names of the layers in float."""
    nodes: frozenset[str]
    """Names of the nodes of these layers."""
    changes: ChangedPredictions
    """Predicted classes that differ from FP32's."""
    expected: ExpectedChanges
    """Estimate for other images with the same noise."""
    p50_ms: float | None = None
    """Median latency of one image, in ms; None if it was not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """Part of the calibration images, to judge ranges on that the other parts give."""

    images: HeldOutImages
    others: Mapping[str, TensorStatistics]
    """Statistics over all calibration images of the other parts."""


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
    examined: tuple[Path, ...]
    """Files of all of these images, and of those that were skipped."""
    available: int
    """Number of images in the folder for calibration."""
    scoring: HeldOutImages
    """Images that scored calibrators, or are reserved for the search of a target."""
    rounding: UInt8Array
    """Calibration images (N, H, W, 3) on which weights are rounded."""
    folds: tuple[Fold, ...]
    """Parts of the calibration images for cross-validation; empty if others suffice to judge."""
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
    targets: tuple[TargetResult, ...] = ()
    """Verdict of every target for each INT8 graph."""

    @property
    def unfinished(self) -> tuple[Encoding, ...]:
        """Return the graphs whose search for layers in float ran out of time."""
        return tuple(found.encoding for found in self.float_layers if found.out_of_time)

    def record(self) -> CalibrationRecord:
        """Return the form that the command prints and the manifest holds."""
        return CalibrationRecord(
            method={encoding.value: recipe.calibrator for encoding, recipe in self.recipes.items()},
            images=len(self.digests),
            available=self.available,
            classes=self.balance,
            growth_percent=self.growth_percent,
            scoring_images=len(self.scoring.images),
            scores=self.scores,
            skipped=dict(self.skipped),
            float_layers=self.float_layers,
            points=self.points,
            targets=self.targets,
        )
