"""Weights of the INT8 graphs, rounded layer by layer on calibration images.

Each layer reads what the quantised layers before it in the graph for CPUs compute. Its weights are
rounded so that its outputs change little (`calibration.weight_rounding`), and its bias takes up the
mean of this change. Differences between these inputs and those in FP32 are not corrected: a few
images, whose activations are far outside all ranges, would decide about the weights and biases for
all others.

Source of the correction of biases: Nagel et al., "Data-free quantization through weight
equalization and bias correction" (2019), arXiv:1906.04721, section 4.2, here with means of images.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from resdeploy.bundle.golden import Float32Array
from resdeploy.bundle.manifest import INPUT_NAME, Encoding
from resdeploy.calibration.calibrators import CALIBRATORS
from resdeploy.calibration.histogram import Float64Array
from resdeploy.calibration.observer import run_feeds
from resdeploy.calibration.weight_rounding import round_depthwise, round_weights
from resdeploy.export.graph.float_layers import elements
from resdeploy.export.graph.placement import WEIGHTED, QuantizedEdge, node_name, value_name
from resdeploy.export.graph.qdq import (
    QuantizedWeight,
    RoundedWeights,
    activation_parameters,
    insert_qdq,
)
from resdeploy.export.graph.saturation import is_depthwise, pairs_of
from resdeploy.export.quantization.recipe import QuantizationRecipe
from resdeploy.export.quantization.result import Calibration
from resdeploy.export.quantization.simulate import batch_size, round_at, sites_of
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
# The covariances between inputs are reduced by this number divided by that of the images, because
# those of few images describe these images better than others. See docs/quantization.md.
SHRINKAGE = 12
# Bytes of activations that are kept until the layers that need them have run: three tensors of
# a ResNet-34 have 100 MB on 512 images of 32 pixels, and 39 MB on 64 of 224. What does not fit is
# computed again.
MOST_KEPT = 1 << 30


def rounding_images(size: tuple[int, int]) -> int:
    """Return the largest number of images of this size, in pixels, on which to round weights."""
    return min(MOST_IMAGES, max(FEWEST_IMAGES, ROUNDING_PIXELS // pixel_count(size)))


def with_rounded_weights(calibration: Calibration, progress: Progress) -> Calibration:
    """Return the calibration with weights that are rounded on its calibration images."""
    images = calibration.rounding
    recipes = rounded_recipes(calibration.model, calibration.recipes, images, progress)
    return replace(calibration, recipes=recipes)


def rounded_recipes(
    model: ir.Model,
    recipes: Mapping[Encoding, QuantizationRecipe],
    images: UInt8Array,
    progress: Progress,
) -> dict[Encoding, QuantizationRecipe]:
    """Return the recipes with weights that are rounded on `images` (N, H, W, 3).

    All graphs have the weights for CPUs, of which no two saturate: to round them again on the
    activations of another graph takes as long, and gains 0.2 to 0.5 dB. See docs/quantization.md.

    Training with quantisation has already moved weights to the grid of TensorRT's graph, which
    keeps them. Those for CPUs are rounded from there, and change only where a pair could saturate.
    """
    tensorrt = recipes[Encoding.TENSORRT]
    is_learned = tensorrt.calibrator not in CALIBRATORS
    if is_learned:
        sites = {site for site in sites_of(model, tensorrt) if site.weight}
        model = round_at(model, tensorrt, sites, tensorrt.weights(model))
    rounded = compensated_weights(model, recipes[Encoding.CPU], images, progress)
    found = {encoding: replace(recipe, rounded=rounded) for encoding, recipe in recipes.items()}
    return {**found, Encoding.TENSORRT: tensorrt} if is_learned else found


def compensated_weights(
    model: ir.Model, recipe: QuantizationRecipe, images: UInt8Array, progress: Progress
) -> RoundedWeights | None:
    """Return the weights and biases of all layers that `recipe`, for CPUs, quantises.

    Return None if there are too few calibration images (N, H, W, 3).
    """
    if len(images) < FEWEST_IMAGES:
        return None
    size, edges = batch_size(images.shape[1:3]), recipe.edges(model)
    batches = [images[first : first + size] for first in range(0, len(images), size)]
    parameters = activation_parameters(model.graph, edges, recipe.ranges, recipe.encoding)
    inputs = {name: edge for edge in edges for name, index in edge.readers if index == 0}
    layers = {
        node_name(node): node
        for node in model.graph
        if node.op_type in WEIGHTED and node.name in inputs and node.name not in recipe.in_float
    }
    later = dict.fromkeys(layers)  # in the order of the graph
    known = KnownActivations(batches)
    weights, biases = dict[str, QuantizedWeight](), dict[str, Float32Array]()
    costs = np.cumsum([layer_cost(node, len(images)) for node in layers.values()])
    percent = [0, *(100 * costs // costs[-1]).tolist()] if layers else []
    with progress("rounding the INT8 weights", 100) as advance:
        for index, (layer, node) in enumerate(layers.items()):
            edge, quantised = inputs[layer], model.clone()
            insert_qdq(
                quantised, edges, recipe.ranges, recipe.encoding,
                in_float=recipe.in_float.union(later), weights=weights, biases=biases,
            )  # fmt: skip
            known.forget_unless_needed(quantised.graph, [_stored(inputs[name]) for name in later])
            del later[layer]
            activation = parameters[edge.range_of]
            integers_read = known.batches(quantised, _stored(edge))
            means, moments = _input_moments(integers_read, activation.zero_point, node, len(images))
            name, exact = _initializer(node, 1)
            flat = exact.reshape(len(exact), -1)
            if is_depthwise(node) and len(moments) == len(exact):
                integers, scales = round_depthwise(flat, moments)
            else:
                pairs = pairs_of(node)
                parts = [
                    round_weights(part, found, pairs)
                    for part, found in zip(np.split(flat, len(moments)), moments)
                ]
                integers, scales = (np.concatenate(some) for some in zip(*parts))
            errors = flat - integers * scales[:, None].astype(np.float64)
            read = np.repeat(means, len(flat) // len(means), axis=0)  # by output, (O, K)
            changes = np.einsum("ok,ok->o", errors, read) * float(activation.scale)
            weights[name] = integers.reshape(exact.shape), scales
            if len(node.inputs) > 2 and node.inputs[2] is not None:
                name, bias = _initializer(node, 2)
                biases[name] = (bias + changes).astype(np.float32)
            advance(percent[index + 1] - percent[index])
    return RoundedWeights(weights=weights, biases=biases)


class KnownActivations:
    """Integers of tensors on all images, from which those of later layers are computed."""

    def __init__(self, images: Sequence[UInt8Array]) -> None:
        self._images = images  # take no further memory
        self._kept: dict[str, list[npt.NDArray[Any]]] = {}

    def batches(self, quantised: ir.Model, tensor: str) -> Iterator[npt.NDArray[Any]]:
        """Yield a tensor of the graph for each batch, and keep it within `MOST_KEPT`."""
        known = {INPUT_NAME: self._images, **self._kept}
        sources = sorted(self._sources(quantised.graph, [tensor]))
        if sources == [tensor]:
            yield from known[tensor]
            return
        part = ir.convenience.extract(quantised.graph, sources, [tensor])
        graph = ir.to_proto(ir.Model(part, ir_version=quantised.ir_version)).SerializeToString()
        feeds = (dict(zip(sources, batch)) for batch in zip(*(known[name] for name in sources)))
        free = MOST_KEPT - sum(batch.nbytes for kept in self._kept.values() for batch in kept)
        computed = self._kept[tensor] = []
        for _, values in run_feeds(graph, [tensor], feeds):
            free -= values.nbytes
            if free >= 0:
                computed.append(values)
            else:
                self._kept.pop(tensor, None)
                computed.clear()
            yield values

    def forget_unless_needed(self, graph: ir.Graph, tensors: Collection[str]) -> None:
        """Keep only what `tensors`, of the graph, are computed from."""
        needed = self._sources(graph, tensors)
        self._kept = {name: kept for name, kept in self._kept.items() if name in needed}

    def _sources(self, graph: ir.Graph, tensors: Collection[str]) -> set[str]:
        """Return the last known tensors on all paths to `tensors`, which may be known, too."""
        values = ir.convenience.create_value_mapping(graph)
        found, seen, waiting = set[str](), set[str](), list(tensors)
        while waiting:
            name = waiting.pop()
            producer = values[name].producer()
            if name in self._kept or name == INPUT_NAME:
                found.add(name)
            elif name not in seen and producer is not None:
                waiting += [value_name(value) for value in producer.inputs if value is not None]
            seen.add(name)
        return found


def layer_cost(node: ir.Node, images: int) -> int:
    """Return a number in roughly constant proportion to the time to round a layer on `images`.

    The terms are those of gathering its inputs, of their products, and of rounding its outputs. The
    factors are fitted to the processor time of each layer of a ResNet-18 (120 images of 128 pixels)
    and a ResNet-34 (512 images of 32 pixels), with one thread of an EPYC, 2026-11-29. After
    the second layer and later, the total time that follows is 0.88 to 1.5 times the true one; by
    the square of a layer's inputs alone, it was up to 4.9 times.
    """
    group, outputs = node.attributes.get_int("group", 1), elements(node.outputs[0])
    columns = elements(node.inputs[1])  # weights of one output channel
    channels = elements(node.inputs[1], batch_axis=False) // columns
    rows = images * min(max(1, ROWS // images), outputs // channels)
    return columns * (group * rows * (columns + 500) + 20 * channels * columns)


def _stored(edge: QuantizedEdge) -> str:
    """Return the name of the integers of an edge in the quantised graph."""
    return f"{edge.tensor}.quantized"


def _initializer(node: ir.Node, index: int) -> tuple[str, Float64Array]:
    value = node.inputs[index]
    assert value is not None
    assert value.const_value is not None
    return value_name(value), value.const_value.numpy().astype(np.float64)


def _input_moments(
    batches: Iterable[npt.NDArray[Any]], zero_point: int, node: ir.Node, images: int
) -> tuple[Float64Array, Float64Array]:
    """Return means (G, K) and covariances (G, K, K) of the integers that a layer reads.

    The bias takes up any difference of means, so only the deviations from them matter.

    Source of the shrinkage, here with a share in proportion to 1 / `images` and towards the
    variances: Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance
    matrices", Journal of Multivariate Analysis 88 (2004) 365-411.
    """
    groups = node.attributes.get_int("group", 1)
    generator = np.random.default_rng(0)
    sums, products, count = np.zeros(1), np.zeros(1), 0
    per_image = max(1, ROWS // images)
    for integers in batches:
        values = integers.astype(np.float32) - zero_point
        rows = input_rows(values, node, per_image, generator)
        count += len(rows)
        grouped = rows.reshape(len(rows), groups, -1).swapaxes(0, 1)  # (G, rows, K)
        sums = sums + grouped.sum(axis=1, dtype=np.float64)
        products = products + grouped.swapaxes(1, 2) @ grouped
    mean = sums / count
    covariances = products / count - mean[:, :, None] * mean[:, None, :]
    diagonal = np.arange(mean.shape[1])
    variances = covariances[:, diagonal, diagonal]  # a copy
    covariances *= 1 - min(1.0, SHRINKAGE / images)  # in place: the largest has 4608 inputs
    covariances[:, diagonal, diagonal] = variances
    return mean, covariances


def input_rows(
    values: Float32Array, node: ir.Node, per_image: int, generator: np.random.Generator
) -> Float32Array:
    """Return the inputs (rows, C, ...) of outputs of a layer at random positions in each image.

    If the maps have fewer positions than `per_image`, all are taken. `values` (N, C, ...) is the
    tensor that the convolution or classifier reads.
    """
    if node.op_type == "Gemm":
        return values
    assert node.inputs[1] is not None
    assert node.inputs[1].shape is not None
    attributes, kernel = node.attributes, node.inputs[1].shape.numpy()[2:]
    strides = attributes.get_ints("strides", (1, 1))
    top, left, bottom, right = attributes.get_ints("pads", (0, 0, 0, 0))
    padded = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)))
    steps = attributes.get_ints("dilations", (1, 1))
    spans = tuple((size - 1) * step + 1 for size, step in zip(kernel, steps))
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=(2, 3))
    windows = windows[:, :, :: strides[0], :: strides[1], :: steps[0], :: steps[1]]
    size = windows.shape[2] * windows.shape[3]
    taken = np.stack([generator.permutation(size)[:per_image] for _ in values])
    rows, columns = np.divmod(taken, windows.shape[3])
    images = np.arange(len(values))[:, None]
    found = windows[images, :, rows, columns]  # (N, positions, C, kh, kw)
    return found.reshape(-1, *found.shape[2:])
