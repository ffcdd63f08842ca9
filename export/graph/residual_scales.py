"""Scales with which residual additions round little, and alike on every CPU.

If both operands and the output have one scale, the sum of the integers is the output: nothing is
rounded, and the only noise is that of the operands. Otherwise, the sum is rounded again. Therefore
all tensors of a stage get one scale, unless their ranges differ too much.

ONNX Runtime adds uint8 tensors in float32 on x86, and in 32-bit fixed point on Arm. The kernels
differ in the last bits of a sum, and they round a sum half-way between two integers differently.
If the scales of both operands are multiples p/d and q/d of the output's scale, with an odd d, every
sum is at least 1/(2 d) away from half-way. Kernels with a smaller error then round alike.

Source: github.com/microsoft/onnxruntime, v1.23.2, onnxruntime/core/mlas/lib/qladd.cpp.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from resdeploy.calibration.scales import UINT8_MAX, QuantizationParameters
from resdeploy.export.graph.placement import QuantizedEdge, is_residual_add

# Largest errors in steps of the output, for ratios below 4: in fixed point, each of the two 22-bit
# multipliers is off by at most half a bit and is multiplied by at most 255, which gives 2^-12;
# float32 rounds sums below 1024 to 2^-15. With these denominators, every sum is at least 2^-11 away
# from half-way.
DENOMINATORS = np.arange(3, 1024, 2)
LARGEST_RATIO = 4.0
# Maximum relative change of a scale. Only the ratios of negligible operands need larger changes.
LARGEST_CHANGE = 0.01
# Largest quotient of two scales of tensors that become one: the finer one then loses 3.5 dB at
# most, where an addition without rounding saves 3 dB.
LARGEST_SPREAD = 1.5
# Largest factor by which the range of a convolution's output shrinks. A factor of 2 costs 5 dB in a
# ResNet-34 with random weights, and 0.2 dB in the network of docs/quantization.md.
LARGEST_CLIP = 1.3
FEWEST_NEGATIVE = 38  # steps of 255, 15 %, that remain for the negative values, if there are any


def align_scales(
    graph: ir.Graph,
    edges: Sequence[QuantizedEdge],
    parameters: Mapping[str, QuantizationParameters],
) -> dict[str, QuantizationParameters]:
    """Return `parameters` with other scales, with which all CPUs round additions alike.

    The keys are the `range_of` of `edges`. The operands of additions that are not in integers, or
    for which there are no suitable fractions, keep their scales.
    """
    additions = _integer_additions(graph, edges)
    groups = _groups(additions, parameters)
    where = {tensor: index for index, group in enumerate(groups) for tensor in group}
    outputs = {output for _, output in additions}
    scales = []
    for group in groups:
        shared = [tensor for tensor in group if _is_shared(tensor, outputs, parameters)] or group
        # With this mean, the tensors have as much noise together as with their own scales.
        squares = [float(parameters[tensor].scale) ** 2 for tensor in shared]
        scales.append(float(np.sqrt(np.mean(squares))))
    for tensor, index in list(where.items()):
        if parameters[tensor].scale > LARGEST_CLIP * scales[index]:
            where[tensor] = len(scales)
            scales.append(float(parameters[tensor].scale))
    # From back to front: the next addition determines the output scale of the one before it.
    for operands, output in reversed(additions):
        unit = scales[where[output]]
        fractions = closest_fractions([scales[where[operand]] / unit for operand in operands])
        for operand, fraction in zip(operands, fractions or ()):
            scales[where[operand]] = unit * fraction
    changed = {tensor: with_scale(parameters[tensor], scales[where[tensor]]) for tensor in where}
    return {**parameters, **changed}


def with_scale(parameters: QuantizationParameters, scale: float) -> QuantizationParameters:
    """Return a grid with another scale that reaches as far as before, first of all upwards.

    What is clipped are the largest negative values. Of those, a ReLU keeps nothing, unless the
    other operand of the addition before it is even larger.
    """
    positive = (UINT8_MAX - parameters.zero_point) * float(parameters.scale)
    free = max(UINT8_MAX - int(np.ceil(positive / scale)), FEWEST_NEGATIVE)
    return QuantizationParameters(
        scale=np.float32(scale), zero_point=min(parameters.zero_point, free)
    )


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


def _groups(
    additions: Sequence[tuple[tuple[str, str], str]],
    parameters: Mapping[str, QuantizationParameters],
) -> list[list[str]]:
    """Return the operands and outputs of additions in groups that can have one scale each.

    An addition whose tensors differ too much from those before it begins another group.
    """
    groups: list[list[str]] = []
    outputs = {output for _, output in additions}
    for operands, output in additions:
        known = {tensor for group in groups for tensor in group}
        new = [tensor for tensor in (*operands, output) if tensor not in known]
        groups += [[tensor] for tensor in new[:-1] if _is_shared(tensor, outputs, parameters)]
        before = [group for group in groups if not set(group).isdisjoint(operands)]
        joined = list(dict.fromkeys([*(tensor for group in before for tensor in group), *new]))
        scales = [
            parameters[tensor].scale for tensor in joined if _is_shared(tensor, outputs, parameters)
        ]
        if max(scales) <= LARGEST_SPREAD * min(scales):
            groups = [group for group in groups if group not in before] + [joined]
        else:
            known = {tensor for group in groups for tensor in group}
            groups.append([tensor for tensor in new if tensor not in known])
    return groups


def _is_shared(
    tensor: str, outputs: Collection[str], parameters: Mapping[str, QuantizationParameters]
) -> bool:
    """Return True for a tensor that later blocks read: an output, or one after a ReLU."""
    return tensor in outputs or parameters[tensor].zero_point == 0


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
