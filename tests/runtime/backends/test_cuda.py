"""CUDA errors, with fake bindings, and with the real ones as far as possible without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import pytest

from resdeploy.errors import BackendError, install_hint
from resdeploy.runtime.backends import cuda
from resdeploy.runtime.backends.base import Unavailability
from resdeploy.runtime.backends.cuda import (
    CudaRuntime,
    check_cuda_runtime,
    check_gpu_availability,
    cuda_version,
)


class Error(IntEnum):
    """Some members of cudaError_t."""

    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorIllegalAddress = 700


def fake_bindings(error: Error, *, driver: int = 0, devices: int = 0, **more: Any) -> Any:
    """Return a fake `cuda.bindings.runtime` whose calls end with `error`."""
    return SimpleNamespace(
        cudaGetDeviceCount=lambda: (error, devices),
        cudaDriverGetVersion=lambda: (Error.cudaSuccess, driver),
        cudaRuntimeGetVersion=lambda: (Error.cudaSuccess, 13050),
        cudaGetErrorString=lambda code: (Error.cudaSuccess, f"text of {code.name}".encode()),
        **more,
    )


@pytest.mark.parametrize(
    ("bindings", "reason", "hint"),
    [
        (fake_bindings(Error.cudaErrorNoDevice), "no NVIDIA GPU is visible", "nvidia-smi"),
        (fake_bindings(Error.cudaSuccess), "no NVIDIA GPU is visible", "CUDA_VISIBLE_DEVICES"),
        (
            fake_bindings(Error.cudaErrorInsufficientDriver),
            "there is no NVIDIA driver",
            "install the driver",
        ),
        (
            fake_bindings(Error.cudaErrorInsufficientDriver, driver=12060),
            "the NVIDIA driver is for CUDA 12.6, the CUDA bindings are for 13.5",
            "pip install 'cuda-bindings==12.*'",
        ),
        (
            fake_bindings(Error.cudaErrorInsufficientDriver, driver=13000),
            "the NVIDIA driver is for CUDA 13.0, the CUDA bindings are for 13.5",
            "pip install 'cuda-bindings==12.8.*'",
        ),
        (
            fake_bindings(Error.cudaErrorIllegalAddress),
            "CUDA does not start: text of cudaErrorIllegalAddress",
            "nvidia-smi",
        ),
    ],
)
def test_gives_the_reason_and_a_hint(bindings: Any, reason: str, hint: str) -> None:
    found = check_cuda_runtime(bindings)
    assert found is not None
    assert found.reason == reason
    assert hint in found.hint


def test_a_gpu_is_available() -> None:
    assert check_cuda_runtime(fake_bindings(Error.cudaSuccess, devices=1)) is None


def availability_with(
    import_module: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> Unavailability | None:
    """Check the GPU with another import function, as if there were a driver."""
    monkeypatch.setattr(cuda, "CDLL", lambda name: None)
    monkeypatch.setattr(cuda, "import_module", import_module)
    check_gpu_availability.cache_clear()
    try:
        return check_gpu_availability()
    finally:
        check_gpu_availability.cache_clear()


def test_without_bindings_the_hint_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    found = availability_with(missing, monkeypatch)
    assert found is not None
    assert found.hint == install_hint("gpu")


@pytest.mark.parametrize(
    "error", [RuntimeError("Failed to dlopen libcuda.so.1\nmore"), OSError("libcuda.so.1: gone")]
)
def test_bindings_that_do_not_load_are_unavailable(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The bindings of 12.8 do so if there is no driver; the CPU must stay usable."""

    def broken(name: str) -> Any:
        raise error

    found = availability_with(broken, monkeypatch)
    assert found is not None
    assert found.reason.startswith("CUDA does not load: ")
    assert "\n" not in found.reason


def test_errors_name_the_call_and_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    bindings = fake_bindings(
        Error.cudaSuccess,
        cudaMalloc=lambda size: (Error.cudaErrorMemoryAllocation, None),
        cudaStreamSynchronize=lambda stream: (Error.cudaErrorIllegalAddress,),
        cudaFree=lambda address: (Error.cudaSuccess,),
    )
    monkeypatch.setattr(cuda, "_bindings", lambda: bindings)
    runtime = CudaRuntime()
    with pytest.raises(
        BackendError, match="in cudaMalloc: text of cudaErrorMemoryAllocation"
    ) as caught:
        runtime.malloc(1 << 40)
    assert "--batch" in str(caught.value.hint)
    with pytest.raises(BackendError, match="in cudaStreamSynchronize"):
        runtime.synchronize(1)
    runtime.free(1)


@pytest.mark.parametrize(("number", "text"), [(13050, "13.5"), (12060, "12.6"), (0, "0.0")])
def test_versions_are_read(number: int, text: str) -> None:
    assert cuda_version(number) == text


def test_the_real_bindings_have_every_name() -> None:
    """Find misspelt calls without a GPU."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    for name in (
        "cudaMalloc", "cudaFree", "cudaHostAlloc", "cudaFreeHost", "cudaHostGetDevicePointer",
        "cudaStreamCreateWithFlags", "cudaStreamDestroy", "cudaMemcpyAsync",
        "cudaStreamSynchronize", "cudaStreamBeginCapture", "cudaStreamEndCapture",
        "cudaGraphInstantiate", "cudaGraphDestroy", "cudaGraphLaunch", "cudaGraphExecDestroy",
        "cudaGetDevice", "cudaGetDeviceProperties", "cudaDeviceGetAttribute", "cudaHostAllocMapped",
        "cudaHostAllocDefault", "cudaStreamNonBlocking",
    ):  # fmt: skip
        assert hasattr(runtime, name), name
    assert hasattr(runtime.cudaMemcpyKind, "cudaMemcpyHostToDevice")
    assert hasattr(runtime.cudaStreamCaptureMode, "cudaStreamCaptureModeThreadLocal")
    assert hasattr(runtime.cudaDeviceAttr, "cudaDevAttrIntegrated")


def test_without_a_driver_the_real_bindings_raise_backend_error() -> None:
    pytest.importorskip("cuda.bindings.runtime")
    if (found := check_gpu_availability()) is None:
        pytest.skip("there is a GPU")
    assert found.reason
    with pytest.raises(BackendError, match="CUDA failed in cuda") as caught:
        CudaRuntime().gpu()
    assert "\n" not in str(caught.value)
