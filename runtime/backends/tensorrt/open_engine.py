"""Loading of a bundle's graph with TensorRT: find its engine in the cache, or build it."""

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
from resdeploy.runtime.backends.cuda import CudaDevice, CudaRuntime
from resdeploy.runtime.backends.tensorrt.build import build_and_store, deserialize
from resdeploy.runtime.backends.tensorrt.engine_backend import EngineBackend
from resdeploy.runtime.backends.tensorrt.engine_cache import CachedEngine, EngineCache
from resdeploy.runtime.backends.tensorrt.engine_key import find_compatible_engine, key_parts
from resdeploy.runtime.backends.tensorrt.options import check_options, default_options
from resdeploy.runtime.backends.tensorrt.tensorrt_or_rtx import Flavour, TensorRt, load_tensorrt

if TYPE_CHECKING:
    import tensorrt as trt

logger = logging.getLogger(__name__)


def open_artifact(
    flavour: Flavour, bundle: Bundle, artifact: Artifact, options: OpenOptions
) -> EngineBackend:
    """Open an artifact; see `registry.Engine.open`. Build its engine if the cache has none."""
    tensorrt = load_tensorrt(flavour)
    graph = bundle.read(artifact.file)
    cuda = CudaRuntime()
    gpu = cuda.gpu()
    engine, record = find_or_build(tensorrt, graph, artifact, gpu, options)
    create_context, workspace, save = _prepare_contexts(tensorrt, engine, record, gpu)
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


def find_or_build(
    tensorrt: TensorRt, graph: bytes, artifact: Artifact, gpu: CudaDevice, options: OpenOptions
) -> tuple[trt.ICudaEngine, CachedEngine]:
    """Load an engine from the cache, or build it; remove and rebuild one that does not load."""
    device = read_device()
    defaults = default_options(device)
    build_options = replace(defaults, batches=options.batches or defaults.batches)
    parts = key_parts(tensorrt, artifact, gpu, build_options)
    cache = EngineCache()
    with cache.lock(parts):
        if options.batches is None:  # the user built the newest engine to run it
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
        check_options(build_options, tensorrt.flavour, tensorrt.version, device)
        logger.info("building an engine of %s for the first run", artifact.file)
        record, data = build_and_store(
            cache, tensorrt, graph, artifact, gpu, build_options, options.progress
        )
    try:
        return deserialize(tensorrt, data, record.parts["options"]), record
    except BackendError:
        cache.remove(record)
        raise


def _prepare_contexts(
    tensorrt: TensorRt, engine: trt.ICudaEngine, record: CachedEngine, gpu: CudaDevice
) -> tuple[Callable[[], trt.IExecutionContext | None], int | None, Callable[[], None]]:
    """Return the parameters `create_context`, `workspace` and `on_close` of `EngineBackend`.

    TensorRT-RTX compiles kernels when it first needs them, and captures CUDA graphs itself.
    Source: NVIDIA, "Working with Runtime Cache" and "Working with RTX CUDA Graphs" of TensorRT-RTX.
    """
    api = tensorrt.api
    if tensorrt.flavour is Flavour.TENSORRT:
        shared = api.ExecutionContextAllocationStrategy.USER_MANAGED
        create = partial(engine.create_execution_context, shared)
        return create, engine.device_memory_size_v2, lambda: None
    cache = EngineCache("kernels")
    key = {"engine": record.sha256, "gpu": asdict(gpu), "version": tensorrt.version}
    config: Any = engine.create_runtime_config()  # the stubs lack some members of RTX's class
    kernels = config.create_runtime_cache()
    before = cache.load_newest(key)
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
                cache.store(key, now)
        except (OutputError, TypeError) as error:
            logger.warning("the compiled kernels are not stored: %s", error)

    return partial(engine.create_execution_context, config), None, save
