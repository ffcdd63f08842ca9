"""Tests of the causes of slow INT8 graphs, with invented observations and one real graph."""

from __future__ import annotations

import dataclasses

import onnxruntime
import pytest

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.manifest import Encoding
from resdeploy.cli.explain import slowness_text
from resdeploy.runtime.backends.onnxruntime.cpu import rounds_float16
from resdeploy.runtime.backends.onnxruntime.profile import Kernel
from resdeploy.runtime.diagnosis import slowdown, slowdown_causes
from resdeploy.runtime.diagnosis.slowdown import explain_slowdown
from resdeploy.runtime.diagnosis.slowdown_causes import Cause, Observations, find_causes

ACTIVATION = (1, 56, 56, 64)


def kernel(
    name: str, ms: float, *, op: str = "QLinearConv", kind: str = "uint8", macs: int = 0
) -> Kernel:
    tensors = ((kind, ACTIVATION), (kind, ACTIVATION))
    return Kernel(name=name, op=op, ms=ms, inputs=tensors, outputs=tensors[:1], macs=macs)


FAST = kernel("layer1.0.conv1", 5.0, macs=1_000_000)
HEALTHY = Observations(
    encoding=Encoding.CPU,
    threads=2,
    ms=10.0,
    kernels=(FAST, kernel("layer2.0.conv1", 5.0, macs=900_000)),
    by_threads={1: 19.0, 2: 10.0},
    early_ms=10.0,
    late_ms=10.2,
    cpu_share=0.99,
    products={"int8": 3.8e9, "fp32": 1e9},
    int8_instructions=True,
)

EQUAL = {"int8": 1e9, "fp32": 1e9}


def only_cause(**changes: object) -> Cause:
    (cause,) = find_causes(dataclasses.replace(HEALTHY, **changes))  # type: ignore[arg-type]
    return cause


def test_a_fast_graph_has_no_causes() -> None:
    assert find_causes(HEALTHY) == ()


def test_float_islands_cost_the_time_of_their_kernels() -> None:
    floats = (
        kernel("layer3.0.conv1", 2.0, op="FusedConv", kind="float", macs=10),
        kernel("x.quantize", 0.5, op="QuantizeLinear", kind="float"),
    )
    cause = only_cause(kernels=(*HEALTHY.kernels, *floats))
    assert (cause.cause, cause.cost_ms) == ("float islands", 2.5)
    assert "layer3.0.conv1 (2.00 ms)" in cause.evidence
    assert "--max-drop" in cause.remedy
    cause = only_cause(kernels=(*HEALTHY.kernels, *floats), encoding=Encoding.TENSORRT)
    assert "int8-cpu.onnx" in cause.remedy


def test_conversions_at_the_ends_of_a_graph_have_no_remedy() -> None:
    ends = (kernel("normalize.mul", 0.6, op="Mul", kind="float"),)
    assert only_cause(kernels=(*HEALTHY.kernels, *ends)).remedy.startswith("none: ")


def test_float_additions_are_a_separate_cause() -> None:
    added = (kernel("layer1.0.add", 1.0, op="Add", kind="float"),)
    cause = only_cause(kernels=(*HEALTHY.kernels, *added))
    assert (cause.cause, cause.cost_ms) == ("unfused additions", 1.0)


def test_small_layers_cost_the_difference_to_the_fastest_speed() -> None:
    small = kernel("conv1", 4.0, macs=200_000)  # 50,000 products per ms, the fastest has 200,000
    cause = only_cause(kernels=(FAST, small))
    assert (cause.cause, cause.cost_ms) == ("layers too small", 3.0)
    assert "1 of 2 layers" in cause.evidence


def test_recommends_a_faster_number_of_threads() -> None:
    cause = only_cause(by_threads={1: 6.0, 2: 10.0})
    assert (cause.cause, cause.cost_ms, cause.remedy) == ("wrong threads", 4.0, "use --threads 1")


def test_int8_is_slow_without_vnni() -> None:
    cause = only_cause(products=EQUAL, int8_instructions=False)
    assert (cause.cause, cause.cost_ms) == ("slow INT8 arithmetic", 7.5)
    assert "no VNNI" in cause.evidence
    assert "although" in only_cause(products=EQUAL).evidence


def test_times_that_grow_are_throttling() -> None:
    cause = only_cause(late_ms=14.0, notices=("clocks are reduced against heat: cpu",))
    assert (cause.cause, cause.cost_ms) == ("throttling", 4.0)
    assert "14.00 ms after some seconds; clocks are reduced" in cause.evidence


def test_reports_convolutions_that_do_not_use_amx() -> None:
    products = {"int8": 1e9, "fp32": 1e8}  # 1.9 million products: 3.8 ms of the 10
    cause = only_cause(products=products, matrix_instructions=True)
    assert cause.cause == "convolutions without AMX"
    assert cause.cost_ms == pytest.approx(6.2)
    assert "2 convolutions take 10.00 ms" in cause.evidence
    assert "--backend openvino" in cause.remedy
    unmeasured = dataclasses.replace(HEALTHY, products={}, matrix_instructions=True)
    assert find_causes(unmeasured) == ()


@pytest.mark.parametrize("late_ms", [10.0, 20.0])
def test_only_other_processes_are_named_if_they_used_the_cores(late_ms: float) -> None:
    cause = only_cause(cpu_share=0.6, late_ms=late_ms)
    assert cause.cause == "other processes"
    assert cause.cost_ms == pytest.approx(4.0)


def test_causes_are_sorted_by_cost_without_noise() -> None:
    found = find_causes(
        dataclasses.replace(HEALTHY, late_ms=12.0, by_threads={1: 4.0, 2: 10.0}, cpu_share=0.98)
    )
    assert [cause.cause for cause in found] == ["wrong threads", "throttling"]


@pytest.mark.skipif(
    not rounds_float16(onnxruntime.__version__), reason="ONNX Runtime before 1.30 does not run it"
)
def test_a_real_graph_for_tensorrt_has_float_islands_on_a_cpu(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SECONDS", "WORK_SECONDS"):
        monkeypatch.setattr(slowdown, name, 0.05)
    monkeypatch.setattr(slowdown_causes, "UNDISTURBED", 0.0)  # other tests may run beside it
    result = explain_slowdown(tiny_bundle, encoding=Encoding.TENSORRT, threads=1)
    assert result.artifact == "int8"
    assert "float islands" in [cause.cause for cause in result.causes]
    text = slowness_text(result)
    assert f"int8.onnx takes {result.ms:.2f} ms" in text
    assert "on a CPU, use int8-cpu.onnx" in text
    doubt = "other programs used the cores, so these times and their ratio are not reliable"
    for share in (0.5, 1.0):
        assert (doubt in slowness_text(dataclasses.replace(result, cpu_share=share))) is (share < 1)
