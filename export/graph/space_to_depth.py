"""Space-to-depth for the first convolution, for faster INT8 kernels on CPUs.

ONNX Runtime has direct integer convolutions only for a multiple of four input channels. For the
three channels of an image, it copies the inputs of each output pixel first (im2col): the stem (the
first convolution) took as long as five layers of equal work. Space-to-depth turns blocks of two by
two pixels into pixels with twelve channels, or four for grey, and the 7x7 kernel of stride 2,
padded with a row and a column of zeros, into a 4x4 kernel of stride 1. The same products are
summed, so the integers stay identical.

Sources: ONNX Runtime, core/mlas/lib/convsym.cpp (MlasConvSymPackWSize); TensorFlow,
tensorflow/compiler/mlir/tensorflow/g3doc/space_to_depth.md; ONNX, operator SpaceToDepth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from resdeploy.export.graph.placement import QDQ

BLOCK = 2
IMAGE_CHANNELS = (1, 3)
Number = TypeVar("Number", bound=np.generic)


def apply_space_to_depth(model: ir.Model) -> None:
    """Rewrite the stem, a quantised convolution of stride 2 on one or three channels, in place.

    A stem in float, with another stride, or for images with odd sides is not changed.
    """
    for node in list(model.graph):
        if node.op_type == "Conv" and (stem := _match(node)) is not None:
            _rewrite(model.graph, stem)


@dataclass(frozen=True, slots=True)
class KernelAxis:
    """Spatial axis of a kernel, and its padding for blocks of two pixels."""

    size: int
    """Size of the kernel in pixels."""
    padding: int
    """Number of zeros before the image."""

    @property
    def margins(self) -> tuple[int, int]:
        """Number of zeros before and after the kernel that make its windows whole blocks.

        The first window begins `padding` pixels before the image; blocks begin at even pixels.
        """
        before = self.padding % BLOCK
        return before, -(before + self.size) % BLOCK

    def pads(self, inputs: int, outputs: int) -> tuple[int, int]:
        """Return the number of blocks of zeros before and after the image, from sizes in pixels."""
        blocks = (self.size + sum(self.margins)) // BLOCK
        before = (self.padding + self.margins[0]) // BLOCK
        return before, outputs - 1 + blocks - before - inputs // BLOCK


def space_to_depth_kernel(
    weight: npt.NDArray[Number], axes: Sequence[KernelAxis]
) -> npt.NDArray[Number]:
    """Return the kernel for blocks that computes the same as `weight` (O, C, kh, kw) for pixels.

    Its shape is (O, 4 C, kh', kw'), with half the height and width of `weight` with its margins.
    Channels have the order of SpaceToDepth: by row in the block, column, channel.
    """
    padded = np.pad(weight, [(0, 0), (0, 0), *(axis.margins for axis in axes)])
    outputs, channels, height, width = padded.shape
    blocks = padded.reshape(outputs, channels, height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    kernel = blocks.transpose(0, 3, 5, 1, 2, 4)
    return kernel.reshape(outputs, -1, height // BLOCK, width // BLOCK)


def packed_indices(node: ir.Node) -> npt.NDArray[np.intp] | None:
    """Return where each weight of the rewritten kernel comes from; None if it stays as it is.

    Args:
        node: Node with a weight of the FP32 graph, or of the quantised graph before the rewriting.

    Returns:
        Indices (1, 4 C, kh', kw') into the weight (C, kh, kw) of one output; -1 for added zeros.
    """
    if node.op_type != "Conv" or not _is_suitable(node):
        return None
    _, *shape = _shape(node.inputs[1])
    indices = np.arange(1, math.prod(shape) + 1, dtype=np.intp).reshape(1, *shape)
    return space_to_depth_kernel(indices, _kernel_axes(node, shape[1:])) - 1


def unpacked_kernel(node: ir.Node, kernel: npt.NDArray[Number]) -> npt.NDArray[Number]:
    """Return the kernel for pixels of one that may have been rewritten; `node` as above."""
    indices = packed_indices(node)
    if indices is None or kernel.shape[1:] != indices.shape[1:]:
        return kernel
    shape = _shape(node.inputs[1])
    order = np.argsort(indices, axis=None)[-math.prod(shape[1:]) :]  # added zeros come first
    return kernel.reshape(len(kernel), -1)[:, order].reshape(shape)


@dataclass(frozen=True, slots=True)
class _Stem:
    convolution: ir.Node
    quantize: ir.Node
    dequantize: ir.Node
    dequantize_weight: ir.Node


def _match(convolution: ir.Node) -> _Stem | None:
    """Return the stem that ends in `convolution`, or None if it is not a suitable stem."""
    dequantize, dequantize_weight = _producer(convolution, 0), _producer(convolution, 1)
    quantize = dequantize and _producer(dequantize, 0)
    if not (quantize and dequantize and dequantize_weight):
        return None
    is_suitable = _is_suitable(convolution) and len(dequantize.outputs[0].uses()) == 1
    return _Stem(convolution, quantize, dequantize, dequantize_weight) if is_suitable else None


def _is_suitable(convolution: ir.Node) -> bool:
    _, channels, *sides = _shape(convolution.inputs[0])
    attributes = convolution.attributes
    return (
        channels in IMAGE_CHANNELS
        and not any(side % BLOCK for side in sides)
        and attributes.get_ints("strides") == (BLOCK, BLOCK)
        and attributes.get_ints("dilations") == (1, 1)
    )


def _kernel_axes(convolution: ir.Node, sizes: Sequence[int]) -> list[KernelAxis]:
    pads = convolution.attributes.get_ints("pads", ())
    return [KernelAxis(*pair) for pair in zip(sizes, pads)]


def _rewrite(graph: ir.Graph, stem: _Stem) -> None:
    pixels, weight = stem.quantize.inputs[0], stem.dequantize_weight.inputs[0]
    assert pixels is not None
    assert weight is not None
    assert weight.const_value is not None
    kernel = weight.const_value.numpy()
    attributes = stem.convolution.attributes
    axes = _kernel_axes(stem.convolution, kernel.shape[2:])
    kernel = np.ascontiguousarray(space_to_depth_kernel(kernel, axes))
    weight.const_value = ir.tensor(kernel, name=weight.name)
    weight.shape = stem.dequantize_weight.outputs[0].shape = ir.Shape(kernel.shape)

    _, channels, *sides = _shape(pixels)
    assert pixels.shape is not None
    shape = (pixels.shape[0], channels * BLOCK**2, *(side // BLOCK for side in sides))
    blocks = ir.val(f"{pixels.name}.packed", type=pixels.type, shape=ir.Shape(shape))
    # SpaceToDepth is before QuantizeLinear, in float, because only recent versions of ONNX Runtime
    # support it for integers (its pull request 29154).
    node = ir.node(
        "SpaceToDepth", [pixels], {"blocksize": BLOCK}, outputs=[blocks], name=f"{pixels.name}.pack"
    )
    graph.insert_before(stem.quantize, node)
    stem.quantize.replace_input_with(0, blocks)
    for value in (stem.quantize.outputs[0], stem.dequantize.outputs[0]):
        value.shape = ir.Shape(shape)

    _, _, *output_sides = _shape(stem.convolution.outputs[0])
    pads = zip(*(axis.pads(*sizes) for axis, *sizes in zip(axes, sides, output_sides)))
    attributes.add(ir.AttrInt64s("kernel_shape", kernel.shape[2:]))
    attributes.add(ir.AttrInt64s("strides", (1, 1)))
    attributes.add(ir.AttrInt64s("pads", [*chain(*pads)]))


def _producer(node: ir.Node, index: int) -> ir.Node | None:
    """Return the QuantizeLinear or DequantizeLinear node that computes an input, or None."""
    value = node.inputs[index]
    producer = value.producer() if value is not None else None
    return producer if producer is not None and producer.op_type in QDQ else None


def _shape(value: ir.Value | None) -> tuple[int, ...]:
    """Return the shape of a tensor, with -1 for dynamic axes."""
    assert value is not None
    assert value.shape is not None
    return tuple(side if isinstance(side, int) else -1 for side in value.shape)
