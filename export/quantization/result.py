"""TODO."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import onnx_ir as ir

from resdeploy.bundle.bundle import CALIBRATION
from resdeploy.bundle.calibration_record import ClassBalance, FloatLayers, Score, TradeOffPoint
from resdeploy.bundle.manifest import Encoding
from resdeploy.calibration.ranges import TensorStatistics
from resdeploy.export.quantization.recipe import QuantizationRecipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Ranges for every quantised tensor of both encodings, and how they came about."""

    model: ir.Model
    """The FP32 graph that the ranges are for, its channels equalised unless ranges were learned."""
    recipes: Mapping[Encoding, QuantizationRecipe]
    scores: tuple[Score, ...]
    """Of every calibrator that was tried; empty where there was nothing to choose."""
    digests: tuple[str, ...]
    """sha256 of the pixels of the images that were calibrated on."""
    selection_digests: tuple[str, ...]
    """The same of the images on which calibrators were scored and layers handed back."""
    scoring_images: int
    refused: Mapping[str, int]
    """Images that were passed over, by reason."""
    balance: ClassBalance | None
    """None where the classes of the images are not known."""
    growth_percent: float
    """By how much the largest value grew as the images doubled: of the tensors, the median."""
    statistics: Mapping[str, TensorStatistics]
    float_layers: tuple[FloatLayers, ...] = ()
    """What was given up to hold a gate, or could be given up in the time that was allowed."""
    tried: tuple[MixtureEvaluation, ...] = ()
    """Mixtures of INT8 and float."""
    points: tuple[TradeOffPoint, ...] = ()
    """All of that, with times: see `tradeoff.trade_off`."""

    def summary(self) -> dict[str, Any]:
        """What the command prints, and the manifest records."""
        return {
            "method": {kind.value: recipe.calibrator for kind, recipe in self.recipes.items()},
            "images": len(self.digests),
            "classes": asdict(self.balance) if self.balance else None,
            "growth_percent": self.growth_percent,
            "scoring_images": self.scoring_images,
            "scores": [asdict(score) for score in self.scores],
            "refused": dict(self.refused),
            "float_layers": [asdict(handback) for handback in self.float_layers],
            "points": [asdict(point) for point in self.points],
            "scales_file": CALIBRATION,
        }


def with_dla(calibration: Calibration) -> Calibration:
    """With the same ranges for a graph that is quantised wherever the CPU's is.

    Nothing is float there, neither shortcuts nor layers that a gate handed back.
    """
    everywhere = calibration.recipes[Encoding.CPU]
    recipe = replace(everywhere, encoding=Encoding.DLA, in_float=frozenset())
    return replace(calibration, recipes={**calibration.recipes, Encoding.DLA: recipe})


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureEvaluation:
    """One mixture, and how it did on the gate's images."""

    encoding: Encoding
    layers: tuple[str, ...]
    """Those that were handed back to float."""
    nodes: frozenset[str]
    """Theirs."""
    agreement: float
    drop: float
    images: int
    holds: bool
    """Whether the gate does."""
    p50_ms: float | None = None
    """Of one image, where it was measured."""
