"""Other quantisers, each in the environment that `benchmarks.quantization` made for it.

    python peers.py "nncf mixed" core.onnx images.npy int8.onnx

Images are normalised float32 (N, 3, H, W). The script prints seconds of processor time and peak
memory as JSON. It imports nothing of resdeploy, so that each tool can have its own versions of all
packages.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

INPUT = "pixels"
BATCH = 16


def onnxruntime_static(method: str, graph: str, images: Any, output: str) -> None:
    """Quantise with ONNX Runtime's `quantize_static`: Q/DQ, symmetric int8, weights per channel."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter(range(0, len(images), BATCH))

        def get_next(  # pyright: ignore[reportIncompatibleMethodOverride]
            self,
        ) -> dict[str, Any] | None:
            start = next(self.batches, None)
            return None if start is None else {INPUT: images[start : start + BATCH]}

    quantize_static(
        graph,
        output,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod[method],
        extra_options={"ActivationSymmetric": True},
    )


def nncf(preset: str, graph: str, images: Any, output: str) -> None:
    """Quantise with NNCF's post-training quantisation and its fast bias correction."""
    import nncf  # pyright: ignore[reportMissingImports]
    import onnx

    dataset = nncf.Dataset([{INPUT: images[index : index + 1]} for index in range(len(images))])
    quantised = nncf.quantize(
        onnx.load(graph), dataset, preset=nncf.QuantizationPreset[preset], subset_size=len(images)
    )
    onnx.save(quantised, output)


def modelopt(method: str, graph: str, images: Any, output: str) -> None:
    """Quantise with NVIDIA ModelOpt's ONNX quantisation, which TensorRT can fuse."""
    from modelopt.onnx.quantization import quantize  # pyright: ignore[reportMissingImports]

    quantize(
        graph,
        quantize_mode="int8",
        calibration_data=images,
        calibration_method=method,
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=output,
        log_level="ERROR",
    )


CONTENDERS: dict[str, tuple[Callable[[str, str, Any, str], None], str]] = {
    "onnxruntime MinMax": (onnxruntime_static, "MinMax"),
    "onnxruntime Entropy": (onnxruntime_static, "Entropy"),
    "onnxruntime Percentile": (onnxruntime_static, "Percentile"),
    "nncf performance": (nncf, "PERFORMANCE"),
    "nncf mixed": (nncf, "MIXED"),
    "modelopt max": (modelopt, "max"),
    "modelopt entropy": (modelopt, "entropy"),
}


def main(contender: str, graph: str, images: str, output: str) -> None:
    """Quantise one graph, and print the processor time and the peak memory in MB as JSON."""
    quantise, setting = CONTENDERS[contender]
    pixels = np.load(images)
    start = processor_seconds()
    quantise(setting, graph, pixels, output)
    print_usage(start)


def processor_seconds() -> float:
    """Return the processor time of this process and of its ended children, in seconds.

    Unlike the elapsed time, it hardly depends on what else runs on the machine.
    """
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def print_usage(start: float) -> None:
    """Print the processor time since `start` in seconds and the peak memory in MB as JSON."""
    seconds = processor_seconds() - start
    print(json.dumps({"processor_seconds": seconds, "peak_mb": peak_megabytes()}))


def peak_megabytes() -> float:
    """Return the peak memory of this process; that of `getrusage` includes its parent's."""
    with open("/proc/self/status") as status:
        (line,) = [line for line in status if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
