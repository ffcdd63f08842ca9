"""All that turns the FP32 graph into one of the INT8 graphs: what `calibration.json` records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import onnx_ir as ir

from resdeploy.bundle.bundle import CALIBRATION, Bundle
from resdeploy.bundle.manifest import Encoding
from resdeploy.calibration.ranges import Range, Ranges
from resdeploy.errors import BundleError
from resdeploy.export.graph.float16 import to_float16
from resdeploy.export.graph.layers import keep_in_float
from resdeploy.export.graph.placement import QuantizedEdge, place
from resdeploy.export.graph.qdq import Weights, insert_qdq
from resdeploy.export.graph.space_to_depth import apply_space_to_depth


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationRecipe:
    """For one encoding: a range for every quantised tensor, and what is not quantised after all."""

    encoding: Encoding
    calibrator: str
    ranges: Ranges
    in_float: frozenset[str] = frozenset()
    """Nodes that were handed back to float."""

    def edges(self, model: ir.Model) -> tuple[QuantizedEdge, ...]:
        """The edges of the FP32 graph that are quantised."""
        return keep_in_float(model, place(model.graph, self.encoding), self.in_float, self.encoding)

    def apply(
        self, model: ir.Model, *, half: bool = True, weights: Weights | None = None
    ) -> ir.Model:
        """A quantised copy of the FP32 graph.

        Args:
            model: The FP32 graph.
            half: For TensorRT and DLA, float16 between the integers: float32 islands are slower
                than a graph that is float16 throughout. Without, the copy runs faster on CPUs, and
                differs by far less than INT8 does.
            weights: See `insert_qdq`.
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

    def to_json(self) -> dict[str, Any]:
        """Text and numbers only; `read_recipe` reads it."""
        return {
            "calibrator": self.calibrator,
            "in_float": sorted(self.in_float),
            "ranges": {tensor: asdict(chosen) for tensor, chosen in self.ranges.items()},
        }


def write_recipes(recipes: Mapping[Encoding, QuantizationRecipe]) -> bytes:
    """The content of `calibration.json`."""
    document = {encoding.value: recipe.to_json() for encoding, recipe in recipes.items()}
    return (json.dumps(document, indent=2) + "\n").encode()


def read_recipe(bundle: Bundle, encoding: Encoding) -> QuantizationRecipe:
    """What the bundle's `calibration.json` holds for `encoding`.

    Raises:
        BundleError: the file is damaged.
    """
    try:
        document = json.loads(bundle.read(CALIBRATION))[encoding.value]
        return QuantizationRecipe(
            encoding=encoding,
            calibrator=str(document["calibrator"]),
            ranges={
                str(tensor): Range(low=float(ends["low"]), high=float(ends["high"]))
                for tensor, ends in document["ranges"].items()
            },
            in_float=frozenset(str(node) for node in document["in_float"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(
            f"{bundle.path / CALIBRATION} cannot be used: {error!r}", "export the bundle again"
        ) from error
