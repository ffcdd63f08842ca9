"""What each layer of a graph asks of a machine: products, weights, activations."""

from __future__ import annotations

import math

import onnx
import onnx_ir as ir

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.work import LayerWork, Work
from resdeploy.export.graph.layers import products
from resdeploy.export.graph.placement import WEIGHTED


def work_of(model: ir.Model) -> Work:
    """Count a graph whose values have shapes, their first axis being the batch."""
    return Work(
        layers=tuple(
            LayerWork(
                name=node.name or node.op_type,
                macs=products(node),
                weights=_elements(node.inputs[1]),
                activations=_elements(node.inputs[0], skip=1) + _elements(node.outputs[0], skip=1),
            )
            for node in model.graph
            if node.op_type in WEIGHTED
        )
    )


def work_of_bundle(bundle: Bundle) -> Work:
    """What the manifest says, or, where an earlier version wrote it, what `fp32.onnx` says.

    Raises:
        BundleError: the graph is damaged.
    """
    return bundle.manifest.work or work_of(
        ir.from_proto(onnx.load_from_string(bundle.read("fp32.onnx")))
    )


def _elements(value: ir.Value | None, skip: int = 0) -> int:
    """Of a tensor without its first `skip` axes."""
    assert value is not None
    assert value.shape is not None
    sizes = value.shape[skip:]
    numbers = [size for size in sizes if isinstance(size, int)]
    assert len(numbers) == len(sizes), f"{value.name} has an open shape: {value.shape}"
    return math.prod(numbers)
