"""Simulation of all, part or none of a graph's quantisation, on this machine's CPU."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from resdeploy.bundle.golden import Float32Array
from resdeploy.bundle.manifest import Encoding
from resdeploy.export.graph.placement import WEIGHTED
from resdeploy.export.graph.qdq import Weights, activation_parameters, insert_qdq
from resdeploy.export.quantization.recipe import QuantizationRecipe
from resdeploy.images.preprocessing import ImageSize, UInt8Array, pixel_count
from resdeploy.runtime.backends.onnxruntime.cpu import OnnxRuntimeCpu
from resdeploy.runtime.verification.golden_check import run_batches

# All activations of a batch are in memory: 67 MB for an image of 224 pixels in ResNet-50.
PIXELS_PER_BATCH, MAX_BATCH = 4 * 224 * 224, 64
MIN_SHARED_BYTES = 1 << 10  # copies of smaller weights take no time


@dataclass(frozen=True, slots=True)
class Site:
    """Input of a node at which a tensor is rounded."""

    tensor: str
    """Tensor that gives an activation its range, or name of the weight."""
    reader: tuple[str, int]
    """Name of the node that reads the tensor, and index of its input."""
    weight: bool


def sites_of(model: ir.Model, recipe: QuantizationRecipe) -> frozenset[Site]:
    """Return all sites that `recipe` rounds, except biases, whose step is far smaller."""
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


def round_at(
    model: ir.Model, recipe: QuantizationRecipe, sites: Collection[Site], weights: Weights
) -> ir.Model:
    """Return a copy of the FP32 graph that rounds at `sites`, a subset of `sites_of`.

    The `weights` are those of `recipe.weights`. A bias belongs to its rounded weight.
    """
    copy, all_edges = model.clone(), recipe.edges(model)
    parameters = activation_parameters(model.graph, all_edges, recipe.ranges, recipe.encoding)
    edges = [
        replace(edge, readers=readers)
        for edge in all_edges
        if (readers := tuple(r for r in edge.readers if Site(edge.range_of, r, False) in sites))
    ]
    all_nodes = {str(node.name) for node in model.graph}
    insert_qdq(
        copy, edges, recipe.ranges, recipe.encoding, in_float=all_nodes, parameters=parameters
    )
    nodes = {str(node.name): node for node in copy.graph}
    for site in sites:
        if site.weight:
            integers, scales = weights[site.tensor]
            values = integers * scales.reshape(-1, *[1] * (integers.ndim - 1))
            copy.graph.initializers[site.tensor].const_value = ir.tensor(values, name=site.tensor)
            biases = recipe.rounded.biases if recipe.rounded else {}
            for bias in nodes[site.reader[0]].inputs[2:]:
                if bias is not None and bias.name in biases:
                    bias.const_value = ir.tensor(biases[str(bias.name)], name=bias.name)
    return copy


def open_graph(model: ir.Model, encoding: Encoding) -> OnnxRuntimeCpu:
    """Open a session that reads the weights in place, without a check of the graph.

    A search opens hundreds of sessions, so copies of the weights and checks would take long. Graphs
    are checked when they are written.
    """
    thin = model.clone()
    weights = {}
    for name, value in thin.graph.initializers.items():
        if (tensor := value.const_value) is not None and tensor.nbytes >= MIN_SHARED_BYTES:
            weights[name] = np.ascontiguousarray(tensor.numpy())
            shape = ir.Shape(weights[name].shape)
            value.const_value = ir.ExternalTensor(
                "memory", 0, tensor.nbytes, tensor.dtype, shape=shape, name=name
            )
    return OnnxRuntimeCpu(ir.to_proto(thin).SerializeToString(), encoding, weights=weights)


def run_graph(model: ir.Model, encoding: Encoding, images: UInt8Array) -> Float32Array:
    """Return the logits (N, K) of images (N, H, W, 3)."""
    with closing(open_graph(model, encoding)) as backend:
        return run_batches(backend, images, batch_size(images.shape[1:3]))


def batch_size(image_size: ImageSize) -> int:
    """Return how many images of this size, in pixels, to run at once."""
    return int(np.clip(PIXELS_PER_BATCH // pixel_count(image_size), 1, MAX_BATCH))
