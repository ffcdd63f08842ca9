"""A built engine as a backend: pinned buffers, two batches that overlap, CUDA graphs.

Sources: NVIDIA, "TensorRT Developer Guide", chapters "Performing Inference" (tensor names),
"CUDA Graphs" (one run before the capture, one context for each graph) and "Cross-Inference
Multi-Streaming"; NVIDIA, "CUDA
for Tegra", chapter on pinned memory, for boards whose GPU shares the host's memory.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from resdeploy.bundle.golden import Float32Array
from resdeploy.bundle.manifest import INPUT_NAME, OUTPUT_NAME
from resdeploy.errors import BackendError
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.runtime.backends.base import Batches
from resdeploy.runtime.backends.cuda import Address, Cuda, Graph
from resdeploy.runtime.backends.tensorrt.flavour import TensorRt, sizes

if TYPE_CHECKING:
    import tensorrt as trt

logger = logging.getLogger(__name__)

# A context and its graph hold memory of the device; further sizes of batches run without.
MOST_GRAPHS = 16


class EngineBackend:
    """An engine on a GPU; `run` may be called from several threads, which then take turns."""

    def __init__(
        self,
        tensorrt: TensorRt,
        engine: trt.ICudaEngine,
        create_context: Callable[[], trt.IExecutionContext | None],
        cuda: Cuda,
        *,
        name: str,
        workspace: int | None = None,
        zero_copy: bool = False,
        capture: bool = True,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        """Take an engine into service.

        Args:
            tensorrt: Where it comes from.
            engine: Its input is `images`, uint8 (N, H, W, 3), its output `logits`, float32 (N, K).
            create_context: Makes a context of the engine.
            cuda: The device.
            name: The backend's name.
            workspace: Bytes that contexts compute in, which they share; None: each brings its own.
            zero_copy: The GPU reads and writes the host's memory, as it can on a Jetson.
            capture: Record CUDA graphs; not where the engine does so itself.
            on_close: Called when the contexts are still there.

        Raises:
            BackendError: it is another kind of engine, or memory is short.
        """
        self.name = name
        self._lock = threading.Lock()
        self._closed_because: str | None = None
        self._on_close: Callable[[], None] | None = on_close
        self.batches, self._image, self._classes = describe(tensorrt, engine)
        self._new_slot: Callable[[], _Slot] | None = lambda: _Slot(
            tensorrt, create_context, cuda, self.batches.largest, self._image, self._classes,
            workspace=workspace, zero_copy=zero_copy, capture=capture,
        )  # fmt: skip
        self._slots = [self._new_slot()]

    @property
    def captured(self) -> frozenset[int]:
        """Sizes of batches for which a CUDA graph is ready: they start fastest."""
        return self._slots[0].captured if self._slots else frozenset()

    def run(self, images: UInt8Array) -> Float32Array:
        """See `Backend.run`; more images than the engine takes at once are split."""
        if images.dtype != np.uint8 or images.shape[1:] != self._image or not len(images):
            raise BackendError(
                f"the engine takes uint8 (N, {self._image[0]}, {self._image[1]}, 3), not "
                f"{images.dtype} {images.shape}",
                "prepare pictures with the bundle's own preprocessing",
            )
        with self._lock:
            if self._closed_because is not None:
                raise BackendError(self._closed_because, "load the bundle again")
            try:
                return self._run(images)
            except BaseException as error:
                # What was under way is in no known state, nor is the device after its own errors.
                reason = str(error) or type(error).__name__
                self._closed_because = f"the engine failed before: {reason}"
                raise

    def _run(self, images: UInt8Array) -> Float32Array:
        logits = np.empty((len(images), self._classes), dtype=np.float32)
        parts = split(len(images), self.batches.largest)
        if len(parts) > 1 and len(self._slots) == 1 and self._new_slot is not None:
            try:
                self._slots.append(self._new_slot())
            except BackendError as error:  # slower, not wrong
                logger.debug("no second batch at a time: %s", error)
                self._new_slot = None
        # While one slot computes, the other one's images are copied.
        waiting: list[tuple[_Slot, slice]] = []
        for number, part in enumerate(parts):
            slot = self._slots[number % len(self._slots)]
            if len(waiting) == len(self._slots):
                ready, where = waiting.pop(0)
                logits[where] = ready.finish()
            slot.start(images[part], self.batches.smallest)
            waiting.append((slot, part))
        for ready, where in waiting:
            logits[where] = ready.finish()
        return logits

    def close(self) -> None:
        """See `Backend.close`."""
        with self._lock:
            if not self._slots:
                return
            try:
                if self._on_close is not None:
                    self._on_close()
            finally:
                self._closed_because = "the engine was closed"
                for slot in self._slots:
                    slot.close()
                # The engine goes with the last that refers to it.
                self._slots, self._new_slot, self._on_close = [], None, None


def split(count: int, largest: int) -> list[slice]:
    """Parts of nearly the same size, none of more than `largest`."""
    parts = -(-count // largest)
    size = -(-count // parts)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def describe(
    tensorrt: TensorRt, engine: trt.ICudaEngine
) -> tuple[Batches, tuple[int, int, int], int]:
    """The batches, the image's shape and the number of classes that an engine was built for.

    Raises:
        BackendError: it does not take images and give logits.
    """
    api = tensorrt.api
    expected = {
        INPUT_NAME: (api.TensorIOMode.INPUT, api.DataType.UINT8, 4),
        OUTPUT_NAME: (api.TensorIOMode.OUTPUT, api.DataType.FLOAT, 2),
    }
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    found = {
        name: (
            engine.get_tensor_mode(name),
            engine.get_tensor_dtype(name),
            len(engine.get_tensor_shape(name)),
        )
        for name in names
    }
    if found != expected:
        raise BackendError(
            f"the engine has other inputs and outputs than images and logits: {', '.join(names)}",
            "build it with resdeploy build",
        )
    shapes = [sizes(dims) for dims in engine.get_tensor_profile_shape(INPUT_NAME, 0)]
    height, width, channels = shapes[0][1:]
    classes = sizes(engine.get_tensor_shape(OUTPUT_NAME))[1]
    return Batches(*(shape[0] for shape in shapes)), (height, width, channels), classes


@dataclass(slots=True)
class _Prepared:
    """A context that was told of one size of batches, and what was captured with it."""

    context: trt.IExecutionContext
    ran: bool = False
    graph: Graph | None = None


class _Slot:
    """Buffers and a stream of its own: one batch under way.

    A captured graph holds the state of the context that it was captured with, so each size of
    batches has a context of its own; they share the memory in which they compute.
    """

    def __init__(
        self,
        tensorrt: TensorRt,
        create_context: Callable[[], trt.IExecutionContext | None],
        cuda: Cuda,
        largest: int,
        image: tuple[int, int, int],
        classes: int,
        *,
        workspace: int | None,
        zero_copy: bool,
        capture: bool,
    ) -> None:
        self._tensorrt = tensorrt
        self._create_context = create_context
        self._cuda = cuda
        self._image = image
        self._classes = classes
        self._workspace = workspace
        self._zero_copy = zero_copy
        self._capture = capture
        self._prepared: dict[int, _Prepared] = {}
        self._flexible: trt.IExecutionContext | None = None
        self._shape = 0  # the batch that the flexible context was last told of
        self._kept = 0
        self._free: list[tuple[Callable[[Address], None], Address]] = []
        try:
            self._stream = cuda.create_stream()
            self._free.append((cuda.destroy_stream, self._stream))
            pixels, numbers = largest * int(np.prod(image)), largest * classes
            self._host_in, self._device_in = self._buffers(pixels)
            self._host_out, self._device_out = self._buffers(4 * numbers)
            self._images = _view(self._host_in, pixels, ctypes.c_uint8).reshape(largest, *image)
            self._logits = _view(self._host_out, numbers, ctypes.c_float).reshape(largest, classes)
            self._memory = 0
            if workspace is not None:
                self._memory = cuda.malloc(max(workspace, 1))
                self._free.append((cuda.free, self._memory))
            if not capture:
                self._flexible = self._context()
        except BaseException:
            self.close()
            raise

    @property
    def captured(self) -> frozenset[int]:
        """Sizes of batches whose graph is ready."""
        return frozenset(size for size, one in self._prepared.items() if one.graph is not None)

    def start(self, images: UInt8Array, smallest: int) -> None:
        """Queue a batch; fewer than `smallest` images are filled up with black ones."""
        self._kept = len(images)
        batch = max(self._kept, smallest)
        self._images[: self._kept] = images
        self._images[self._kept : batch] = 0
        prepared = self._prepare(batch) if self._capture else None
        if prepared is None:
            self._run_flexible(batch)
            return
        # TensorRT must have run once with a shape before it can be captured.
        if prepared.ran and prepared.graph is None and self._capture:
            prepared.graph = self._record(prepared.context, batch)
        if prepared.graph is not None:
            self._cuda.launch(prepared.graph, self._stream)
        else:
            self._enqueue(prepared.context, batch)
            prepared.ran = True

    def finish(self) -> Float32Array:
        """Wait for the batch; its logits, which the next one overwrites."""
        self._cuda.synchronize(self._stream)
        return self._logits[: self._kept]

    def close(self) -> None:
        """Give everything back, whatever state the device is in."""
        if self._free:
            self._try(self._cuda.synchronize, self._stream)  # nothing may be under way
        for prepared in self._prepared.values():
            if prepared.graph is not None:
                self._try(self._cuda.destroy_graph, prepared.graph)
        self._prepared = {}
        self._flexible = None
        while self._free:
            self._try(*self._free.pop())

    def _prepare(self, batch: int) -> _Prepared | None:
        """The context for a size; None where there are too many of them."""
        if batch not in self._prepared:
            if len(self._prepared) >= MOST_GRAPHS:
                return None
            context = self._context()
            self._tell(context, batch)
            self._prepared[batch] = _Prepared(context)
        return self._prepared[batch]

    def _run_flexible(self, batch: int) -> None:
        if self._flexible is None:
            self._flexible = self._context()
        if batch != self._shape:
            self._tell(self._flexible, batch)
            self._shape = batch
        self._enqueue(self._flexible, batch)

    def _context(self) -> trt.IExecutionContext:
        context = self._create_context()
        if context is None:
            raise BackendError(
                f"TensorRT cannot run the engine: {self._tensorrt.last_error()}",
                "build for a smaller batch with --batch, or stop what else uses the GPU",
            )
        # The engine tells its layers to the inspector; each run need not tell them to a profiler.
        context.nvtx_verbosity = self._tensorrt.api.ProfilingVerbosity.NONE
        if self._workspace is not None:
            context.set_device_memory(self._memory, self._workspace)
        for name, address in ((INPUT_NAME, self._device_in), (OUTPUT_NAME, self._device_out)):
            self._check(context.set_tensor_address(name, address))
        return context

    def _tell(self, context: trt.IExecutionContext, batch: int) -> None:
        shape = self._tensorrt.dims(batch, *self._image)
        self._check(context.set_input_shape(INPUT_NAME, shape))

    def _enqueue(self, context: trt.IExecutionContext, batch: int) -> None:
        if not self._zero_copy:
            size = batch * int(np.prod(self._image))
            self._cuda.copy_to_device(self._device_in, self._host_in, size, self._stream)
        self._check(context.execute_async_v3(self._stream))
        if not self._zero_copy:
            size = 4 * batch * self._classes
            self._cuda.copy_to_host(self._host_out, self._device_out, size, self._stream)

    def _record(self, context: trt.IExecutionContext, batch: int) -> Graph | None:
        """Capture what a batch queues; None, and never again, where that is impossible."""
        try:
            self._cuda.begin_capture(self._stream)
            try:
                self._enqueue(context, batch)
            except BaseException:
                self._try(lambda stream: self._cuda.end_capture(stream), self._stream)
                raise
            return self._cuda.end_capture(self._stream)
        except BackendError as error:
            logger.debug("no CUDA graph for a batch of %d: %s", batch, error)
            self._capture = False
            return None

    def _buffers(self, size: int) -> tuple[Address, Address]:
        host = self._cuda.malloc_host(size, mapped=self._zero_copy)
        self._free.append((self._cuda.free_host, host))
        if self._zero_copy:
            return host, self._cuda.device_address(host)
        device = self._cuda.malloc(size)
        self._free.append((self._cuda.free, device))
        return host, device

    def _try(self, release: Callable[[Any], object], what: Any) -> None:
        try:
            release(what)
        except BackendError as error:
            logger.debug("%s", error)

    def _check(self, done: bool) -> None:
        if not done:
            raise BackendError(
                f"TensorRT failed: {self._tensorrt.last_error()}",
                "run resdeploy verify; if it fails as well, build the engine again",
            )


def _view(
    address: Address, count: int, kind: type[ctypes.c_uint8] | type[ctypes.c_float]
) -> np.ndarray:
    """An array over memory that CUDA owns."""
    return np.ctypeslib.as_array((kind * count).from_address(address))
