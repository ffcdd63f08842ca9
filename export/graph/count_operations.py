"""Work of each layer of a graph: multiply-accumulates, weights and activations."""

from __future__ import annotations

import onnx_ir as ir

from resdeploy.bundle.operation_counts import LayerWork, Work
from resdeploy.export.graph.float_layers import elements, macs
from resdeploy.export.graph.placement import WEIGHTED


def work_of(model: ir.Model) -> Work:
    """Return the work of a graph for one image; its values must have shapes."""
    return Work(
        layers=tuple(
            LayerWork(
                name=node.name or node.op_type,
                macs=macs(node),
                weights=elements(node.inputs[1], batch_axis=False),
                activations=elements(node.inputs[0]) + elements(node.outputs[0]),
            )
            for node in model.graph
            if node.op_type in WEIGHTED
        )
    )
