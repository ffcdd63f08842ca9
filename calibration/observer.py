"""The observer, which collects statistics of activations in one pass over the calibration images.

Each batch of activations is reduced to a histogram and two numbers per image before the next batch
runs. Therefore, memory use hardly depends on the number of images. The histogram does not depend on
their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from resdeploy.bundle.golden import Float32Array
from resdeploy.bundle.manifest import INPUT_NAME
from resdeploy.calibration.histogram import Histogram
from resdeploy.calibration.ranges import TensorStatistics
from resdeploy.errors import CalibrationError, needs_extra
from resdeploy.images.preprocessing import UInt8Array


def observe(
    graph: bytes, tensors: Sequence[str], batches: Iterable[UInt8Array]
) -> dict[str, TensorStatistics]:
    """Return the extremes of each image and a histogram of all values, for each tensor.

    Args:
        graph: ONNX model in which every name in `tensors` is an output.
        tensors: Names of float32 activations (N, ...).
        batches: Batches of images (N, H, W, 3); they are iterated once.

    Raises:
        CalibrationError: There are no images, or an activation is NaN or infinite.
    """
    lows: dict[str, list[Float32Array]] = {tensor: [] for tensor in tensors}
    highs: dict[str, list[Float32Array]] = {tensor: [] for tensor in tensors}
    histograms = {tensor: Histogram() for tensor in tensors}
    for tensor, activation in activations(graph, tensors, batches):
        values = activation.reshape(len(activation), -1)
        low, high = values.min(axis=1), values.max(axis=1)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise CalibrationError(
                f"the activation {tensor} is NaN or infinite for a calibration image",
                "use an earlier checkpoint, or leave out the images that cause it",
            )
        lows[tensor].append(low)
        highs[tensor].append(high)
        histograms[tensor].add(values)
    if not tensors or not lows[tensors[0]]:
        raise CalibrationError(
            "there are no calibration images", "name a folder of images with --calibration-data"
        )
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
    """Return the largest magnitude of each image and channel, (images, C), for each tensor.

    Args:
        graph: ONNX model in which every name in `tensors` is an output.
        tensors: Names of float32 activations (N, C, ...).
        batches: Batches of images (N, H, W, 3), at least one.
    """
    peaks: dict[str, list[Float32Array]] = {tensor: [] for tensor in tensors}
    for tensor, activation in activations(graph, tensors, batches):
        values = activation.reshape(*activation.shape[:2], -1)  # (N, C, H W)
        peaks[tensor].append(np.maximum(values.max(axis=2), -values.min(axis=2)))
    return {tensor: np.concatenate(parts) for tensor, parts in peaks.items()}


def activations(
    graph: bytes, tensors: Sequence[str], batches: Iterable[UInt8Array]
) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Yield the name and the values of each tensor, an output of the graph, for each batch."""
    return run_feeds(graph, tensors, ({INPUT_NAME: images} for images in batches))


def run_feeds(
    graph: bytes, tensors: Sequence[str], feeds: Iterable[Mapping[str, npt.NDArray[Any]]]
) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Yield the name and the values of each output in `tensors`, for the inputs of each batch."""
    with needs_extra():
        import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    for inputs in feeds:
        outputs = session.run(list(tensors), dict(inputs))
        yield from zip(tensors, map(np.asarray, outputs))
        del outputs  # before the next batch runs, so that only one is in memory
