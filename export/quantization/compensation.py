"""Weights of the graph for CPUs, rounded layer by layer on calibration images.

Each layer reads what the quantised layers before it compute. Its weights are rounded so that the
outputs change little (`calibration.weight_rounding`). Its bias takes up the median over the images
of the difference between the means of these outputs and of FP32's, which the layers before it
cause, too. A mean over the images would correct the clipping of a few images with huge activations,
and shift the outputs of all others.

Source of the correction of biases: Nagel et al., "Data-free quantization through weight
equalization and bias correction" (2019), arXiv:1906.04721, section 4.2, here on images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnx_ir.passes.common as passes

from resdeploy.bundle.golden import Float32Array
from resdeploy.calibration.histogram import Float64Array
from resdeploy.calibration.observer import activations
from resdeploy.calibration.weight_rounding import round_weights
from resdeploy.export.graph.placement import WEIGHTED, node_name, value_name
from resdeploy.export.graph.qdq import RoundedWeights, activation_parameters, insert_qdq
from resdeploy.export.graph.saturation import pairs_of
from resdeploy.export.graph.to_onnx import with_outputs
from resdeploy.export.quantization.recipe import QuantizationRecipe
from resdeploy.export.quantization.simulate import batch_size
from resdeploy.images.preprocessing import UInt8Array, pixel_count
from resdeploy.progress import Progress

# Second moments of fewer images describe these images only. See docs/quantization.md.
FEWEST_IMAGES = 32
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
    positions = {node_name(node): _positions(node, len(images)) for node in layers}
    outputs = _output_means(model, layers, batches, positions)
    parameters = activation_parameters(
        model.graph, recipe.edges(model), recipe.ranges, recipe.encoding
    )
    weights, biases = dict(recipe.weights(model)), dict[str, Float32Array]()
    with progress("rounding", len(layers)) as advance:
        for node in layers:
            edge = readers[node_name(node)]
            quantised = model.clone()
            insert_qdq(
                quantised, recipe.edges(model), recipe.ranges, recipe.encoding,
                in_float=recipe.in_float, weights=weights, biases=biases,
            )  # fmt: skip
            tensor = f"{edge.tensor}.quantized"
            graph = _only_output(quantised, tensor)
            chosen = parameters[edge.range_of]
            means, moments = _input_moments(
                graph, tensor, node, batches, positions[node_name(node)], chosen.zero_point
            )
            name, exact = _initializer(node, 1)
            groups = len(moments)
            rounded = [
                round_weights(part.reshape(len(part), -1), found, pairs_of(node))
                for part, found in zip(np.split(exact, groups), moments)
            ]
            integers = np.concatenate([part for part, _ in rounded]).reshape(exact.shape)
            scales = np.concatenate([part for _, part in rounded])
            weights[name] = integers, scales
            if len(node.inputs) > 2 and node.inputs[2] is not None:
                grouped = integers.reshape(groups, len(exact) // groups, -1).astype(np.float64)
                products = np.einsum("ngk,gok->ngo", means, grouped).reshape(len(images), -1)
                differences = outputs[node_name(node)] - products * scales * float(chosen.scale)
                bias = np.median(differences, axis=0)
                biases[value_name(node.inputs[2])] = bias.astype(np.float32)
            advance(1)
    return RoundedWeights(weights={name: weights[name] for name in _names(layers)}, biases=biases)


def _names(layers: Sequence[ir.Node]) -> list[str]:
    return [value_name(node.inputs[1]) for node in layers]


def _initializer(node: ir.Node, index: int) -> tuple[str, Float64Array]:
    value = node.inputs[index]
    assert value is not None
    assert value.const_value is not None
    return value_name(value), value.const_value.numpy().astype(np.float64)


def _positions(node: ir.Node, images: int) -> npt.NDArray[np.intp]:
    """Return positions (images, P) in the output maps of a layer, other ones for each image."""
    shape = node.outputs[0].shape
    assert shape is not None
    size = int(np.prod([int(side) for side in shape[2:]]))
    per_image = min(max(1, ROWS // images), size)
    generator = np.random.default_rng(0)
    return np.stack([generator.permutation(size)[:per_image] for _ in range(images)])


def _output_means(
    model: ir.Model,
    layers: Sequence[ir.Node],
    batches: Sequence[UInt8Array],
    positions: dict[str, npt.NDArray[np.intp]],
) -> dict[str, Float64Array]:
    """Return the mean outputs (images, O) of each layer in FP32, at its positions."""
    names = {value_name(node.outputs[0]): node_name(node) for node in layers}
    known = {value_name(value) for value in model.graph.outputs}
    graph = with_outputs(model, [tensor for tensor in names if tensor not in known])
    means: dict[str, list[Float64Array]] = {name: [] for name in names.values()}
    for tensor, values in activations(graph, list(names), batches):
        name = names[tensor]
        done = sum(map(len, means[name]))
        chosen = positions[name][done : done + len(values), None]  # (N, 1, P)
        flat = values.reshape(*values.shape[:2], -1)
        means[name].append(np.take_along_axis(flat, chosen, axis=2).mean(axis=2, dtype=np.float64))
    return {name: np.concatenate(parts) for name, parts in means.items()}


def _only_output(model: ir.Model, tensor: str) -> bytes:
    """Return the serialised part of a graph that computes one tensor."""
    values = ir.convenience.create_value_mapping(model.graph)
    model.graph.outputs.clear()
    model.graph.outputs.append(values[tensor])
    passes.RemoveUnusedNodesPass()(model)
    return ir.to_proto(model).SerializeToString()


def _input_moments(
    graph: bytes,
    tensor: str,
    node: ir.Node,
    batches: Sequence[UInt8Array],
    positions: npt.NDArray[np.intp],
    zero_point: int,
) -> tuple[Float64Array, Float64Array]:
    """Return the means of each image (N, G, K) and covariances (G, K, K) of a layer's inputs.

    Inputs are integers. The bias takes up any difference of means, so that only the deviations from
    them matter.
    """
    groups = node.attributes.get_int("group", 1)
    means: list[Float64Array] = []
    products, done = np.zeros(1), 0
    for _, values in activations(graph, [tensor], batches):
        integers = values.astype(np.float32) - zero_point
        rows = _rows(integers, node, positions[done : done + len(values)])
        done += len(values)
        means.append(
            rows.reshape(len(values), -1, groups, rows[0].size // groups).mean(axis=1, dtype=np.float64)
        )
        grouped = rows.reshape(len(rows), groups, -1).swapaxes(0, 1)  # (G, rows, K)
        products = products + grouped.swapaxes(1, 2) @ grouped
    joined = np.concatenate(means)
    mean = joined.mean(axis=0)
    return joined, products / positions.size - mean[:, :, None] * mean[:, None, :]


def _rows(
    values: Float32Array, node: ir.Node, positions: npt.NDArray[np.intp]
) -> Float32Array:
    """Return the inputs (N P, C, ...) of the outputs of a layer at `positions` (N, P)."""
    if node.op_type == "Gemm":
        return values
    attributes = node.attributes
    assert node.inputs[1] is not None
    assert node.inputs[1].shape is not None
    kernel = node.inputs[1].shape.numpy()[2:]
    strides = attributes.get_ints("strides", (1, 1))
    dilations = attributes.get_ints("dilations", (1, 1))
    top, left, bottom, right = attributes.get_ints("pads", (0, 0, 0, 0))
    padded = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)))
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilations)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(2, 3))
    windows = windows[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]
    rows, columns = np.divmod(positions, windows.shape[3])
    images = np.arange(len(values))[:, None]
    return windows[images, :, rows, columns].reshape(positions.size, *windows.shape[1:2], *kernel)

