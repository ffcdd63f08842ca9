"""Parsing of ONNX Runtime's profile, and one real profile."""

from __future__ import annotations

from typing import Any

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.manifest import Encoding
from resdeploy.runtime.backends.onnxruntime.profile import WARM_UP_RUNS, parse_profile, profile


def event(name: str, dur: int, *, op: str = "QLinearConv", kind: str = "uint8") -> dict[str, Any]:
    shape = [1, 56, 56, 64]
    return {
        "cat": "Node",
        "name": f"{name}_kernel_time",
        "dur": dur,
        "args": {
            "op_name": op,
            "input_type_shape": [{kind: shape}, {"float": []}],
            "output_type_shape": [{kind: shape}],
        },
    }


def test_kernel_time_is_the_median_after_warm_up() -> None:
    runs = [9000] * WARM_UP_RUNS + [100, 900, 200]
    events = [event("layer1.0.conv1_token_7", duration) for duration in runs]
    events.append({"cat": "Session", "name": "model_run", "dur": 12345})
    (kernel,) = parse_profile(events, {"layer1.0.conv1": 500, "conv1": 7})
    assert (kernel.ms, kernel.macs, kernel.is_float) == (0.2, 500, False)
    assert kernel.inputs == (("uint8", (1, 56, 56, 64)), ("float", ()))


def test_conversions_are_float_and_have_no_macs() -> None:
    into = event("x.quantize", 10, op="QuantizeLinear", kind="float")
    into["args"]["output_type_shape"] = [{"uint8": [1, 3]}]
    (kernel,) = parse_profile([into], {"x": 5})
    assert kernel.is_float
    assert kernel.macs == 0


def test_profiles_a_real_graph(tiny_bundle: Bundle) -> None:
    images = tiny_bundle.golden().images[:2]
    kernels = profile(tiny_bundle, "int8-cpu", Encoding.CPU, images, threads=1, runs=3)
    assert tiny_bundle.manifest.work is not None
    assert sum(kernel.macs for kernel in kernels) == 2 * tiny_bundle.manifest.work.totals.macs
    assert all(kernel.ms >= 0 for kernel in kernels)
    # On a CPU the encoding for TensorRT has float convolutions between conversions.
    others = profile(tiny_bundle, "int8", Encoding.TENSORRT, images, threads=1, runs=3)
    assert sum(k.is_float for k in others) > sum(k.is_float for k in kernels)
