"""CUDA's errors become ours; the real bindings are asked as far as a machine without a GPU goes."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import pytest

from resdeploy.errors import BackendError
from resdeploy.runtime.backends import cuda
from resdeploy.runtime.backends.base import Unavailability
from resdeploy.runtime.backends.cuda import (
    CudaRuntime,
    check_cuda_runtime,
    check_gpu_availability,
    cuda_version,
)


class Error(IntEnum):
    """Some of cudaError_t."""

    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorIllegalAddress = 700


def fake_bindings(error: Error, *, driver: int = 0, devices: int = 0, **more: Any) -> Any:
    """What `cuda.bindings.runtime` gives where every call ends with `error`."""
    return SimpleNamespace(
        cudaGetDeviceCount=lambda: (error, devices),
        cudaDriverGetVersion=lambda: (Error.cudaSuccess, driver),
        cudaRuntimeGetVersion=lambda: (Error.cudaSuccess, 13050),
        cudaGetErrorString=lambda code: (Error.cudaSuccess, f"text of {code.name}".encode()),
        **more,
    )


@pytest.mark.parametrize(
    ("bindings", "reason", "remedy"),
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
def test_what_stands_in_the_way_is_named(bindings: Any, reason: str, remedy: str) -> None:
    obstacle = check_cuda_runtime(bindings)
    assert obstacle is not None
    assert obstacle.reason == reason
    assert remedy in obstacle.hint


def test_a_gpu_is_no_obstacle() -> None:
    assert check_cuda_runtime(fake_bindings(Error.cudaSuccess, devices=1)) is None


def obstacle_with(
    import_module: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> Unavailability | None:
    """What the machine's GPU lacks, by another way to import."""
    monkeypatch.setattr(cuda, "import_module", import_module)
    check_gpu_availability.cache_clear()
    try:
        return check_gpu_availability()
    finally:
        check_gpu_availability.cache_clear()


def test_without_bindings_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    obstacle = obstacle_with(missing, monkeypatch)
    assert obstacle is not None
    assert obstacle.hint == "pip install 'resdeploy[gpu]'"


@pytest.mark.parametrize(
    "error", [RuntimeError("Failed to dlopen libcuda.so.1\nmore"), OSError("libcuda.so.1: gone")]
)
def test_bindings_that_do_not_load_are_an_obstacle(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """As those of 12.8 are where there is no driver: the CPU must not be lost for that."""

    def broken(name: str) -> Any:
        raise error

    obstacle = obstacle_with(broken, monkeypatch)
    assert obstacle is not None
    assert obstacle.reason.startswith("CUDA does not load: ")
    assert "\n" not in obstacle.reason


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


def test_the_real_bindings_know_every_name_we_use() -> None:
    """So that a misspelt call cannot wait for the first GPU."""
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


def test_without_a_driver_the_real_runtime_fails_as_ours() -> None:
    pytest.importorskip("cuda.bindings.runtime")
    if (obstacle := check_gpu_availability()) is None:
        pytest.skip("there is a GPU")
    assert obstacle.reason
    with pytest.raises(BackendError, match="CUDA failed in cuda") as caught:
        CudaRuntime().gpu()
    assert "\n" not in str(caught.value)
