"""Fakes of a CUDA device and of a TensorRT engine.

They record the calls of `runtime/backends/tensorrt/engine_backend.py` and run the queued work only
when a stream is synchronised, which is as late as a GPU may. They cannot show that CUDA and
TensorRT behave as documented.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from resdeploy.errors import BackendError
from resdeploy.runtime.backends.cuda import CudaRuntime
from resdeploy.runtime.backends.tensorrt.tensorrt_or_rtx import Flavour, TensorRt

Work = Callable[[], None]

FAKE_API = SimpleNamespace(
    TensorIOMode=SimpleNamespace(INPUT="input", OUTPUT="output"),
    DataType=SimpleNamespace(UINT8="uint8", FLOAT="float"),
    ProfilingVerbosity=SimpleNamespace(NONE="none"),
    Dims=tuple,
)


def fake_tensorrt(flavour: Flavour = Flavour.TENSORRT) -> TensorRt:
    return TensorRt(
        flavour=flavour,
        version="10.3.0",
        api=FAKE_API,
        log=cast(Any, None),
        errors=deque(["out of patience"]),
        layer_log=deque(),
    )


class FakeCuda(CudaRuntime):
    """A fake whose device memory is host memory; `failing` names a method that raises."""

    def __init__(self, failing: str = "", *, from_call: int = 1) -> None:
        self.failing = failing
        self.from_call = from_call
        self.calls: list[str] = []
        self.memory: dict[int, Any] = {}
        self.streams: dict[int, list[Work]] = {}
        self.graphs: list[list[Work]] = []
        self._recording: dict[int, list[Work]] = {}

    def malloc(self, size: int) -> int:
        self._note("malloc")
        return self._allocate(size)

    def free(self, address: int) -> None:
        self._note("free")
        del self.memory[address]

    def malloc_host(self, size: int, *, mapped: bool) -> int:
        self._note("malloc_mapped" if mapped else "malloc_host")
        return self._allocate(size)

    def free_host(self, address: int) -> None:
        self._note("free_host")
        del self.memory[address]

    def device_address(self, host: int) -> int:
        return host

    def create_stream(self) -> int:
        self._note("create_stream")
        stream = 1000 + len(self.streams)
        self.streams[stream] = []
        return stream

    def destroy_stream(self, stream: int) -> None:
        self._note("destroy_stream")
        del self.streams[stream]

    def copy_to_device(self, to: int, source: int, size: int, stream: int) -> None:
        self._note("copy_to_device")
        self.queue(stream, lambda: _copy(to, source, size))

    def copy_to_host(self, to: int, source: int, size: int, stream: int) -> None:
        self._note("copy_to_host")
        self.queue(stream, lambda: _copy(to, source, size))

    def synchronize(self, stream: int) -> None:
        self._note("synchronize")
        for work in self.streams[stream]:
            work()
        self.streams[stream].clear()

    def begin_capture(self, stream: int) -> None:
        self._note("begin_capture")
        self._recording[stream] = []

    def end_capture(self, stream: int) -> list[Work]:
        graph = self._recording.pop(stream)  # the capture ends even if this call fails
        self._note("end_capture")
        self.graphs.append(graph)
        return graph

    def launch(self, graph: list[Work], stream: int) -> None:
        self._note("launch")
        self.streams[stream].extend(graph)

    def destroy_graph(self, graph: list[Work]) -> None:
        self._note("destroy_graph")
        self.graphs.remove(graph)

    @property
    def capturing(self) -> bool:
        return bool(self._recording)

    def queue(self, stream: int, work: Work) -> None:
        self._recording.get(stream, self.streams[stream]).append(work)

    def _note(self, name: str) -> None:
        self.calls.append(name)
        if name == self.failing and self.calls.count(name) >= self.from_call:
            raise BackendError(f"CUDA failed in {name}", "use another GPU")

    def _allocate(self, size: int) -> int:
        block = (ctypes.c_uint8 * size)()
        self.memory[ctypes.addressof(block)] = block
        return ctypes.addressof(block)


def _copy(to: int, source: int, size: int) -> None:
    ctypes.memmove(to, source, size)


class FakeContext:
    """A context with three logits: the sum of an image, its first value, and the batch size."""

    def __init__(self, cuda: FakeCuda, image: tuple[int, int, int], *, fails: str = "") -> None:
        self.cuda = cuda
        self.image = image
        self.fails = fails
        self.addresses: dict[str, int] = {}
        self.batch = 0
        self.shapes: list[int] = []
        self.state = 0  # it changes with the shape and invalidates earlier graphs
        self.shape_changed = True
        self.nvtx_verbosity = ""
        self.memory: tuple[int, int] | None = None

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return self.fails != "set_tensor_address"

    def set_device_memory(self, address: int, size: int) -> None:
        self.memory = (address, size)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert not self.cuda.capturing, "a shape was set during a capture"
        assert name == "images"
        assert shape[1:] == self.image
        self.batch = shape[0]
        self.shapes.append(self.batch)
        self.state += 1
        self.shape_changed = True
        return self.fails != "set_input_shape"

    def execute_async_v3(self, stream: int) -> bool:
        assert self.nvtx_verbosity == "none"
        if self.cuda.capturing:
            assert not self.shape_changed, "captured before it ran once with this shape"
        self.shape_changed = False
        batch, state = self.batch, self.state

        def compute() -> None:
            assert self.state == state, "a graph ran with another shape than that of its capture"
            self._compute(batch)

        self.cuda.queue(stream, compute)
        return self.fails != "execute_async_v3"

    def _compute(self, batch: int) -> None:
        pixels = batch * int(np.prod(self.image))
        source = (ctypes.c_uint8 * pixels).from_address(self.addresses["images"])
        images = np.ctypeslib.as_array(source).reshape(batch, -1)
        target = (ctypes.c_float * (3 * batch)).from_address(self.addresses["logits"])
        logits = np.ctypeslib.as_array(target).reshape(batch, 3)
        logits[:, 0] = images.sum(axis=1)
        logits[:, 1] = images[:, 0]
        logits[:, 2] = batch


class FakeEngine:
    """An engine with one input and one output; `output` is the name of its output."""

    def __init__(
        self,
        cuda: FakeCuda,
        batches: tuple[int, int, int] = (1, 2, 4),
        image: tuple[int, int, int] = (2, 2, 3),
        *,
        output: str = "logits",
        fails: str = "",
    ) -> None:
        self.cuda = cuda
        self.batches = batches
        self.image = image
        self.output = output
        self.fails = fails
        self.contexts: list[FakeContext] = []
        self.num_io_tensors = 2

    def create_execution_context(self) -> FakeContext | None:
        if self.fails == "create_execution_context":
            return None
        self.contexts.append(FakeContext(self.cuda, self.image, fails=self.fails))
        return self.contexts[-1]

    def get_tensor_name(self, index: int) -> str:
        return ("images", self.output)[index]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name == "images" else "output"

    def get_tensor_dtype(self, name: str) -> str:
        return "uint8" if name == "images" else "float"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, *self.image) if name == "images" else (-1, 3)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        assert (name, profile) == ("images", 0)
        return [(batch, *self.image) for batch in self.batches]
