"""From a bundle's graph to a backend: look in the cache, build what is missing, load it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.manifest import Artifact
from resdeploy.errors import BackendError, OutputError
from resdeploy.machine.device import read_device
from resdeploy.runtime.backends.base import OpenOptions
from resdeploy.runtime.backends.cuda import CudaRuntime, CudaDevice
from resdeploy.runtime.backends.tensorrt.build import build_and_store, deserialize
from resdeploy.runtime.backends.tensorrt.engine_backend import EngineBackend
from resdeploy.runtime.backends.tensorrt.engine_cache import CachedEngine, EngineCache
from resdeploy.runtime.backends.tensorrt.engine_key import find_compatible_engine, key_parts
from resdeploy.runtime.backends.tensorrt.flavour import Flavour, TensorRt, load_tensorrt
from resdeploy.runtime.backends.tensorrt.options import check_options, default_options

if TYPE_CHECKING:
    import tensorrt as trt

logger = logging.getLogger(__name__)


def open_backend(flavour: Flavour) -> Callable[[Bundle, Artifact, OpenOptions], EngineBackend]:
    """What `selection.Engine.open` is for this flavour."""

    def open_artifact(bundle: Bundle, artifact: Artifact, opening: OpenOptions) -> EngineBackend:
        """Load an artifact's engine, and build it where there is none that fits.

        Raises:
            BackendError, BundleError, OutputError: there is no GPU, or see `build.build`.
        """
        tensorrt = load_tensorrt(flavour)
        graph = bundle.read(artifact.file)
        cuda = CudaRuntime()
        gpu = cuda.gpu()
        engine, record = find_or_build(EngineCache(), tensorrt, graph, artifact, gpu, opening)
        create_context, workspace, save = _contexts(tensorrt, engine, record, gpu)
        return EngineBackend(
            tensorrt,
            engine,
            create_context,
            cuda,
            name=flavour.value,
            workspace=workspace,
            zero_copy=gpu.integrated,
            capture=flavour is Flavour.TENSORRT,
            on_close=save,
        )

    return open_artifact


def find_or_build(
    cache: EngineCache,
    tensorrt: TensorRt,
    graph: bytes,
    artifact: Artifact,
    gpu: CudaDevice,
    opening: OpenOptions,
) -> tuple[trt.ICudaEngine, CachedEngine]:
    """An engine that loads here; one that does not is removed, with a warning, and built again.

    Raises:
        BackendError, OutputError: see `build.build`.
    """
    device = read_device()
    usual = default_options(device)
    options = replace(usual, batches=opening.batches or usual.batches)
    parts = key_parts(tensorrt, artifact, gpu, options)
    with cache.lock(parts):
        if opening.batches is None:  # what was built last is what its builder wants to run
            record = find_compatible_engine(cache, tensorrt, artifact, gpu)
        else:
            record = cache.find(parts)
        data = cache.load(record) if record else None
        if record is not None and data is not None:
            try:
                return deserialize(tensorrt, data, record.parts["options"]), record
            except BackendError as error:
                logger.warning("%s; it is built again", error)
                cache.remove(record)
        check_options(options, tensorrt.flavour, tensorrt.version, device)
        logger.info("building an engine of %s (once; resdeploy build does it ahead)", artifact.file)
        record, data = build_and_store(cache, tensorrt, graph, artifact, gpu, options, opening.progress)
    try:
        return deserialize(tensorrt, data, record.parts["options"]), record
    except BackendError:
        cache.remove(record)
        raise


def _contexts(
    tensorrt: TensorRt, engine: trt.ICudaEngine, record: CachedEngine, gpu: CudaDevice
) -> tuple[Callable[[], trt.IExecutionContext | None], int | None, Callable[[], None]]:
    """How contexts are made, how much memory they share, and what to do before they go.

    TensorRT-RTX compiles kernels when they are first needed, and records CUDA graphs itself:
    NVIDIA, "Working with Runtime Cache" and "Working with RTX CUDA Graphs" of TensorRT-RTX.
    """
    api = tensorrt.api
    if tensorrt.flavour is Flavour.TENSORRT:
        shared = api.ExecutionContextAllocationStrategy.USER_MANAGED
        create = partial(engine.create_execution_context, shared)
        return create, engine.device_memory_size_v2, lambda: None
    cache = EngineCache("kernels")
    compiled_on = {"engine": record.sha256, "gpu": asdict(gpu), "version": tensorrt.version}
    config: Any = engine.create_runtime_config()  # RTX's has more members than the stubs know
    kernels = config.create_runtime_cache()
    before = cache.load_newest(compiled_on)
    if before is not None:
        kernels.deserialize(before)
    config.set_runtime_cache(kernels)
    config.cuda_graph_strategy = api.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    config.dynamic_shapes_kernel_specialization_strategy = (
        api.DynamicShapesKernelSpecializationStrategy.EAGER
    )

    def save() -> None:
        try:
            now = bytes(memoryview(kernels.serialize()))
            if now != before:
                cache.store(compiled_on, now)
        except (OutputError, TypeError) as error:
            logger.warning("compiled kernels are not kept: %s", error)

    return partial(engine.create_execution_context, config), None, save
