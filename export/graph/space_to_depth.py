"""The convolution that reads the picture, laid out as a CPU's integer kernels like it.

ONNX Runtime convolves directly where the channels are a multiple of four. Of a picture's three it
gathers, for each output pixel, all that the kernel sees, and multiplies then: the stem took as long
as five layers of equal work. Every two by two pixels become one of twelve channels, and the 7x7
kernel of stride 2, with a row and a column of zeros, a 4x4 kernel of stride 1. The same products
are summed: the integers stay the same to the last bit.

Sources: ONNX Runtime, core/mlas/lib/convsym.cpp (MlasConvSymPackWSize); TensorFlow,
tensorflow/compiler/mlir/tensorflow/g3doc/space_to_depth.md; ONNX, operator SpaceToDepth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

BLOCK = 2
COLOURS = 3
ROUNDING = ("QuantizeLinear", "DequantizeLinear")
Number = TypeVar("Number", bound=np.generic)


def pack_stem(model: ir.Model) -> None:
    """Rewrite a quantised convolution of stride 2 that reads a picture's colours, in place.

    A stem with another stride, in float, or of a picture with odd sides stays as it is.
    """
    for node in list(model.graph):
        if node.op_type == "Conv" and (stem := _find(node)) is not None:
            _pack(model.graph, stem)


@dataclass(frozen=True, slots=True)
class Axis:
    """A kernel along one axis of the picture, and how it is laid over blocks of two pixels."""

    size: int
    padding: int
    """Zeros before the picture."""

    @property
    def margins(self) -> tuple[int, int]:
        """Zeros before and behind the kernel, so that its windows are whole blocks.

        The first window begins `padding` pixels before the picture; blocks begin at even ones.
        """
        before = self.padding % BLOCK
        return before, -(before + self.size) % BLOCK

    def pads(self, inputs: int, outputs: int) -> tuple[int, int]:
        """Blocks of zeros before and behind the picture.

        Args:
            inputs: Pixels that are read.
            outputs: How many windows there are.
        """
        blocks = (self.size + sum(self.margins)) // BLOCK
        before = (self.padding + self.margins[0]) // BLOCK
        return before, outputs - 1 + blocks - before - inputs // BLOCK


def pack_kernel(weight: npt.NDArray[Number], axes: Sequence[Axis]) -> npt.NDArray[Number]:
    """The kernel over blocks of pixels that does what `weight` does over pixels.

    Args:
        weight: (O, C, kh, kw).
        axes: Of the height and the width.

    Returns:
        (O, 4 * C, kh', kw') with half the height and width that it has with its margins. Channels
        are ordered as SpaceToDepth orders them: by row in the block, column, channel.
    """
    even = np.pad(weight, [(0, 0), (0, 0), *(axis.margins for axis in axes)])
    outputs, channels, height, width = even.shape
    blocks = even.reshape(outputs, channels, height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    packed = blocks.transpose(0, 3, 5, 1, 2, 4)
    return packed.reshape(outputs, -1, height // BLOCK, width // BLOCK)


@dataclass(frozen=True, slots=True)
class _Stem:
    convolution: ir.Node
    quantize: ir.Node
    dequantize: ir.Node
    dequantize_weight: ir.Node


def _find(convolution: ir.Node) -> _Stem | None:
    dequantize, dequantize_weight = _producer(convolution, 0), _producer(convolution, 1)
    quantize = dequantize and _producer(dequantize, 0)
    if not (quantize and dequantize and dequantize_weight):  # in float
        return None
    _, channels, *sides = _shape(convolution.inputs[0])
    attributes = convolution.attributes
    fits = (
        channels == COLOURS
        and not any(side % BLOCK for side in sides)
        and attributes.get_ints("strides") == (BLOCK, BLOCK)
        and attributes.get_ints("dilations") == (1, 1)
        and len(dequantize.outputs[0].uses()) == 1
    )
    return _Stem(convolution, quantize, dequantize, dequantize_weight) if fits else None


def _pack(graph: ir.Graph, stem: _Stem) -> None:
    pixels, weight = stem.quantize.inputs[0], stem.dequantize_weight.inputs[0]
    assert pixels is not None
    assert weight is not None
    assert weight.const_value is not None
    kernel = weight.const_value.numpy()
    attributes = stem.convolution.attributes
    axes = [Axis(*pair) for pair in zip(kernel.shape[2:], attributes.get_ints("pads", ()))]
    packed = np.ascontiguousarray(pack_kernel(kernel, axes))
    weight.const_value = ir.tensor(packed, name=weight.name)
    weight.shape = stem.dequantize_weight.outputs[0].shape = ir.Shape(packed.shape)

    # In float, because ONNX Runtime has had it for integers for a short time (its pull 29154).
    blocks = ir.node("SpaceToDepth", [pixels], {"blocksize": BLOCK}, name=f"{pixels.name}.pack")
    blocks.outputs[0].name = f"{pixels.name}.packed"
    blocks.outputs[0].type = pixels.type
    graph.insert_before(stem.quantize, blocks)
    stem.quantize.replace_input_with(0, blocks.outputs[0])
    _, channels, *sides = _shape(pixels)
    shape = [channels * BLOCK**2, *(side // BLOCK for side in sides)]
    for node in (blocks, stem.quantize, stem.dequantize):
        assert pixels.shape is not None
        node.outputs[0].shape = ir.Shape([pixels.shape[0], *shape])

    _, _, *windows = _shape(stem.convolution.outputs[0])
    ends = [axis.pads(*sizes) for axis, *sizes in zip(axes, sides, windows)]
    attributes.add(ir.AttrInt64s("kernel_shape", packed.shape[2:]))
    attributes.add(ir.AttrInt64s("strides", (1, 1)))
    attributes.add(
        ir.AttrInt64s("pads", [before for before, _ in ends] + [last for _, last in ends])
    )


def _producer(node: ir.Node, index: int) -> ir.Node | None:
    """The node that makes a node's input, if that quantises or restores."""
    value = node.inputs[index]
    made_by = value.producer() if value is not None else None
    return made_by if made_by is not None and made_by.op_type in ROUNDING else None


def _shape(value: ir.Value | None) -> tuple[int, ...]:
    """A tensor's shape; -1 where it is not known."""
    assert value is not None
    assert value.shape is not None
    return tuple(side if isinstance(side, int) else -1 for side in value.shape)
