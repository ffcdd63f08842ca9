"""The calls of the CUDA runtime that a TensorRT engine needs; they raise BackendError.

Source: NVIDIA, "CUDA Runtime API", sections on device, stream, memory and graph management;
`cuda.bindings.runtime` gives every call as a Python function that returns (error, results...).
"""

from __future__ import annotations

import functools
from ctypes import CDLL
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from resdeploy.errors import (
    BackendError,
    MissingDependencyError,
    missing_dependency,
    one_line_reason,
)
from resdeploy.runtime.backends.base import Unavailability

Address = int
"""Address in the memory of the host or of the device."""
Stream = int
Graph = Any
"""A captured sequence of operations that can be launched repeatedly."""
NO_DRIVER = Unavailability("there is no NVIDIA driver", "install the driver of the NVIDIA GPU")


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaDevice:
    """The properties of a GPU and its driver on which an engine depends."""

    name: str
    compute_capability: str
    multiprocessors: int
    integrated: bool
    """True if the GPU shares the host's memory, as on a Jetson."""
    driver_cuda: str
    """The newest CUDA version that the driver supports."""


class CudaRuntime:
    """The CUDA runtime through `cuda.bindings`; every method may raise BackendError."""

    def __init__(self) -> None:
        # The type is Any because the signatures of CUDA 12 and 13 differ.
        self._runtime: Any = _bindings()

    def malloc(self, size: int) -> Address:
        return int(self._call("cudaMalloc", size))

    def free(self, address: Address) -> None:
        self._call("cudaFree", address)

    def malloc_host(self, size: int, *, mapped: bool) -> Address:
        """Allocate `size` bytes of pinned host memory; map it for the device if `mapped`."""
        kind = self._runtime.cudaHostAllocMapped if mapped else self._runtime.cudaHostAllocDefault
        return int(self._call("cudaHostAlloc", size, kind))

    def free_host(self, address: Address) -> None:
        self._call("cudaFreeHost", address)

    def device_address(self, host: Address) -> Address:
        """Return the device's address of mapped host memory."""
        return int(self._call("cudaHostGetDevicePointer", host, 0))

    def create_stream(self) -> Stream:
        """Create a stream that does not wait for other streams."""
        return int(self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking))

    def destroy_stream(self, stream: Stream) -> None:
        self._call("cudaStreamDestroy", stream)

    def copy_to_device(self, to: Address, source: Address, size: int, stream: Stream) -> None:
        """Queue a copy of `size` bytes from pinned host memory."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", to, source, size, kind, stream)

    def copy_to_host(self, to: Address, source: Address, size: int, stream: Stream) -> None:
        """Queue a copy of `size` bytes to pinned host memory."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", to, source, size, kind, stream)

    def synchronize(self, stream: Stream) -> None:
        self._call("cudaStreamSynchronize", stream)

    def begin_capture(self, stream: Stream) -> None:
        """Begin to record the work that is queued, instead of running it."""
        # In this mode, calls of other threads do not make the capture fail.
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: Stream) -> Graph:
        recorded = self._call("cudaStreamEndCapture", stream)
        graph = self._call("cudaGraphInstantiate", recorded, 0)
        self._runtime.cudaGraphDestroy(recorded)  # an error here does not affect the new graph
        return graph

    def launch(self, graph: Graph, stream: Stream) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Graph) -> None:
        self._call("cudaGraphExecDestroy", graph)

    def gpu(self) -> CudaDevice:
        """Return the current GPU: the first of CUDA_VISIBLE_DEVICES, unless another was chosen."""
        attribute = self._runtime.cudaDeviceAttr
        number = int(self._call("cudaGetDevice"))
        properties = self._call("cudaGetDeviceProperties", number)

        def get(name: Any) -> int:
            return int(self._call("cudaDeviceGetAttribute", name, number))

        return CudaDevice(
            name=properties.name.split(b"\0")[0].decode(errors="replace"),
            compute_capability=f"{get(attribute.cudaDevAttrComputeCapabilityMajor)}."
            f"{get(attribute.cudaDevAttrComputeCapabilityMinor)}",
            multiprocessors=get(attribute.cudaDevAttrMultiProcessorCount),
            integrated=bool(get(attribute.cudaDevAttrIntegrated)),
            driver_cuda=cuda_version(int(self._call("cudaDriverGetVersion"))),
        )

    def _call(self, name: str, *arguments: Any) -> Any:
        error, *results = getattr(self._runtime, name)(*arguments)
        if int(error) != 0:
            raise BackendError(
                f"CUDA failed in {name}: {_describe(self._runtime, error)}",
                "build for a smaller batch with --batch, or stop other programs that use the GPU"
                if error.name == "cudaErrorMemoryAllocation"
                else "run resdeploy doctor to check the driver and the GPU, and look into the "
                "kernel's log",
            )
        return results[0] if results else None


@functools.cache
def check_gpu_availability() -> Unavailability | None:
    """Return the reason why no GPU can be used here; None if one can."""
    try:
        CDLL("libcuda.so.1")  # without it, the bindings would take 50 ms and 10 MB
    except OSError:
        return NO_DRIVER
    try:
        return check_cuda_runtime(_bindings())
    except MissingDependencyError as error:
        return Unavailability("the CUDA bindings are not installed", error.hint or "")
    except (ImportError, OSError, RuntimeError) as error:  # 12.8 raises if there is no driver
        return Unavailability(
            f"CUDA does not load: {one_line_reason(error)}", "install the driver of the NVIDIA GPU"
        )


def _bindings() -> Any:
    try:
        return import_module("cuda.bindings.runtime")
    except ModuleNotFoundError as error:
        raise missing_dependency(error) from error


def check_cuda_runtime(runtime: Any) -> Unavailability | None:
    """Return the reason why `cuda.bindings.runtime` finds no usable GPU; None if it finds one."""
    error, count = runtime.cudaGetDeviceCount()
    if int(error) == 0 and count:
        return None
    if error.name in ("cudaErrorNoDevice", "cudaSuccess"):
        return Unavailability(
            "no NVIDIA GPU is visible", "run nvidia-smi and check CUDA_VISIBLE_DEVICES"
        )
    if error.name != "cudaErrorInsufficientDriver":
        return Unavailability(
            f"CUDA does not start: {_describe(runtime, error)}",
            "run nvidia-smi and check the driver",
        )
    driver = cuda_version(int(runtime.cudaDriverGetVersion()[1]))
    bindings = cuda_version(int(runtime.cudaRuntimeGetVersion()[1]))
    if driver == "0.0":
        return NO_DRIVER
    majors = [version.split(".")[0] for version in (driver, bindings)]
    # The bindings from 12.9 on contain a CUDA runtime; 12.8 uses that of the driver.
    older = f"{majors[0]}.*" if majors[0] != majors[1] else "12.8.*"
    return Unavailability(
        f"the NVIDIA driver is for CUDA {driver}, the CUDA bindings are for {bindings}",
        f"pip install 'cuda-bindings=={older}', or install a newer driver",
    )


def cuda_version(number: int) -> str:
    """Return the version, such as 13.5, of CUDA's number for it, such as 13050."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _describe(runtime: Any, error: Any) -> str:
    _, text = runtime.cudaGetErrorString(error)
    return text.decode(errors="replace") if isinstance(text, bytes) else str(error.name)
