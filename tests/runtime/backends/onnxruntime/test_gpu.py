"""ONNX Runtime's GPU providers: their options, and that they never fall back to the CPU."""

from __future__ import annotations

from typing import Any

import onnxruntime
import pytest

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.manifest import Precision
from resdeploy.errors import BackendError
from resdeploy.runtime.backends.base import Batches, OpenOptions, Unavailability
from resdeploy.runtime.backends.onnxruntime import gpu as onnxruntime_gpu
from resdeploy.runtime.backends.onnxruntime.gpu import (
    CUDA,
    PROVIDERS,
    TENSORRT,
    OnnxRuntimeGpu,
    check_availability,
    choose_providers,
    open_artifact,
)

here = onnxruntime.get_available_providers()
no_cuda = pytest.mark.skipif(
    PROVIDERS[CUDA] in here, reason="this onnxruntime has the CUDA provider"
)


@no_cuda
@pytest.mark.parametrize("name", [CUDA, TENSORRT])
def test_cpu_package_lacks_the_provider(name: str) -> None:
    found = check_availability(name)
    assert found is not None
    assert PROVIDERS[name] in found.reason
    assert "pip install onnxruntime-gpu" in found.hint


@no_cuda
@pytest.mark.parametrize("name", [CUDA, TENSORRT])
def test_does_not_fall_back_to_the_cpu(tiny_bundle: Bundle, name: str) -> None:
    with pytest.raises(BackendError, match=f"has no {PROVIDERS[name]}"):
        open_artifact(name, tiny_bundle, tiny_bundle.artifact("fp16"), OpenOptions())


def test_rejects_a_session_that_fell_back(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime falls back if its provider does not load, for example without cuDNN."""

    class FellBack:
        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [PROVIDERS[CUDA]])
    monkeypatch.setattr(onnxruntime_gpu, "create_session", lambda *arguments: FellBack())
    with pytest.raises(BackendError, match="on CPUExecutionProvider instead of CUDAExecution"):
        open_artifact(CUDA, tiny_bundle, tiny_bundle.artifact("fp16"), OpenOptions())


def test_disables_the_fallback_of_single_nodes(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries: list[Any] = []

    class OnCuda:
        def get_providers(self) -> list[str]:
            return [PROVIDERS[CUDA]]

    def create(graph: bytes, options: Any, providers: Any) -> OnCuda:
        entries.append(options.get_session_config_entry("session.disable_cpu_ep_fallback"))
        return OnCuda()

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [PROVIDERS[CUDA]])
    monkeypatch.setattr(onnxruntime_gpu, "create_session", create)
    OnnxRuntimeGpu(CUDA, tiny_bundle.read("fp16.onnx"), [(PROVIDERS[CUDA], {})]).close()
    assert entries == ["1"]


def test_without_onnxruntime_the_hint_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_gpu, "installed_version", lambda: None)
    found = check_availability(CUDA)
    assert found is not None
    assert "'.[gpu]' in the clone" in found.hint


def test_without_a_gpu_the_reason_is_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(PROVIDERS.values()))
    monkeypatch.setattr(
        onnxruntime_gpu, "check_gpu_availability", lambda: Unavailability("no GPU", "buy one")
    )
    assert check_availability(TENSORRT) == Unavailability("no GPU", "buy one")


@pytest.mark.parametrize(
    ("wheel", "library", "runs"),
    [(None, None, False), ("10.13.0", None, True), (None, "libnvinfer.so.10", True)],
)
def test_provider_needs_the_tensorrt_library(
    monkeypatch: pytest.MonkeyPatch, wheel: str | None, library: str | None, runs: bool
) -> None:
    """The package contains the provider, but not the TensorRT library that it links to."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(PROVIDERS.values()))
    monkeypatch.setattr(onnxruntime_gpu, "check_gpu_availability", lambda: None)
    monkeypatch.setattr(onnxruntime_gpu, "tensorrt_version", lambda flavour: wheel)
    monkeypatch.setattr(onnxruntime_gpu, "find_library", lambda name: library)
    found = check_availability(TENSORRT)
    assert (found is None) == runs
    assert found is None or "needs TensorRT" in found.reason
    assert check_availability(CUDA) is None


@pytest.mark.parametrize("precision", list(Precision))
def test_provider_options_are_texts(precision: Precision) -> None:
    for name in (CUDA, TENSORRT):
        for provider, options in choose_providers(name, precision, 32, Batches()):
            assert provider in PROVIDERS.values()
            assert all(isinstance(value, str) for value in options.values())


def test_tensorrt_options_have_batches_and_precision() -> None:
    (first, options), (second, _) = choose_providers(
        TENSORRT, Precision.INT8, 224, Batches(1, 8, 32)
    )
    assert (first, second) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    assert options["trt_profile_min_shapes"] == "images:1x224x224x3"
    assert options["trt_profile_opt_shapes"] == "images:8x224x224x3"
    assert options["trt_profile_max_shapes"] == "images:32x224x224x3"
    assert (options["trt_fp16_enable"], options["trt_int8_enable"]) == ("True", "True")
    assert options["trt_engine_cache_enable"] == "False"


def test_float32_stays_float32() -> None:
    _, options = choose_providers(TENSORRT, Precision.FP32, 32, Batches())[0]
    assert (options["trt_fp16_enable"], options["trt_int8_enable"]) == ("False", "False")
