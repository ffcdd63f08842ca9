"""The few calls of the CUDA runtime that an engine needs, with errors of ours.

Source: NVIDIA, "CUDA Runtime API", sections on device, stream, memory and graph management;
`cuda.bindings.runtime` gives every call as a Python function that returns (error, results...).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from resdeploy.errors import BackendError, MissingDependencyError, needs_extra
from resdeploy.runtime.backends.base import Unavailability

Address = int
"""Of memory of the host or the device, in bytes."""
Stream = int
Graph = Any
"""A captured sequence of operations that can be launched again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaDevice:
    """The GPU in use, and its driver: what an engine depends on."""

    name: str
    compute_capability: str
    """Such as 8.7."""
    multiprocessors: int
    integrated: bool
    """Whether it shares the host's memory, as on a Jetson."""
    driver_cuda: str
    """The newest CUDA that the driver supports."""


class Cuda(Protocol):
    """What `engine_backend` asks of a device; `CudaRuntime` in earnest, a fake in tests."""

    def malloc(self, size: int) -> Address:
        """Memory of the device, in bytes."""
        ...

    def free(self, address: Address) -> None:
        """Give it back."""
        ...

    def malloc_host(self, size: int, *, mapped: bool) -> Address:
        """Memory of the host that is never paged out; `mapped`: the device can reach it, too."""
        ...

    def free_host(self, address: Address) -> None:
        """Give it back."""
        ...

    def device_address(self, host: Address) -> Address:
        """Under which address the device sees mapped memory of the host."""
        ...

    def create_stream(self) -> Stream:
        """A queue of work that does not wait for others."""
        ...

    def destroy_stream(self, stream: Stream) -> None:
        """Give it back."""
        ...

    def copy_to_device(self, to: Address, source: Address, size: int, stream: Stream) -> None:
        """Queue a copy from pinned memory."""
        ...

    def copy_to_host(self, to: Address, source: Address, size: int, stream: Stream) -> None:
        """Queue a copy to pinned memory."""
        ...

    def synchronize(self, stream: Stream) -> None:
        """Wait until the stream's work is done."""
        ...

    def begin_capture(self, stream: Stream) -> None:
        """Record what is queued from now on instead of doing it."""
        ...

    def end_capture(self, stream: Stream) -> Graph:
        """Stop recording; what was recorded, ready to be launched."""
        ...

    def launch(self, graph: Graph, stream: Stream) -> None:
        """Queue what was recorded."""
        ...

    def destroy_graph(self, graph: Graph) -> None:
        """Give it back."""
        ...


class CudaRuntime:
    """CUDA's runtime through `cuda.bindings`; every method may raise BackendError."""

    def __init__(self) -> None:
        # Typed loosely: the bindings of CUDA 12 and 13 differ in their signatures.
        self._runtime: Any = _bindings()

    def malloc(self, size: int) -> Address:
        """See `Cuda.malloc`."""
        return int(self._call("cudaMalloc", size))

    def free(self, address: Address) -> None:
        """See `Cuda.free`."""
        self._call("cudaFree", address)

    def malloc_host(self, size: int, *, mapped: bool) -> Address:
        """See `Cuda.malloc_host`."""
        kind = self._runtime.cudaHostAllocMapped if mapped else self._runtime.cudaHostAllocDefault
        return int(self._call("cudaHostAlloc", size, kind))

    def free_host(self, address: Address) -> None:
        """See `Cuda.free_host`."""
        self._call("cudaFreeHost", address)

    def device_address(self, host: Address) -> Address:
        """See `Cuda.device_address`."""
        return int(self._call("cudaHostGetDevicePointer", host, 0))

    def create_stream(self) -> Stream:
        """See `Cuda.create_stream`."""
        return int(self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking))

    def destroy_stream(self, stream: Stream) -> None:
        """See `Cuda.destroy_stream`."""
        self._call("cudaStreamDestroy", stream)

    def copy_to_device(self, to: Address, source: Address, size: int, stream: Stream) -> None:
        """See `Cuda.copy_to_device`."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", to, source, size, kind, stream)

    def copy_to_host(self, to: Address, source: Address, size: int, stream: Stream) -> None:
        """See `Cuda.copy_to_host`."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", to, source, size, kind, stream)

    def synchronize(self, stream: Stream) -> None:
        """See `Cuda.synchronize`."""
        self._call("cudaStreamSynchronize", stream)

    def begin_capture(self, stream: Stream) -> None:
        """See `Cuda.begin_capture`."""
        # Other threads may go on using the device: only this thread's calls are watched.
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: Stream) -> Graph:
        """See `Cuda.end_capture`."""
        recorded = self._call("cudaStreamEndCapture", stream)
        graph = self._call("cudaGraphInstantiate", recorded, 0)
        self._runtime.cudaGraphDestroy(recorded)  # whatever it says: the graph is made
        return graph

    def launch(self, graph: Graph, stream: Stream) -> None:
        """See `Cuda.launch`."""
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Graph) -> None:
        """See `Cuda.destroy_graph`."""
        self._call("cudaGraphExecDestroy", graph)

    def gpu(self) -> CudaDevice:
        """The GPU in use: the first that CUDA_VISIBLE_DEVICES leaves, unless a caller chose one."""
        attribute = self._runtime.cudaDeviceAttr
        number = int(self._call("cudaGetDevice"))
        properties = self._call("cudaGetDeviceProperties", number)

        def ask(which: Any) -> int:
            return int(self._call("cudaDeviceGetAttribute", which, number))

        return CudaDevice(
            name=properties.name.split(b"\0")[0].decode(errors="replace"),
            compute_capability=f"{ask(attribute.cudaDevAttrComputeCapabilityMajor)}."
            f"{ask(attribute.cudaDevAttrComputeCapabilityMinor)}",
            multiprocessors=ask(attribute.cudaDevAttrMultiProcessorCount),
            integrated=bool(ask(attribute.cudaDevAttrIntegrated)),
            driver_cuda=cuda_version(int(self._call("cudaDriverGetVersion"))),
        )

    def _call(self, name: str, *arguments: Any) -> Any:
        error, *results = getattr(self._runtime, name)(*arguments)
        if int(error) != 0:
            raise BackendError(
                f"CUDA failed in {name}: {_describe(self._runtime, error)}", _hint(error.name)
            )
        return results[0] if results else None


@functools.cache
def check_gpu_availability() -> Unavailability | None:
    """Why nothing can run on a GPU here; None where one is ready."""
    try:
        return check_cuda_runtime(_bindings())
    except MissingDependencyError as error:
        return Unavailability("the CUDA bindings are not installed", error.hint or "")
    except (ImportError, OSError, RuntimeError) as error:  # 12.8 raises where there is no driver
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return Unavailability(f"CUDA does not load: {reason}", "install the driver of an NVIDIA GPU")


def _bindings() -> Any:
    with needs_extra():
        return import_module("cuda.bindings.runtime")


def check_cuda_runtime(runtime: Any) -> Unavailability | None:
    """The same, of given bindings."""
    error, count = runtime.cudaGetDeviceCount()
    if int(error) == 0 and count:
        return None
    if error.name in ("cudaErrorNoDevice", "cudaSuccess"):
        return Unavailability(
            "no NVIDIA GPU is visible", "check nvidia-smi, and the variable CUDA_VISIBLE_DEVICES"
        )
    if error.name != "cudaErrorInsufficientDriver":
        return Unavailability(f"CUDA does not start: {_describe(runtime, error)}", "check nvidia-smi")
    driver, bindings = (
        cuda_version(int(getattr(runtime, name)()[1]))
        for name in ("cudaDriverGetVersion", "cudaRuntimeGetVersion")
    )
    if driver == "0.0":
        return Unavailability("there is no NVIDIA driver", "install the driver of an NVIDIA GPU")
    majors = [version.split(".")[0] for version in (driver, bindings)]
    # From 12.9 on the bindings bring a CUDA runtime of their own; 12.8 takes the driver's.
    older = f"{majors[0]}.*" if majors[0] != majors[1] else "12.8.*"
    return Unavailability(
        f"the NVIDIA driver is for CUDA {driver}, the CUDA bindings are for {bindings}",
        f"pip install 'cuda-bindings=={older}', or install a newer driver",
    )


def cuda_version(number: int) -> str:
    """13.5 of 13050."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _describe(runtime: Any, error: Any) -> str:
    _, text = runtime.cudaGetErrorString(error)
    return text.decode(errors="replace") if isinstance(text, bytes) else str(error.name)


def _hint(error: str) -> str:
    if error == "cudaErrorMemoryAllocation":
        return "build for a smaller batch with --batch, or stop what else uses the GPU"
    return "resdeploy doctor shows the driver and the GPU; the kernel's log may say more"
