"""Rounding of weights with compensation of errors, so that no two of them saturate a kernel.

The columns of a weight matrix, which belong to its inputs, are rounded one after the other. The
columns that are still exact take up the error of the layer's outputs as well as they can. That
needs the second moments of the inputs. If two weights must not exceed a limit together, the excess
is divided between them so that the error after this compensation is smallest.

Sources: Frantar, Singh and Alistarh, "Optimal Brain Compression" (2022), arXiv:2208.11580; Frantar
et al., "GPTQ: Accurate post-training quantization for generative pre-trained transformers" (2022),
arXiv:2210.17323. They factorise the inverse of the moments H. Here H = L L^T, with the columns in
reverse order, which gives the same integers: the error is |L^T e|^2, and each of its terms contains
the errors e of columns that are already rounded, and of one more.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from resdeploy.calibration.histogram import Float64Array
from resdeploy.calibration.scales import INT8_MAX, Float32Array, round_scales

LARGEST_PAIR = 128  # 255 * 128 fits in 16 bits, and 255 * 129 does not
# Added to the diagonal of H, as a share of its mean; the share in the paper on GPTQ.
DAMPING = 0.01
# Larger steps clip fewer pairs and round all weights more coarsely. With the last one, integers are
# at most 64, so none is clipped.
STEP_FACTORS = (1.0, 1.25, 1.6, INT8_MAX / (LARGEST_PAIR // 2))
BLOCK = 64  # columns between two matrix products; has no effect on the result

Int8Array = npt.NDArray[np.int8]
IndexArray = npt.NDArray[np.intp]


def clip_pairs(weight: Float64Array, pairs: IndexArray) -> tuple[Int8Array, Float32Array]:
    """Return integers (O, K) and a scale per output (O,) with a small squared error of the weights.

    Both weights of a pair give up half of what exceeds the limit.
    """
    scales = _candidate_scales(weight)
    candidates = np.stack([_clipped(weight / row[:, None], pairs) for row in scales])
    errors = np.square(weight - candidates * scales[..., None].astype(np.float64)).sum(axis=2)
    best, outputs = errors.argmin(axis=0), np.arange(len(weight))
    return candidates[best, outputs], scales[best, outputs]


def round_weights(
    targets: Float64Array, moments: Float64Array, pairs: IndexArray
) -> tuple[Int8Array, Float32Array]:
    """Return integers (O, K) and a scale per output (O,) with a small error of the outputs.

    The error on the inputs of `moments` is not larger than that of `clip_pairs`.

    Args:
        targets: Exact weights (O, K).
        moments: Second moments (K, K) of the inputs.
        pairs: Pairs (P, 2) of columns. In each, integers of equal sign have magnitudes of at most
            128 together.
    """
    scales = _candidate_scales(targets)
    order, is_linked, largest = _rounding_order(np.diag(moments), pairs)
    factor = _factor(moments, order)
    columns = (targets[:, order] / scales[..., None]).reshape(-1, len(order)).T.astype(np.float32)
    rounded, errors = _round_columns(columns, factor, is_linked, largest)
    clipped, clipped_scales = clip_pairs(targets, pairs)
    deviations = (targets - clipped * clipped_scales[:, None].astype(np.float64))[:, order]
    clipped_errors = np.square(deviations @ factor).sum(axis=1)
    errors = errors.reshape(scales.shape) * np.square(scales.astype(np.float64))
    best, outputs = errors.argmin(axis=0), np.arange(len(targets))
    integers = np.empty(targets.shape, dtype=np.int8)
    integers[:, order] = rounded[:, best * len(targets) + outputs].T
    is_worse = errors[best, outputs] > clipped_errors
    integers[is_worse] = clipped[is_worse]
    return integers, np.where(is_worse, clipped_scales, scales[best, outputs])


def round_depthwise(targets: Float64Array, moments: Float64Array) -> tuple[Int8Array, Float32Array]:
    """Return what `round_weights` returns for each output alone, with the inputs of its own.

    No two weights of a depthwise convolution saturate. All outputs are rounded at once, because a
    network has thousands of them.

    Args:
        targets: Exact weights (O, K).
        moments: Second moments (O, K, K) of the inputs of each output.
    """
    order = np.argsort(np.diagonal(moments, axis1=1, axis2=2), axis=1, kind="stable")
    sorted_rows = np.take_along_axis(moments, order[:, :, None], 1)
    ordered = np.take_along_axis(sorted_rows, order[:, None, :], 2)
    energies = np.diagonal(ordered, axis1=1, axis2=2)
    alive = np.count_nonzero(energies, axis=1)
    damping = np.where(alive > 0, DAMPING * energies.sum(axis=1) / np.maximum(alive, 1), 1.0)
    factor = np.linalg.cholesky(ordered + damping[:, None, None] * np.eye(order.shape[1]))
    diagonal = np.diagonal(factor, axis1=1, axis2=2)
    scales = _candidate_scales(targets)
    exact = np.take_along_axis(targets, order, 1) / scales[..., None]  # (candidates, O, K)
    plain, goals = np.clip(np.rint(exact), -INT8_MAX, INT8_MAX), exact.copy()
    rounded = np.zeros_like(exact)
    for j in range(order.shape[1] - 1, -1, -1):
        rounded[..., j] = np.clip(np.rint(goals[..., j]), -INT8_MAX, INT8_MAX)
        shares = factor[:, j, :j] / diagonal[:, :j]
        goals[..., :j] += shares * (exact[..., j] - rounded[..., j])[..., None]
    candidates = np.concatenate([rounded, plain])
    steps = np.concatenate([scales, scales])
    deviations = np.concatenate([exact, exact]) - candidates
    errors = np.square(np.einsum("cok,okj->coj", deviations, factor) * steps[..., None]).sum(axis=2)
    best, outputs = errors.argmin(axis=0), np.arange(len(targets))
    integers = np.empty(targets.shape, dtype=np.int8)
    np.put_along_axis(integers, order, candidates[best, outputs].astype(np.int8), 1)
    return integers, steps[best, outputs]


def _candidate_scales(weight: Float64Array) -> Float32Array:
    """Return scales (candidates, O), float16 values unless those are infinite.

    The graph for TensorRT has the same weights as the one for CPUs, and scales in float16.
    """
    steps = np.abs(weight).max(axis=1) / INT8_MAX
    exact = np.stack([steps * factor for factor in STEP_FACTORS])
    scales = round_scales(exact, half=True)
    return np.where(np.isinf(scales), exact.astype(np.float32), scales)


def _clipped(exact: Float64Array, pairs: IndexArray) -> Int8Array:
    """Return integers of `exact` (O, K), in steps."""
    integers = np.clip(np.rint(exact), -INT8_MAX, INT8_MAX).astype(np.int16)
    are_disjoint = len(np.unique(pairs)) == pairs.size
    # Magnitudes only decrease, so a later pair does not harm an earlier one.
    for part in [pairs] if are_disjoint else pairs[:, None]:
        first, second = integers[:, part[:, 0]], integers[:, part[:, 1]]
        excess = np.where(first * second > 0, np.abs(first + second) - LARGEST_PAIR, 0).clip(0)
        integers[:, part[:, 0]] = first - np.sign(first) * ((excess + 1) // 2)
        integers[:, part[:, 1]] = second - np.sign(first) * (excess // 2)
    return integers.astype(np.int8)


def _rounding_order(
    energies: Float64Array, pairs: IndexArray
) -> tuple[IndexArray, npt.NDArray[np.bool_], int]:
    """Return an order (K,) that is rounded from its end, the linked columns, the largest magnitude.

    Columns with much energy come last, because the error of those rounded first can be compensated
    best. A linked column forms a pair with the one before it.
    """
    columns = np.arange(len(energies))
    partner = columns.copy()
    partner[pairs] = pairs[:, ::-1]
    if len(np.unique(pairs)) == pairs.size:
        order = np.lexsort((np.minimum(columns, partner), energies + energies[partner]))
        return order, (partner[order] == np.roll(order, 1)) & (partner[order] < order), INT8_MAX
    if np.array_equal(pairs[:-1, 1], pairs[1:, 0]):  # a chain
        return np.append(pairs[:, 0], pairs[-1, 1]), columns > 0, INT8_MAX
    return columns, np.zeros(len(columns), bool), LARGEST_PAIR // 2


def _factor(moments: Float64Array, order: IndexArray) -> Float64Array:
    """Return the lower Cholesky factor of the damped moments, with the columns in `order`."""
    energies = np.diag(moments)[order]
    alive = np.flatnonzero(energies > 0)  # padding, and channels that are always zero, cost no time
    damping = DAMPING * float(energies[alive].mean()) if len(alive) else 1.0
    factor: Float64Array = np.eye(len(order)) * np.sqrt(damping)
    damped = moments[np.ix_(order[alive], order[alive])] + damping * np.eye(len(alive))
    factor[np.ix_(alive, alive)] = np.linalg.cholesky(damped)
    return factor


def _round_columns(
    exact: Float32Array, factor: Float64Array, is_linked: npt.NDArray[np.bool_], largest: int
) -> tuple[Float32Array, Float64Array]:
    """Return integers of `exact` (K, R), in steps, and the squared error of each of the R rows."""
    count = len(exact)
    diagonal = np.diag(factor)
    shares = (factor / diagonal).astype(np.float32)  # effect of a row's error on a column's target
    goals, errors, rounded = exact.copy(), np.zeros_like(exact), np.zeros_like(exact)
    total = np.zeros(exact.shape[1])
    for end in range(count, 0, -BLOCK):
        start = max(0, end - BLOCK)
        # One column more than the block, because the last pair of the block may leave it.
        first = max(0, start - 1)
        if end < count:
            goals[first:end] = exact[first:end] + shares[end:, first:end].T @ errors[end:]
        for j in range(end - 1, start - 1, -1):
            goal, low, high = goals[j], np.float32(-largest), np.float32(largest)
            if is_linked[j]:
                # The partner's goal if this column had no error at its own goal.
                partner = goals[j - 1] + shares[j, j - 1] * (exact[j] - goal)
                goal = _without_excess(goal, partner, factor[j - 1 : j + 1, j - 1 : j + 1])
            if j + 1 < count and is_linked[j + 1]:
                low = np.maximum(low, -LARGEST_PAIR - np.minimum(rounded[j + 1], 0))
                high = np.minimum(high, LARGEST_PAIR - np.maximum(rounded[j + 1], 0))
            rounded[j] = value = np.clip(np.rint(goal), low, high)
            errors[j] = exact[j] - value
            total += np.square((goals[j] - value).astype(np.float64) * diagonal[j])
            goals[first:j] += shares[j, first:j, None] * errors[j]
    return rounded, total


def _without_excess(
    goal: Float32Array, partner: Float32Array, factor: Float64Array
) -> Float32Array:
    """Return the first goal of a pair less its part of what exceeds the limit of both.

    The parts minimise the squared error of both columns (Lagrange multiplier), from the (2, 2)
    block of the Cholesky factor.
    """
    excess = np.where(goal * partner > 0, np.abs(goal + partner) - LARGEST_PAIR, 0)
    if not (excess > 0).any():
        return goal
    (own, _), (both, rest) = factor
    parts = np.array([own * (own - both), both * (both - own) + rest**2])
    # A part is negative if the inputs are alike, and one weight should compensate the other.
    share = float(parts[0] / parts.sum())
    return (goal - np.sign(goal) * np.maximum(excess, 0) * np.float32(share)).astype(np.float32)
