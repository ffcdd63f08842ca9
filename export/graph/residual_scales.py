"""Scales with which residual additions round alike on every CPU.

ONNX Runtime adds uint8 tensors in float32 on x86, and in 32-bit fixed point on Arm: the kernels
differ in the last bits of a sum, and in which neighbour a sum half-way between two integers goes
to. Where both scales are multiples p/d and q/d of the output's, with an odd d, no sum lies closer
than 1/(2 d) to a half: then all that is asked of a kernel is an error below that.

Source: github.com/microsoft/onnxruntime, v1.23.2, onnxruntime/core/mlas/lib/qladd.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from resdeploy.calibration.scales import Affine
from resdeploy.export.graph.placement import QuantizedEdge, is_residual_add

# In steps of the output, for ratios below 4: fixed point has multipliers of 22 bits, which are off
# by half a bit each and count up to 255 times, 2^-12 in all; float32 rounds sums below 1024 to
# 2^-15. A half is 2^-11 away or more.
DENOMINATORS = np.arange(3, 1024, 2)
LARGEST_RATIO = 4.0
# Of the scales, when they are moved; further, the operand is too small beside the other to matter.
LARGEST_CHANGE = 0.01


def agree(
    graph: ir.Graph, edges: Sequence[QuantizedEdge], scales: Mapping[str, Affine]
) -> dict[str, Affine]:
    """Move the scales of additions' operands, by far less than calibration knows them.

    Args:
        graph: The FP32 graph.
        edges: What is quantised.
        scales: For every `range_of` in `edges`.

    Returns:
        All scales. Those of additions that cannot agree, or are not quantised throughout, stay.
    """
    agreed = dict(scales)
    # Backwards: the output of one block is an operand of the next, which decides its scale.
    for operands, output in reversed(_additions(graph, edges)):
        unit = float(agreed[output].scale)
        ratios = [float(agreed[operand].scale) / unit for operand in operands]
        fractions = closest_fractions(ratios)
        if fractions is not None:
            for operand, fraction in zip(operands, fractions):
                agreed[operand] = replace(agreed[operand], scale=np.float32(unit * fraction))
    return agreed


def all_agree(
    graph: ir.Graph, edges: Sequence[QuantizedEdge], scales: Mapping[str, Affine]
) -> bool:
    """Whether every addition is in integers, with scales from `agree` that let it round alike."""
    additions = _additions(graph, edges)
    if len(additions) < sum(is_residual_add(node) for node in graph):
        return False
    for operands, output in additions:
        ratios = [
            float(scales[operand].scale) / float(scales[output].scale) for operand in operands
        ]
        fractions = closest_fractions(ratios)
        if fractions is None or not np.allclose(ratios, fractions, rtol=1e-6, atol=0):
            return False
    return True


def closest_fractions(ratios: Sequence[float]) -> list[float] | None:
    """The fractions with one small odd denominator that are closest to `ratios`, if any are."""
    exact = np.asarray(ratios)[:, None]
    fractions = np.rint(exact * DENOMINATORS) / DENOMINATORS
    changes = np.abs(fractions / exact - 1).max(axis=0)
    best = int(changes.argmin())
    if changes[best] > LARGEST_CHANGE or max(ratios) >= LARGEST_RATIO:
        return None
    return [float(fraction) for fraction in fractions[:, best]]


def _additions(
    graph: ir.Graph, edges: Sequence[QuantizedEdge]
) -> list[tuple[tuple[str, str], str]]:
    """Of each addition in integers: whose scales its operands have, and its output."""
    sources = {reader: edge.range_of for edge in edges for reader in edge.readers}
    outputs = {edge.tensor: edge.range_of for edge in edges}
    found = []
    for node in graph:
        if not is_residual_add(node):
            continue
        result = node.outputs[0]
        uses = list(result.uses())
        if len(uses) == 1 and uses[0].node.op_type == "Relu":  # it becomes a part of the addition
            result = uses[0].node.outputs[0]
        operands = [sources.get((str(node.name), index)) for index in (0, 1)]
        output = outputs.get(str(result.name))
        if operands[0] is not None and operands[1] is not None and output is not None:
            found.append(((operands[0], operands[1]), output))
    return found
