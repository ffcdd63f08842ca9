"""One streaming pass of the calibration images through the FP32 graph feeds every calibrator.

Activations are reduced to a histogram and two numbers per image before the next batch is run, so
that memory hardly depends on the number of images, and the result not at all on their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from resdeploy.bundle.golden import Float32Array
from resdeploy.bundle.manifest import INPUT_NAME
from resdeploy.calibration.histogram import Histogram
from resdeploy.calibration.ranges import TensorStatistics
from resdeploy.errors import CalibrationError, needs_extra
from resdeploy.images.preprocessing import UInt8Array


def observe(
    graph: bytes, tensors: Sequence[str], batches: Iterable[UInt8Array]
) -> dict[str, TensorStatistics]:
    """Run every batch; keep, for each tensor, the extremes of each image and a histogram of all.

    Args:
        graph: An ONNX model in which every name in `tensors` is an output.
        tensors: Names of float32 activations whose first axis counts images.
        batches: uint8 images, each (N, H, W, 3); walked once.

    Raises:
        CalibrationError: there were no images, or an activation is NaN or infinite.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    lows: dict[str, list[Float32Array]] = {tensor: [] for tensor in tensors}
    highs: dict[str, list[Float32Array]] = {tensor: [] for tensor in tensors}
    histograms = {tensor: Histogram() for tensor in tensors}
    for tensor, activation in _activations(graph, tensors, batches):
        values = activation.reshape(len(activation), -1)
        low, high = values.min(axis=1), values.max(axis=1)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise CalibrationError(
                f"the activation {tensor} is NaN or infinite on a calibration image",
                "train again with a lower learning rate, or use another checkpoint",
            )
        lows[tensor].append(low)
        highs[tensor].append(high)
        histograms[tensor].add(values)
    if not tensors or not lows[tensors[0]]:
        raise CalibrationError("no calibration image could be used", "name a folder of images")
    return {
        tensor: TensorStatistics(
            lows=np.concatenate(lows[tensor]),
            highs=np.concatenate(highs[tensor]),
            histogram=histograms[tensor],
        )
        for tensor in tensors
    }


def channel_peaks(
    graph: bytes, tensors: Sequence[str], batches: Iterable[UInt8Array]
) -> dict[str, Float32Array]:
    """Run every batch; keep, for each tensor, the largest magnitude of each image and channel.

    Args:
        graph: As for `observe`.
        tensors: Names of float32 activations (N, C, ...).
        batches: uint8 images, each (N, H, W, 3), at least one; few, for a number is kept for
            each of their channels.

    Returns:
        Arrays (images, C).

    Raises:
        MissingDependencyError: ONNX Runtime is not installed.
    """
    peaks: dict[str, list[Float32Array]] = {tensor: [] for tensor in tensors}
    for tensor, activation in _activations(graph, tensors, batches):
        values = activation.reshape(*activation.shape[:2], -1)  # (N, C, H W)
        peaks[tensor].append(np.maximum(values.max(axis=2), -values.min(axis=2)))
    return {tensor: np.concatenate(parts) for tensor, parts in peaks.items()}


def _activations(
    graph: bytes, tensors: Sequence[str], batches: Iterable[UInt8Array]
) -> Iterator[tuple[str, Float32Array]]:
    """Batch by batch every tensor's name with its values."""
    with needs_extra():
        import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    for images in batches:
        outputs = session.run(list(tensors), {INPUT_NAME: images})
        yield from zip(tensors, map(np.asarray, outputs))
