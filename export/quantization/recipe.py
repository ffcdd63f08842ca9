"""Recipe that turns the FP32 graph into one of the INT8 graphs; `calibration.json` records it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.calibration_record import RecipeRecord, TensorRange, read_recipe_record
from resdeploy.bundle.manifest import Encoding
from resdeploy.calibration.ranges import Range, Ranges
from resdeploy.export.graph.float16 import to_float16
from resdeploy.export.graph.float_layers import keep_in_float
from resdeploy.export.graph.placement import QuantizedEdge, place
from resdeploy.export.graph.qdq import Weights, insert_qdq
from resdeploy.export.graph.space_to_depth import apply_space_to_depth
from resdeploy.json_documents import jsonable


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationRecipe:
    """Ranges of all quantised tensors of one encoding, and the nodes that stay in float."""

    encoding: Encoding
    calibrator: str
    ranges: Ranges
    in_float: frozenset[str] = frozenset()
    """Names of the nodes that stay in float."""

    def edges(self, model: ir.Model) -> tuple[QuantizedEdge, ...]:
        """Return the edges of the FP32 graph that are quantised."""
        return keep_in_float(model, place(model.graph, self.encoding), self.in_float, self.encoding)

    def apply(
        self, model: ir.Model, *, half: bool = True, weights: Weights | None = None
    ) -> ir.Model:
        """Return a quantised copy of the FP32 graph.

        With `half`, the float parts of TensorRT's and the DLA's graphs are float16, because
        TensorRT is slower with float32 between integers. Without it, the copy runs faster on CPUs,
        and its logits differ by far less than the noise of INT8. For `weights`, see `insert_qdq`.
        """
        quantised = model.clone()
        edges = self.edges(model)
        insert_qdq(
            quantised, edges, self.ranges, self.encoding, in_float=self.in_float, weights=weights
        )
        if self.encoding is Encoding.CPU:
            apply_space_to_depth(quantised)
        elif half:
            to_float16(quantised)
        return quantised


def encode_recipes(recipes: Mapping[Encoding, QuantizationRecipe]) -> bytes:
    """Return the content of `calibration.json`."""
    records = {
        encoding.value: RecipeRecord(
            calibrator=recipe.calibrator,
            in_float=tuple(sorted(recipe.in_float)),
            ranges={
                tensor: TensorRange(low=chosen.low, high=chosen.high)
                for tensor, chosen in recipe.ranges.items()
            },
        )
        for encoding, recipe in recipes.items()
    }
    return (json.dumps(jsonable(records), indent=2) + "\n").encode()


def read_recipe(bundle: Bundle, encoding: Encoding) -> QuantizationRecipe:
    """Read the recipe of one encoding from the bundle's `calibration.json`.

    Raises:
        BundleError: The file is damaged or has no recipe for this encoding.
    """
    record = read_recipe_record(bundle, encoding)
    return QuantizationRecipe(
        encoding=encoding,
        calibrator=record.calibrator,
        ranges={
            tensor: Range(low=chosen.low, high=chosen.high)
            for tensor, chosen in record.ranges.items()
        },
        in_float=frozenset(record.in_float),
    )
