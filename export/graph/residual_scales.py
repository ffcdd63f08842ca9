"""Scales with which residual additions give the same integers on every CPU.

ONNX Runtime adds uint8 tensors in float32 on x86, and in 32-bit fixed point on Arm. The kernels
differ in the last bits of a sum, and they round a sum half-way between two integers differently.
If the scales of both operands are multiples p/d and q/d of the output's scale, with an odd d, every
sum is at least 1/(2 d) away from half-way. Kernels with a smaller error then round alike.

Source: github.com/microsoft/onnxruntime, v1.23.2, onnxruntime/core/mlas/lib/qladd.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from resdeploy.calibration.scales import QuantizationParameters
from resdeploy.export.graph.placement import QuantizedEdge, is_residual_add

# Largest errors in steps of the output, for ratios below 4: in fixed point, each of the two 22-bit
# multipliers is off by at most half a bit and is multiplied by at most 255, which gives 2^-12;
# float32 rounds sums below 1024 to 2^-15. With these denominators, every sum is at least 2^-11 away
# from half-way.
DENOMINATORS = np.arange(3, 1024, 2)
LARGEST_RATIO = 4.0
# Maximum relative change of a scale. Only the ratios of negligible operands need larger changes.
LARGEST_CHANGE = 0.01


def align_scales(
    graph: ir.Graph,
    edges: Sequence[QuantizedEdge],
    parameters: Mapping[str, QuantizationParameters],
) -> dict[str, QuantizationParameters]:
    """Return `parameters` with slightly other scales, with which all CPUs round additions alike.

    The keys are the `range_of` of `edges`. The operands of additions that are not in integers, or
    for which there are no suitable fractions, keep their scales.
    """
    aligned = dict(parameters)
    # From back to front: the next addition determines the output scale of the one before it.
    for operands, output in reversed(_integer_additions(graph, edges)):
        unit = float(aligned[output].scale)
        fractions = closest_fractions(
            [float(aligned[operand].scale) / unit for operand in operands]
        )
        for operand, fraction in zip(operands, fractions or ()):
            aligned[operand] = replace(aligned[operand], scale=np.float32(unit * fraction))
    return aligned


def has_aligned_scales(
    graph: ir.Graph,
    edges: Sequence[QuantizedEdge],
    parameters: Mapping[str, QuantizationParameters],
) -> bool:
    """Return True if every residual addition is in integers, with scales from `align_scales`."""
    additions = _integer_additions(graph, edges)
    if len(additions) < sum(is_residual_add(node) for node in graph):
        return False
    for operands, output in additions:
        unit = float(parameters[output].scale)
        ratios = [float(parameters[operand].scale) / unit for operand in operands]
        fractions = closest_fractions(ratios)
        if fractions is None or not np.allclose(ratios, fractions, rtol=1e-6, atol=0):
            return False
    return True


def closest_fractions(ratios: Sequence[float]) -> list[float] | None:
    """Return the closest fractions with one small odd denominator, or None if all are too far."""
    exact = np.asarray(ratios)[:, None]
    fractions = np.rint(exact * DENOMINATORS) / DENOMINATORS
    changes = np.abs(fractions / exact - 1).max(axis=0)
    best = int(changes.argmin())
    if changes[best] > LARGEST_CHANGE or max(ratios) >= LARGEST_RATIO:
        return None
    return [float(fraction) for fraction in fractions[:, best]]


def _integer_additions(
    graph: ir.Graph, edges: Sequence[QuantizedEdge]
) -> list[tuple[tuple[str, str], str]]:
    """Return `range_of` of both operands and of the output, for each addition in integers."""
    sources = {reader: edge.range_of for edge in edges for reader in edge.readers}
    outputs = {edge.tensor: edge.range_of for edge in edges}
    found = []
    for node in graph:
        if not is_residual_add(node):
            continue
        result = node.outputs[0]
        readers = node.successors()
        if len(readers) == 1 and readers[0].op_type == "Relu":  # fused into the addition
            result = readers[0].outputs[0]
        operands = [sources.get((str(node.name), index)) for index in (0, 1)]
        output = outputs.get(str(result.name))
        if operands[0] is not None and operands[1] is not None and output is not None:
            found.append(((operands[0], operands[1]), output))
    return found
