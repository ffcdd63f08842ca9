"""What a network answers with all, a part or nothing of its quantisation, on this machine's CPU."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from resdeploy.bundle.golden import Float32Array
from resdeploy.bundle.manifest import Encoding
from resdeploy.export.graph.placement import WEIGHTED
from resdeploy.export.graph.qdq import Weights, insert_qdq
from resdeploy.export.quantization.recipe import QuantizationRecipe
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.runtime.backends.onnxruntime.cpu import OnnxRuntimeCpu
from resdeploy.runtime.verification.golden_check import run_batches

# At once; all activations of a batch are in memory: 2 GB at 224 pixels where many are observed.
PIXELS_AT_ONCE, MOST_AT_ONCE = 16 * 224 * 224, 64
LARGE_BYTES = 1 << 10


@dataclass(frozen=True, slots=True)
class Site:
    """Where something is rounded."""

    tensor: str
    """The tensor that gives an activation its range, or the weight's name."""
    reader: tuple[str, int]
    """The node that reads it, and as which of its inputs."""
    weight: bool


def sites_of(model: ir.Model, recipe: QuantizationRecipe) -> frozenset[Site]:
    """All that `recipe` rounds, but for biases, whose grid is finer than any other by far."""
    nodes = {node.name: node for node in model.graph}
    sites = set[Site]()
    for edge in recipe.edges(model):
        for reader in edge.readers:
            sites.add(Site(edge.range_of, reader, weight=False))
            node = nodes[reader[0]]
            weight = node.inputs[1] if node.op_type in WEIGHTED else None
            if weight is not None and reader[1] == 0 and reader[0] not in recipe.in_float:
                sites.add(Site(str(weight.name), (reader[0], 1), weight=True))
    return frozenset(sites)


def rounded(
    model: ir.Model, recipe: QuantizationRecipe, sites: Collection[Site], weights: Weights
) -> ir.Model:
    """The FP32 graph, rounded at some of the recipe's sites.

    Args:
        model: The FP32 graph.
        recipe: The ranges of its activations.
        sites: Some of `sites_of(model, recipe)`.
        weights: All of them as integers, see `qdq.integer_weights`.
    """
    copy = model.clone()
    edges = [
        replace(edge, readers=chosen)
        for edge in recipe.edges(model)
        if (
            chosen := tuple(one for one in edge.readers if Site(edge.range_of, one, False) in sites)
        )
    ]
    insert_qdq(
        copy,
        edges,
        recipe.ranges,
        recipe.encoding,
        in_float={str(node.name) for node in model.graph},
    )
    for name in {site.tensor for site in sites if site.weight}:
        integers, scales = weights[name]
        values = integers * scales.reshape(-1, *[1] * (integers.ndim - 1))
        copy.graph.initializers[name].const_value = ir.tensor(values, name=name)
    return copy


def open_graph(model: ir.Model, encoding: Encoding) -> OnnxRuntimeCpu:
    """A session that reads the weights where they lie: hundreds are opened, and copies take long.

    Nor is the graph checked, which takes long, too: only the one that is chosen will be.
    """
    thin = model.clone()
    weights = {}
    for name, value in thin.graph.initializers.items():
        if (tensor := value.const_value) is not None and tensor.nbytes >= LARGE_BYTES:
            weights[name] = np.ascontiguousarray(tensor.numpy())
            value.const_value = ir.ExternalTensor(
                "memory",
                0,
                tensor.nbytes,
                tensor.dtype,
                shape=ir.Shape(weights[name].shape),
                name=name,
            )
    graph = ir.to_proto(thin).SerializeToString()
    return OnnxRuntimeCpu(graph, encoding, weights=weights)


def answers(model: ir.Model, encoding: Encoding, images: UInt8Array) -> Float32Array:
    """Logits (N, K) of images (N, H, W, 3)."""
    with closing(open_graph(model, encoding)) as backend:
        return run_batches(backend, images, batch_size(images.shape[1]))


def batch_size(image_size: int) -> int:
    """Images to run at once: more of small ones."""
    return int(np.clip(PIXELS_AT_ONCE // image_size**2, 1, MOST_AT_ONCE))
