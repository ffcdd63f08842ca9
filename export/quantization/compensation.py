"""Weights of the graph for CPUs, rounded layer by layer on calibration images.

Each layer reads what the quantised layers before it compute. Its weights are rounded so that its
outputs change little (`calibration.weight_rounding`), and its bias takes up the mean of this
change. Differences between these inputs and those in FP32 are not corrected: a few images, whose
activations are far outside all ranges, would decide about the weights and biases for all others.

Source of the correction of biases: Nagel et al., "Data-free quantization through weight
equalization and bias correction" (2019), arXiv:1906.04721, section 4.2, here with
means of images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from resdeploy.bundle.golden import Float32Array
from resdeploy.calibration.histogram import Float64Array
from resdeploy.calibration.observer import activations
from resdeploy.calibration.weight_rounding import round_weights
from resdeploy.export.graph.placement import WEIGHTED, node_name, value_name
from resdeploy.export.graph.qdq import (
    QuantizedWeight,
    RoundedWeights,
    activation_parameters,
    insert_qdq,
)
from resdeploy.export.graph.saturation import pairs_of
from resdeploy.export.quantization.recipe import QuantizationRecipe
from resdeploy.export.quantization.simulate import batch_size
from resdeploy.images.preprocessing import UInt8Array, pixel_count
from resdeploy.progress import Progress

# Second moments of fewer images describe these images only. See docs/quantization.md.
FEWEST_IMAGES = 48
# 512 images of 32 pixels, or 64 of 224: their activations differ more than those of more places in
# an image do.
ROUNDING_PIXELS, MOST_IMAGES = 64 * 224 * 224, 512
# Positions in the maps of all images on which a layer's weights are rounded: 3.5 times the inputs
# of the widest layer of a ResNet-34.
ROWS = 16384


def rounding_images(size: tuple[int, int]) -> int:
    """Return the largest number of images of this size, in pixels, on which to round weights."""
    return min(MOST_IMAGES, max(FEWEST_IMAGES, ROUNDING_PIXELS // pixel_count(size)))


def compensated_weights(
    model: ir.Model, recipe: QuantizationRecipe, images: UInt8Array, progress: Progress
) -> RoundedWeights | None:
    """Return the weights and biases of all layers that `recipe` quantises.

    Args:
        model: FP32 graph.
        recipe: Recipe for CPUs.
        images: Calibration images (N, H, W, 3); the result is None if there are too few.
        progress: Progress of the layers.
    """
    if len(images) < FEWEST_IMAGES:
        return None
    size = batch_size(images.shape[1:3])
    batches = [images[first : first + size] for first in range(0, len(images), size)]
    readers = {
        reader: edge for edge in recipe.edges(model) for reader, index in edge.readers if index == 0
    }
    layers = [
        node
        for node in model.graph
        if node.op_type in WEIGHTED and node.name in readers and node.name not in recipe.in_float
    ]
    edges = recipe.edges(model)
    parameters = activation_parameters(model.graph, edges, recipe.ranges, recipe.encoding)
    weights, biases = dict(recipe.weights(model)), dict[str, Float32Array]()
    chosen: dict[str, QuantizedWeight] = {}
    with progress("rounding", len(layers)) as advance:
        for node in layers:
            edge = readers[node_name(node)]
            quantised = model.clone()
            insert_qdq(
                quantised, edges, recipe.ranges, recipe.encoding,
                in_float=recipe.in_float, weights=weights, biases=biases,
            )  # fmt: skip
            activation = parameters[edge.range_of]
            mean, moments = _input_moments(
                quantised, f"{edge.tensor}.quantized", activation.zero_point, node, batches
            )
            name, exact = _initializer(node, 1)
            parts = np.split(exact.reshape(len(exact), -1), len(moments))  # outputs of each group
            rounded = [
                round_weights(part, found, pairs_of(node)) for part, found in zip(parts, moments)
            ]
            integers, scales = (np.concatenate(values) for values in zip(*rounded))
            chosen[name] = weights[name] = integers.reshape(exact.shape), scales
            if len(node.inputs) > 2 and node.inputs[2] is not None:
                bias_name, bias = _initializer(node, 2)
                errors = np.concatenate(parts) - integers * scales[:, None].astype(np.float64)
                by_group = np.split(errors * float(activation.scale), len(moments))
                change = np.concatenate([part @ own for part, own in zip(by_group, mean)])
                biases[bias_name] = (bias + change).astype(np.float32)
            advance(1)
    return RoundedWeights(weights=chosen, biases=biases)


def _initializer(node: ir.Node, index: int) -> tuple[str, Float64Array]:
    value = node.inputs[index]
    assert value is not None
    assert value.const_value is not None
    return value_name(value), value.const_value.numpy().astype(np.float64)


def _input_moments(
    quantised: ir.Model, tensor: str, zero_point: int, node: ir.Node, batches: Sequence[UInt8Array]
) -> tuple[Float64Array, Float64Array]:
    """Return means (G, K) and covariances (G, K, K) of the integers that each group reads.

    The bias takes up any difference of means, so only the deviations from them matter.

    Args:
        quantised: Graph in which the layers before `node` are quantised; it is cut off here.
        tensor: Name of the integers that the layer reads.
        zero_point: Their zero point.
        node: Layer in the FP32 graph.
        batches: Images.
    """
    values = ir.convenience.create_value_mapping(quantised.graph)
    quantised.graph.outputs.clear()
    quantised.graph.outputs.append(values[tensor])
    passes.RemoveUnusedNodesPass()(quantised)
    graph = ir.to_proto(quantised).SerializeToString()
    groups = node.attributes.get_int("group", 1)
    generator = np.random.default_rng(0)
    sums, products, count = np.zeros(1), np.zeros(1), 0
    per_image = max(1, ROWS // sum(map(len, batches)))
    for _, integers in activations(graph, [tensor], batches):
        centred = integers.astype(np.float32) - zero_point
        rows = input_rows(centred, node, per_image, generator)
        count += len(rows)
        grouped = rows.reshape(len(rows), groups, -1).swapaxes(0, 1)  # (G, rows, K)
        sums = sums + grouped.sum(axis=1, dtype=np.float64)
        products = products + grouped.swapaxes(1, 2) @ grouped
    mean = sums / count
    return mean, products / count - mean[:, :, None] * mean[:, None, :]


def input_rows(
    values: Float32Array, node: ir.Node, per_image: int, generator: np.random.Generator
) -> Float32Array:
    """Return the inputs (rows, C, ...) of outputs of a layer at random positions in each image.

    Args:
        values: Tensor (N, C, ...) that the layer reads.
        node: Convolution or classifier.
        per_image: Number of positions in each image; if there are fewer, all are taken.
        generator: Generator of the positions.
    """
    if node.op_type == "Gemm":
        return values
    assert node.inputs[1] is not None
    assert node.inputs[1].shape is not None
    attributes, kernel = node.attributes, node.inputs[1].shape.numpy()[2:]
    strides = attributes.get_ints("strides", (1, 1))
    dilations = attributes.get_ints("dilations", (1, 1))
    top, left, bottom, right = attributes.get_ints("pads", (0, 0, 0, 0))
    padded = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)))
    reach = tuple((size - 1) * step + 1 for size, step in zip(kernel, dilations))
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(2, 3))
    windows = windows[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]
    size = windows.shape[2] * windows.shape[3]
    taken = [
        np.sort(generator.choice(size, per_image, replace=False))
        if per_image < size
        else np.arange(size)
        for _ in values
    ]
    rows, columns = np.divmod(np.stack(taken), windows.shape[3])
    images = np.arange(len(values))[:, None]
    found = windows[images, :, rows, columns]  # (N, positions, C, kh, kw)
    return found.reshape(-1, *found.shape[2:])
