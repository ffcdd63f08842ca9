"""One streaming pass of the calibration images through the FP32 graph feeds every calibrator.

Activations are reduced to a histogram and two numbers per image before the next batch is run, so
that memory hardly depends on the number of images, and the result not at all on their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from resdeploy.bundle import INPUT_NAME, Float32Array
from resdeploy.calibration.histogram import Histogram
from resdeploy.calibration.ranges import TensorStatistics
from resdeploy.errors import CalibrationError, needs_extra
from resdeploy.preprocessing import UInt8Array


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
    with needs_extra():
        import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    lows: dict[str, list[Float32Array]] = {tensor: [] for tensor in tensors}
    highs: dict[str, list[Float32Array]] = {tensor: [] for tensor in tensors}
    histograms = {tensor: Histogram() for tensor in tensors}
    for images in batches:
        outputs = session.run(list(tensors), {INPUT_NAME: images})
        for tensor, output in zip(tensors, outputs):
            activation = np.asarray(output).reshape(len(images), -1)
            low, high = activation.min(axis=1), activation.max(axis=1)
            if not (np.isfinite(low).all() and np.isfinite(high).all()):
                raise CalibrationError(
                    f"the activation {tensor} is NaN or infinite on a calibration image",
                    "train again with a lower learning rate, or use another checkpoint",
                )
            lows[tensor].append(low)
            highs[tensor].append(high)
            histograms[tensor].add(activation)
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
