"""Recipe that turns the FP32 graph into one of the INT8 graphs; `calibration.json` records it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx
import onnx_ir as ir

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.calibration_record import RecipeRecord, TensorRange, read_recipe_record
from resdeploy.bundle.manifest import Encoding, graph_name
from resdeploy.calibration.ranges import Range, Ranges
from resdeploy.export.graph.float16 import to_float16
from resdeploy.export.graph.float_layers import keep_in_float
from resdeploy.export.graph.placement import QuantizedEdge, place
from resdeploy.export.graph.qdq import (
    RoundedWeights,
    Weights,
    insert_qdq,
    integer_weights,
    stored_weights,
)
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
    rounded: RoundedWeights | None = field(default=None, compare=False, repr=False)
    """Weights that were rounded on images; None to round each weight alone."""

    def edges(self, model: ir.Model) -> tuple[QuantizedEdge, ...]:
        """Return the edges of the FP32 graph that are quantised."""
        return keep_in_float(model, place(model.graph, self.encoding), self.in_float, self.encoding)

    def weights(self, model: ir.Model) -> Weights:
        """Return the quantised weights of all layers, also of those in float."""
        alone = integer_weights(model, self.encoding)
        return {**alone, **(self.rounded.weights if self.rounded else {})}

    def apply(
        self, model: ir.Model, *, half: bool = True, weights: Weights | None = None
    ) -> ir.Model:
        """Return a quantised copy of the FP32 graph.

        With `half`, the float parts of TensorRT's and the DLA's graphs are float16, because
        TensorRT is slower with float32 between integers. Without it, the copy runs faster on CPUs,
        and its logits differ by far less than the noise of INT8. The result of `weights` saves time
        for many graphs of one network.
        """
        quantised = model.clone()
        edges = self.edges(model)
        rounded = self.rounded or RoundedWeights(weights={}, biases={})
        insert_qdq(
            quantised, edges, self.ranges, self.encoding,
            in_float=self.in_float, weights=weights or rounded.weights, biases=rounded.biases,
        )  # fmt: skip
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
    """Read the recipe of one encoding from the bundle's `calibration.json`, and its weights.

    Raises:
        BundleError: A file is damaged or has no recipe for this encoding.
    """
    record = read_recipe_record(bundle, encoding)
    file = bundle.artifact(graph_name("int8", encoding)).file
    exact, quantised = (
        ir.from_proto(onnx.load_from_string(bundle.read(name))) for name in ("fp32.onnx", file)
    )
    return QuantizationRecipe(
        encoding=encoding,
        calibrator=record.calibrator,
        ranges={
            tensor: Range(low=chosen.low, high=chosen.high)
            for tensor, chosen in record.ranges.items()
        },
        in_float=frozenset(record.in_float),
        rounded=stored_weights(exact, quantised),
    )
