"""The backend that runs a TensorRT engine, with pinned buffers, two streams and CUDA graphs.

Sources: NVIDIA, "TensorRT Developer Guide", chapters "Performing Inference" (tensor names),
"CUDA Graphs" (one run before the capture, one context for each graph) and "Cross-Inference
Multi-Streaming"; NVIDIA, "CUDA for Tegra", chapter on pinned memory, for boards whose GPU shares
the host's memory.
"""

from __future__ import annotations

import ctypes
import logging
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from resdeploy.bundle.golden import Float32Array
from resdeploy.bundle.manifest import INPUT_NAME, OUTPUT_NAME
from resdeploy.errors import BackendError
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.runtime.backends.base import Batches
from resdeploy.runtime.backends.cuda import Address, CudaRuntime, Graph
from resdeploy.runtime.backends.tensorrt.tensorrt_or_rtx import TensorRt, dims_to_tuple

if TYPE_CHECKING:
    import tensorrt as trt

logger = logging.getLogger(__name__)

# A context and its graph hold device memory, so further batch sizes run without a CUDA graph.
MAX_GRAPHS = 16


class EngineBackend:
    """An engine on a GPU. `run` is thread-safe; it serves one caller at a time."""

    def __init__(
        self,
        tensorrt: TensorRt,
        engine: trt.ICudaEngine,
        create_context: Callable[[], trt.IExecutionContext | None],
        cuda: CudaRuntime,
        *,
        name: str,
        workspace: int | None = None,
        zero_copy: bool = False,
        capture: bool = True,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        """Allocate the buffers of an engine.

        The engine has the input `images`, uint8 (N, H, W, 3), and the output `logits`, float32
        (N, K). All contexts of a stream share a workspace of `workspace` bytes; with None, each
        context allocates its own. With `zero_copy` the GPU reads and writes the host's memory, as
        it can on a Jetson. `capture` is False if the engine captures CUDA graphs itself. `close`
        calls `on_close` before it frees the contexts.

        Raises:
            BackendError: The engine has other inputs or outputs, or there is too little memory.
        """
        self.name = name
        self._lock = threading.Lock()
        self._closed_reason: str | None = None
        self._on_close = on_close
        self.batches, self._image, self._classes = read_interface(tensorrt, engine)
        self._new_stream: Callable[[], _InferenceStream] | None = partial(
            _InferenceStream, tensorrt, create_context, cuda, self.batches.largest, self._image,
            self._classes, workspace, zero_copy, capture,
        )  # fmt: skip
        self._streams = [self._new_stream()]

    @property
    def captured(self) -> frozenset[int]:
        """Return the batch sizes for which a CUDA graph is ready."""
        return self._streams[0].captured if self._streams else frozenset()

    def run(self, images: UInt8Array) -> Float32Array:
        """See `Backend.run`; larger batches than the engine's maximum are split."""
        if images.dtype != np.uint8 or images.shape[1:] != self._image or not len(images):
            raise BackendError(
                f"the engine takes uint8 (N, {self._image[0]}, {self._image[1]}, 3), not "
                f"{images.dtype} {images.shape}",
                "prepare the images with the bundle's preprocessing",
            )
        with self._lock:
            if self._closed_reason is not None:
                raise BackendError(self._closed_reason, "load the bundle again")
            try:
                return self._run(images)
            except BaseException as error:
                # The state of the running batch, and after a CUDA error of the GPU, is unknown.
                reason = str(error) or type(error).__name__
                self._closed_reason = f"the engine has failed earlier: {reason}"
                raise

    def _run(self, images: UInt8Array) -> Float32Array:
        logits = np.empty((len(images), self._classes), dtype=np.float32)
        parts = split(len(images), self.batches.largest)
        if len(parts) > 1 and len(self._streams) == 1 and self._new_stream is not None:
            try:
                self._streams.append(self._new_stream())
            except BackendError as error:  # one stream is slower, but the results are the same
                logger.debug("there is no second stream: %s", error)
                self._new_stream = None
        # While one stream computes, the images of the other one are copied.
        running: list[tuple[_InferenceStream, slice]] = []
        for number, part in enumerate(parts):
            stream = self._streams[number % len(self._streams)]
            if len(running) == len(self._streams):
                oldest, rows = running.pop(0)
                logits[rows] = oldest.finish()
            stream.start(images[part], self.batches.smallest)
            running.append((stream, part))
        for oldest, rows in running:
            logits[rows] = oldest.finish()
        return logits

    def close(self) -> None:
        with self._lock:
            try:
                self._on_close()
            finally:
                self._closed_reason = "the engine was closed"
                for stream in self._streams:
                    stream.close()
                # TensorRT frees the engine with the last reference to it.
                self._streams, self._new_stream, self._on_close = [], None, lambda: None


def split(count: int, largest: int) -> list[slice]:
    """Return slices of nearly equal length, at most `largest`, that cover `count` images."""
    parts = -(-count // largest)
    size = -(-count // parts)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def read_interface(
    tensorrt: TensorRt, engine: trt.ICudaEngine
) -> tuple[Batches, tuple[int, int, int], int]:
    """Return the batch sizes, the image's shape and the number of classes of an engine."""
    api = tensorrt.api
    expected = {
        INPUT_NAME: (api.TensorIOMode.INPUT, api.DataType.UINT8, 4),
        OUTPUT_NAME: (api.TensorIOMode.OUTPUT, api.DataType.FLOAT, 2),
    }
    found = {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        rank = len(engine.get_tensor_shape(name))
        found[name] = (engine.get_tensor_mode(name), engine.get_tensor_dtype(name), rank)
    if found != expected:
        raise BackendError(
            f"the engine must have the input images and the output logits, not {', '.join(found)}",
            "build it with resdeploy build",
        )
    shapes = [dims_to_tuple(dims) for dims in engine.get_tensor_profile_shape(INPUT_NAME, 0)]
    height, width, channels = shapes[0][1:]
    classes = dims_to_tuple(engine.get_tensor_shape(OUTPUT_NAME))[1]
    return Batches(*(shape[0] for shape in shapes)), (height, width, channels), classes


@dataclass(slots=True)
class _ShapedContext:
    """An execution context that is set to one batch size, and its captured CUDA graph."""

    context: trt.IExecutionContext
    ran: bool = False
    graph: Graph | None = None


@dataclass(eq=False)
class _InferenceStream:
    """A CUDA stream with its own buffers; it runs one batch at a time.

    A CUDA graph depends on the state of the context that it was captured with, so each batch size
    has its own context. All contexts share one workspace.
    """

    tensorrt: TensorRt
    create_context: Callable[[], trt.IExecutionContext | None]
    cuda: CudaRuntime
    largest: int
    image: tuple[int, int, int]
    classes: int
    workspace: int | None
    zero_copy: bool
    capture: bool
    _contexts: dict[int, _ShapedContext] = field(default_factory=dict)
    _dynamic_context: trt.IExecutionContext | None = None
    _dynamic_batch: int = 0  # batch size to which the dynamic context is set
    _count: int = 0  # images of the current batch, without those that fill it up
    _memory: Address = 0
    _cleanups: list[tuple[Callable[[Address], None], Address]] = field(default_factory=list)

    def __post_init__(self) -> None:
        try:
            self._stream = self.cuda.create_stream()
            self._cleanups.append((self.cuda.destroy_stream, self._stream))
            inputs, outputs = (self.largest, *self.image), (self.largest, self.classes)
            self._host_in, self._device_in = self._buffers(math.prod(inputs))
            self._host_out, self._device_out = self._buffers(4 * math.prod(outputs))
            self._images = _view(self._host_in, inputs, ctypes.c_uint8)
            self._logits = _view(self._host_out, outputs, ctypes.c_float)
            if self.workspace is not None:
                self._memory = self.cuda.malloc(max(self.workspace, 1))
                self._cleanups.append((self.cuda.free, self._memory))
            if not self.capture:
                self._dynamic_context = self._new_context()
        except BaseException:
            self.close()
            raise

    @property
    def captured(self) -> frozenset[int]:
        return frozenset(
            batch for batch, shaped in self._contexts.items() if shaped.graph is not None
        )

    def start(self, images: UInt8Array, smallest: int) -> None:
        """Queue a batch; fill it up with black images if there are fewer than `smallest`."""
        self._count = len(images)
        batch = max(self._count, smallest)
        self._images[: self._count] = images
        self._images[self._count : batch] = 0
        shaped = self._context_for(batch) if self.capture else None
        if shaped is None:
            self._run_dynamic(batch)
            return
        # A context must run once with a shape before it can be captured.
        if shaped.ran and shaped.graph is None:
            shaped.graph = self._capture_graph(shaped.context, batch)
        if shaped.graph is not None:
            self.cuda.launch(shaped.graph, self._stream)
        else:
            self._enqueue(shaped.context, batch)
            shaped.ran = True

    def finish(self) -> Float32Array:
        """Wait for the batch and return its logits, which the next batch overwrites."""
        self.cuda.synchronize(self._stream)
        return self._logits[: self._count]

    def close(self) -> None:
        """Free everything, also after an error of the GPU."""
        if self._cleanups:
            self._try_release(self.cuda.synchronize, self._stream)
        for shaped in self._contexts.values():
            if shaped.graph is not None:
                self._try_release(self.cuda.destroy_graph, shaped.graph)
        self._contexts = {}
        self._dynamic_context = None
        while self._cleanups:
            self._try_release(*self._cleanups.pop())

    def _context_for(self, batch: int) -> _ShapedContext | None:
        if batch not in self._contexts:
            if len(self._contexts) >= MAX_GRAPHS:
                return None
            context = self._new_context()
            self._set_batch(context, batch)
            self._contexts[batch] = _ShapedContext(context)
        return self._contexts[batch]

    def _run_dynamic(self, batch: int) -> None:
        if self._dynamic_context is None:
            self._dynamic_context = self._new_context()
        if batch != self._dynamic_batch:
            self._set_batch(self._dynamic_context, batch)
            self._dynamic_batch = batch
        self._enqueue(self._dynamic_context, batch)

    def _new_context(self) -> trt.IExecutionContext:
        context = self.create_context()
        if context is None:
            raise BackendError(
                f"TensorRT cannot run the engine: {self.tensorrt.last_error()}",
                "build for a smaller batch with --batch, or stop other programs that use the GPU",
            )
        # The engine keeps the names of its layers for the inspector; NVTX does not need them.
        context.nvtx_verbosity = self.tensorrt.api.ProfilingVerbosity.NONE
        if self.workspace is not None:
            context.set_device_memory(self._memory, self.workspace)
        for name, address in ((INPUT_NAME, self._device_in), (OUTPUT_NAME, self._device_out)):
            self._check(context.set_tensor_address(name, address))
        return context

    def _set_batch(self, context: trt.IExecutionContext, batch: int) -> None:
        shape = self.tensorrt.dims(batch, *self.image)
        self._check(context.set_input_shape(INPUT_NAME, shape))

    def _enqueue(self, context: trt.IExecutionContext, batch: int) -> None:
        if not self.zero_copy:
            size = batch * math.prod(self.image)
            self.cuda.copy_to_device(self._device_in, self._host_in, size, self._stream)
        self._check(context.execute_async_v3(self._stream))
        if not self.zero_copy:
            size = 4 * batch * self.classes
            self.cuda.copy_to_host(self._host_out, self._device_out, size, self._stream)

    def _capture_graph(self, context: trt.IExecutionContext, batch: int) -> Graph | None:
        """Capture a batch as a CUDA graph; return None, and try no other one, if that fails."""
        try:
            self.cuda.begin_capture(self._stream)
            try:
                self._enqueue(context, batch)
            except BaseException:
                self._try_release(self.cuda.end_capture, self._stream)
                raise
            return self.cuda.end_capture(self._stream)
        except BackendError as error:
            logger.debug("no CUDA graph for a batch of %d: %s", batch, error)
            self.capture = False
            return None

    def _buffers(self, size: int) -> tuple[Address, Address]:
        host = self.cuda.malloc_host(size, mapped=self.zero_copy)
        self._cleanups.append((self.cuda.free_host, host))
        if self.zero_copy:
            return host, self.cuda.device_address(host)
        device = self.cuda.malloc(size)
        self._cleanups.append((self.cuda.free, device))
        return host, device

    def _try_release(self, release: Callable[[Any], object], resource: Any) -> None:
        try:
            release(resource)
        except BackendError as error:
            logger.debug("%s", error)

    def _check(self, done: bool) -> None:
        if not done:
            raise BackendError(
                f"TensorRT failed: {self.tensorrt.last_error()}",
                "run resdeploy verify; if it fails, too, build the engine again",
            )


def _view(
    address: Address, shape: tuple[int, ...], kind: type[ctypes.c_uint8] | type[ctypes.c_float]
) -> np.ndarray:
    """Return an array over memory that CUDA owns."""
    return np.ctypeslib.as_array((kind * math.prod(shape)).from_address(address)).reshape(shape)
