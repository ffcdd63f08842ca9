"""The builder: it turns the bytes of an ONNX graph into the bytes of a TensorRT engine.

Sources: NVIDIA, "TensorRT Developer Guide", chapters "Strongly Typed Networks", "Working with
Dynamic Shapes", "Timing Cache" and "Progress Monitor".
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING

from resdeploy.bundle.manifest import INPUT_NAME
from resdeploy.errors import BackendError
from resdeploy.progress import Progress, silent
from resdeploy.runtime.backends.base import Batches
from resdeploy.runtime.backends.tensorrt.build_progress import BuildProgress, make_monitor
from resdeploy.runtime.backends.tensorrt.inspector import EngineLayer, parse_builder_log
from resdeploy.runtime.backends.tensorrt.options import BuildOptions
from resdeploy.runtime.backends.tensorrt.parser_errors import explain_parser_error
from resdeploy.runtime.backends.tensorrt.tensorrt_or_rtx import Flavour, TensorRt, dims_to_tuple

if TYPE_CHECKING:
    import tensorrt as trt

PROGRESS_STEPS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltEngine:
    """The result of a build."""

    engine: bytes
    timings: bytes | None
    """The timing cache, for the next build; None for TensorRT-RTX."""
    layers: tuple[EngineLayer, ...]
    """The layers that the builder logged; empty for TensorRT."""


def build_engine(
    tensorrt: TensorRt,
    graph: bytes,
    options: BuildOptions,
    *,
    name: str = "the graph",
    timings: bytes | None = None,
    progress: Progress = silent,
    check_memory: Callable[[], None] = lambda: None,
) -> BuiltEngine:
    """Build a strongly typed engine: the graph alone decides every precision.

    Args:
        tensorrt: The TensorRT that builds.
        graph: The content of an ONNX file whose input is uint8 (N, H, W, 3).
        options: The build options.
        name: The name of the graph in messages.
        timings: The timing cache of an earlier build here. TensorRT-RTX does not use one.
        progress: Reports the finished thousandths of the build.
        check_memory: Called ten times a second; an exception that it raises ends the build.

    Raises:
        BackendError: The parser or the builder rejects the graph.
        KeyboardInterrupt: The user pressed CTRL-C; nothing is left behind.
    """
    tensorrt.errors.clear()
    tensorrt.layer_log.clear()
    try:
        builder: trt.Builder = tensorrt.api.Builder(tensorrt.log)
    except (TypeError, RuntimeError) as error:  # the bindings raise them if there is no builder
        raise _build_error(tensorrt, name) from error
    # From TensorRT 11 on, all networks are strongly typed, and the flag may be missing.
    flag = getattr(tensorrt.api.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    _parse(tensorrt, network, graph, name)
    config: trt.IBuilderConfig = builder.create_builder_config()
    config.add_optimization_profile(_make_profile(tensorrt, builder, network, options.batches))
    _configure(tensorrt, config, options)
    cache = None
    if tensorrt.flavour is Flavour.TENSORRT:  # for RTX, a cache has no effect and requires a GPU
        cache = config.create_timing_cache(timings or b"")
        config.set_timing_cache(cache, False)

    build_progress = BuildProgress()
    config.progress_monitor = make_monitor(tensorrt.api, build_progress)
    serialized = _build_interruptibly(
        lambda: builder.build_serialized_network(network, config),
        build_progress,
        progress,
        check_memory,
    )
    if serialized is None:
        raise _build_error(tensorrt, name)
    return BuiltEngine(
        engine=bytes(memoryview(serialized)),
        timings=bytes(memoryview(cache.serialize())) if cache is not None else None,
        # TensorRT logs its layers in another format; its engine inspector reports them instead.
        layers=tuple(parse_builder_log("\n".join(tensorrt.layer_log)))
        if tensorrt.flavour is Flavour.RTX
        else (),
    )


def merge_timings(tensorrt: TensorRt, ours: bytes, theirs: bytes) -> bytes:
    """Combine two timing caches; return `ours` if TensorRT cannot combine them."""
    config: trt.IBuilderConfig = tensorrt.api.Builder(tensorrt.log).create_builder_config()
    merged = config.create_timing_cache(ours)
    others = config.create_timing_cache(theirs)
    if merged is None or others is None or not merged.combine(others, False):
        return ours
    return bytes(memoryview(merged.serialize()))


def _parse(tensorrt: TensorRt, network: trt.INetworkDefinition, graph: bytes, name: str) -> None:
    parser: trt.OnnxParser = tensorrt.api.OnnxParser(network, tensorrt.log)
    if not parser.parse(graph):
        if not parser.num_errors:
            raise _build_error(tensorrt, name)
        raise explain_parser_error(parser.get_error(0), str(tensorrt), name)
    inputs = [network.get_input(index).name for index in range(network.num_inputs)]
    if inputs != [INPUT_NAME]:
        raise BackendError(
            f"the inputs of {name} are {', '.join(inputs) or 'none'}; only {INPUT_NAME} is allowed",
            "export it with resdeploy export",
        )


def _make_profile(
    tensorrt: TensorRt, builder: trt.Builder, network: trt.INetworkDefinition, batches: Batches
) -> trt.IOptimizationProfile:
    image = dims_to_tuple(network.get_input(0).shape)[1:]
    profile = builder.create_optimization_profile()
    profile.set_shape(
        INPUT_NAME,
        tensorrt.dims(batches.smallest, *image),
        tensorrt.dims(batches.usual, *image),
        tensorrt.dims(batches.largest, *image),
    )
    return profile


def _configure(tensorrt: TensorRt, config: trt.IBuilderConfig, options: BuildOptions) -> None:
    api = tensorrt.api
    # With less verbosity the inspector reports only the names of the layers.
    config.profiling_verbosity = api.ProfilingVerbosity.DETAILED
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if options.version_compatible:
        config.set_flag(api.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = api.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.dla_core is not None:
        config.default_device_type = api.DeviceType.DLA
        config.DLA_core = options.dla_core
        config.set_flag(api.BuilderFlag.GPU_FALLBACK)


def _build_interruptibly(
    build: Callable[[], trt.IHostMemory | None],
    build_progress: BuildProgress,
    progress: Progress,
    check_memory: Callable[[], None] = lambda: None,
) -> trt.IHostMemory | None:
    """Build in a second thread: the main thread handles CTRL-C and shows the progress."""
    shown = 0
    with (
        ThreadPoolExecutor(1, "tensorrt-build") as pool,
        progress("building", PROGRESS_STEPS) as advance,
    ):
        building = pool.submit(build)
        try:
            while not building.done():
                wait([building], timeout=0.1)
                check_memory()
                done = int(PROGRESS_STEPS * build_progress.fraction())
                advance(done - shown)
                shown = done
        except BaseException:
            build_progress.cancel()  # the pool waits until TensorRT has stopped
            raise
        advance(PROGRESS_STEPS - shown)
    return building.result()


def _build_error(tensorrt: TensorRt, name: str) -> BackendError:
    return BackendError(
        f"{tensorrt} cannot build {name}: {tensorrt.last_error()}",
        "try a smaller --batch or --workspace, and check the GPU and its driver with "
        "resdeploy doctor",
    )
