"""A graph that holds every quantised tensor beside its float original, and a switch for each.

Hundreds of mixtures of INT8 and float run in one session, at FP32's speed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import onnx_ir as ir

from resdeploy.bundle import INPUT_NAME, OUTPUT_NAME, Float32Array
from resdeploy.errors import needs_extra
from resdeploy.export.recipe import Recipe
from resdeploy.export.to_onnx import to_bytes
from resdeploy.preprocessing import UInt8Array

SWITCHES = "switches"
BATCH = 16


@dataclass(frozen=True, slots=True)
class Site:
    """Where a quantised tensor is read."""

    tensor: str
    """The tensor that gives an activation its range, or the weight's name."""
    reader: tuple[str, int]
    """A node, and the number of the input."""
    weight: bool


class SwitchedGraph:
    """An INT8 graph of which any part can be switched to float. Biases stay quantised on CPUs."""

    def __init__(self, model: ir.Model, recipe: Recipe) -> None:
        """Build the graph from the FP32 graph, and open a session.

        Raises:
            MissingDependencyError: ONNX Runtime is not installed.
        """
        with needs_extra():
            import onnxruntime

        quantised, sites = _with_switches(model, recipe)
        self.sites: tuple[Site, ...] = tuple(sites)
        self._session = onnxruntime.InferenceSession(
            to_bytes(quantised), providers=["CPUExecutionProvider"]
        )

    def run(self, images: UInt8Array, quantised: Callable[[Site], bool]) -> Float32Array:
        """Logits (N, K) of images (N, H, W, 3), with the sites quantised that the function says."""
        switches = np.array([quantised(site) for site in self.sites], dtype=np.bool_)
        feeds = (
            {INPUT_NAME: images[start : start + BATCH], SWITCHES: switches}
            for start in range(0, len(images), BATCH)
        )
        return np.concatenate(
            [np.asarray(self._session.run([OUTPUT_NAME], feed)[0]) for feed in feeds]
        )

    def __enter__(self) -> SwitchedGraph:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del self._session  # frees its threads and memory


def _with_switches(model: ir.Model, recipe: Recipe) -> tuple[ir.Model, list[Site]]:
    """A graph with another input, `switches`, bool (S,), and the S sites they stand for."""
    quantised = recipe.apply(model, half=False)
    graph = quantised.graph
    range_of = {edge.tensor: edge.range_of for edge in recipe.edges(model)}
    sites: list[Site] = []
    switches = ir.Value(name=SWITCHES, type=ir.TensorType(ir.DataType.BOOL))
    graph.inputs.append(switches)
    for node in [node for node in graph if node.op_type == "DequantizeLinear"]:
        name = str(node.name).removesuffix(".dequantize")
        producer = node.inputs[0].producer() if node.inputs[0] is not None else None
        if producer is not None:
            original, tensor, weight = producer.inputs[0], range_of[name], False
        elif name.endswith(".weight"):
            original, tensor = _float_weight(graph, model.graph.initializers[name]), name
            weight = True
        else:
            continue
        for use in list(node.outputs[0].uses()):
            chosen = _switch(graph, node, original, switches, len(sites))
            sites.append(Site(tensor, (str(use.node.name), use.idx), weight))
            use.node.replace_input_with(use.idx, chosen)
    switches.shape = ir.Shape([len(sites)])
    return quantised, sites


def _float_weight(graph: ir.Graph, source: ir.Value) -> ir.Value:
    original = ir.Value(
        name=f"{source.name}.float", type=source.type, shape=source.shape,
        const_value=source.const_value,
    )  # fmt: skip
    graph.initializers.add(original)
    return original


def _switch(
    graph: ir.Graph, dequantize: ir.Node, original: ir.Value | None, switches: ir.Value, index: int
) -> ir.Value:
    """The dequantised value where switch `index` is on, else the original."""
    name = f"switch.{index}"
    where = ir.Value(
        name=f"{name}.index", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]),
        const_value=ir.tensor(np.array(index, dtype=np.int64)),
    )  # fmt: skip
    graph.initializers.add(where)
    flag = ir.node("Gather", [switches, where], {"axis": 0}, name=f"{name}.flag")
    flag.outputs[0].name = f"{name}.on"
    choose = ir.node("Where", [flag.outputs[0], dequantize.outputs[0], original], name=name)
    choose.outputs[0].name = f"{name}.chosen"
    graph.insert_after(dequantize, [flag, choose])
    return choose.outputs[0]
