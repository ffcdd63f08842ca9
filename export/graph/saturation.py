"""Pairs of weights whose products saturate in the integer kernels of CPUs without VNNI.

The x86 instruction VPMADDUBSW multiplies uint8 activations by int8 weights, adds two neighbouring
products and saturates the sum at 16 bits. Kernels subtract zero points later, so activations reach
255. 255 * (64 + 64) = 32640 fits in 16 bits, and 255 * 129 fits on neither side. So two weights of
the same sign must have magnitudes of at most 128 together; those of different signs never saturate.

A sum runs over kernel rows, kernel columns and input channels, of which channels are innermost.
Neighbours, with an even number of input channels, are 2i and 2i + 1 of one tap in all kernels. An
odd number is padded per tap (oneDNN) or not at all (MLAS, where the pairs cross taps), so any two
successive weights may meet. With one channel, oneDNN's AVX-512 kernels take columns before rows.

A depthwise convolution has one input channel per output. Its kernels extend activations and weights
to 16 bits and add products in 32, so that none of them saturates.

Arm without dot products adds products of int8 at a distance of eight channels, after subtracting
128 from the activations. Only 2 * (-128) * (-128) exceeds 16 bits, so no weight may be -128.

Sources: microsoft/onnxruntime, onnxruntime/core/providers/cpu/quantization/qlinearconv.cc
(ReorderFilter, TryConvSymPrepack), core/mlas/lib/convsym.cpp (MlasConvSymPackW) and, in
core/mlas/lib/amd64, ConvSymKernelAvx2.asm, QgemmU8X8KernelAvx2.asm, QgemmU8X8KernelAvx512Core.asm,
QgemvU8S8KernelAvx2.asm; aarch64/ConvSymU8KernelNeon.S. uxlfoundation/oneDNN, src/cpu/x64:
jit_uni_x8s8s32x_conv_kernel.cpp (weights in groups of 4i; compute_ker_dw for depthwise ones),
brgemm/jit_brgemm_kernel.cpp, jit_brgemm_conv_utils.cpp (relo_whi, for one channel), gemm/s8x8s32.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from resdeploy.calibration.scales import INT8_MAX
from resdeploy.calibration.weight_rounding import LARGEST_PAIR
from resdeploy.export.graph.placement import WEIGHTED
from resdeploy.export.graph.space_to_depth import packed_indices


def added_pairs(shape: tuple[int, ...]) -> npt.NDArray[np.intp]:
    """Return the weights of one output channel that some kernel adds in 16 bits.

    Args:
        shape: Shape (outputs, inputs / groups, ...), as in Conv and in Gemm with transB.

    Returns:
        Indices (pairs, 2) into the flattened weight of one output channel.
    """
    inputs = shape[1]
    indices = np.arange(np.prod(shape[1:])).reshape(shape[1:])
    order = np.moveaxis(indices, 0, -1).ravel()
    pairs = np.stack([order[:-1], order[1:]], axis=1)
    if inputs % 2 == 0:
        return pairs[::2]
    if inputs > 1:
        return pairs
    columns_first = indices.T.ravel()
    return np.concatenate([pairs, np.stack([columns_first[:-1], columns_first[1:]], axis=1)])


def pairs_of(node: ir.Node) -> npt.NDArray[np.intp]:
    """Return the pairs of a weight in the FP32 graph, also if its pixels become blocks later.

    Returns:
        Indices (pairs, 2) as in `added_pairs`.
    """
    if is_depthwise(node):
        return np.empty((0, 2), dtype=np.intp)
    indices = packed_indices(node)
    if indices is None:
        assert node.inputs[1] is not None
        assert node.inputs[1].shape is not None
        return added_pairs(tuple(node.inputs[1].shape.numpy()))
    pairs = indices.ravel()[added_pairs(indices.shape)]
    return pairs[(pairs >= 0).all(axis=1)]


def is_depthwise(node: ir.Node) -> bool:
    """Return True for a convolution each of whose outputs reads one of several channels."""
    weight = node.inputs[1]
    is_single = weight is not None and weight.shape is not None and weight.shape[1] == 1
    return node.op_type == "Conv" and is_single and node.attributes.get_int("group", 1) > 1


def saturating_pairs(weight: npt.NDArray[np.int8]) -> npt.NDArray[np.intp]:
    """Return the pairs of a quantised weight whose products can exceed 16 bits.

    Returns:
        Rows of output channel and two indices into its flattened weight, (pairs, 3).
    """
    pairs = added_pairs(weight.shape)
    first, second = weight.reshape(len(weight), -1).astype(np.int16)[:, pairs.T].swapaxes(0, 1)
    exceeds = (np.abs(first + second) > LARGEST_PAIR) & (first * second > 0)
    channels, found = np.nonzero(exceeds)
    return np.concatenate([channels[:, None], pairs[found]], axis=1)


def check_no_saturation(graph: ir.Graph) -> None:
    """Check the quantised weights of all convolutions and classifiers of a graph for CPUs.

    Raises:
        AssertionError: A kernel of some CPU may saturate: an error in the choice of the weights.
    """
    for node in graph:
        if node.op_type not in WEIGHTED or (weight := node.inputs[1]) is None:
            continue
        dequantize = weight.producer()
        if dequantize is None:
            continue  # this weight stays in float
        stored = dequantize.inputs[0]
        assert stored is not None
        assert stored.const_value is not None
        integers = stored.const_value.numpy()
        number = 0 if is_depthwise(node) else len(saturating_pairs(integers))
        if number or integers.min() < -INT8_MAX:
            raise AssertionError(f"{node.name}: {number} pairs of weights may saturate")
