"""From an ONNX graph to a serialised engine; neither files nor bundles are known here.

Sources: NVIDIA, "TensorRT Developer Guide", chapters "Strongly Typed Networks", "Working with
Dynamic Shapes", "Timing Cache" and "Progress Monitor".
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from resdeploy.bundle.manifest import INPUT_NAME
from resdeploy.errors import BackendError
from resdeploy.progress import Progress, silent
from resdeploy.runtime.backends.tensorrt.build_progress import BuildProgress, make_monitor
from resdeploy.runtime.backends.tensorrt.flavour import Flavour, TensorRt, sizes
from resdeploy.runtime.backends.tensorrt.inspector import EngineLayer, parse_builder_log
from resdeploy.runtime.backends.tensorrt.options import BuildOptions
from resdeploy.runtime.backends.tensorrt.parser_errors import ParserError, explain_parser_error

if TYPE_CHECKING:
    import tensorrt as trt

PARTS = 1000  # of the progress bar
POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltEngine:
    """What a build gives."""

    engine: bytes
    timings: bytes | None
    """What was measured while building, for the next build; None where nothing is."""
    layers: tuple[EngineLayer, ...]
    """As far as the builder told of them."""


def build_engine(
    tensorrt: TensorRt,
    graph: bytes,
    options: BuildOptions,
    *,
    name: str = "the graph",
    timings: bytes | None = None,
    progress: Progress = silent,
    watch: Callable[[], None] = lambda: None,
) -> BuiltEngine:
    """Build an engine, strongly typed: every precision is that of the graph.

    Args:
        tensorrt: The flavour.
        graph: An ONNX file of a bundle; its input is uint8 (N, H, W, 3).
        options: See there.
        name: What messages call the graph.
        timings: From an earlier build here. TensorRT-RTX measures nothing while building.
        progress: Told of thousandths.
        watch: Called ten times a second; what it raises ends the build.

    Raises:
        BackendError: the parser or the builder refuses.
        KeyboardInterrupt: the user stopped it; nothing is left behind.
    """
    api = tensorrt.api
    tensorrt.errors.clear()
    tensorrt.layers.clear()
    builder = _make_builder(tensorrt, name)
    network = builder.create_network(_network_flags(api))
    _parse(tensorrt, network, graph, name)
    config: trt.IBuilderConfig = builder.create_builder_config()
    config.add_optimization_profile(_profile(tensorrt, builder, network, options))
    _configure(tensorrt, config, options)
    cache = _use_timings(tensorrt, config, timings)

    phases = BuildProgress()
    config.progress_monitor = make_monitor(api, phases)
    serialized = _interruptible(
        lambda: builder.build_serialized_network(network, config), phases, progress, watch
    )
    if serialized is None:
        raise _failure(tensorrt, name)
    return BuiltEngine(
        engine=bytes(memoryview(serialized)),
        timings=bytes(memoryview(cache.serialize())) if cache is not None else None,
        # TensorRT logs its layers in other words, and has an inspector for them.
        layers=tuple(parse_builder_log("\n".join(tensorrt.layers)))
        if tensorrt.flavour is Flavour.RTX
        else (),
    )


def merge_timings(tensorrt: TensorRt, ours: bytes, theirs: bytes) -> bytes:
    """Both together, when another process built at the same time; `ours` where that fails."""
    config: trt.IBuilderConfig = tensorrt.api.Builder(tensorrt.log).create_builder_config()
    merged = config.create_timing_cache(ours)
    others = config.create_timing_cache(theirs)
    if merged is None or others is None or not merged.combine(others, False):
        return ours
    return bytes(memoryview(merged.serialize()))


def _make_builder(tensorrt: TensorRt, name: str) -> trt.Builder:
    try:
        builder: trt.Builder = tensorrt.api.Builder(tensorrt.log)
    except (TypeError, RuntimeError) as error:  # so the bindings report that there is none
        raise _failure(tensorrt, name) from error
    return builder


def _network_flags(api: Any) -> int:
    """Strongly typed: in 11 all networks are, and the flag may go."""
    flag = getattr(api.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _parse(tensorrt: TensorRt, network: trt.INetworkDefinition, graph: bytes, name: str) -> None:
    parser: trt.OnnxParser = tensorrt.api.OnnxParser(network, tensorrt.log)
    if not parser.parse(graph):
        if not parser.num_errors:
            raise _failure(tensorrt, name)
        error = parser.get_error(0)
        refusal = ParserError(
            code=error.code().name,
            description=error.desc(),
            node=error.node_name(),
            operator=error.node_operator(),
        )
        raise explain_parser_error(refusal, f"{tensorrt.flavour.value} {tensorrt.version}", name)
    inputs = [network.get_input(index).name for index in range(network.num_inputs)]
    if inputs != [INPUT_NAME]:
        raise BackendError(
            f"{name} reads {', '.join(inputs) or 'nothing'}; a graph of resdeploy reads images",
            "export it with resdeploy export",
        )


def _profile(
    tensorrt: TensorRt,
    builder: trt.Builder,
    network: trt.INetworkDefinition,
    options: BuildOptions,
) -> trt.IOptimizationProfile:
    image = sizes(network.get_input(0).shape)[1:]
    smallest, usual, largest = (
        tensorrt.dims(batch, *image)
        for batch in (options.batches.smallest, options.batches.usual, options.batches.largest)
    )
    profile = builder.create_optimization_profile()
    profile.set_shape(INPUT_NAME, smallest, usual, largest)
    return profile


def _configure(tensorrt: TensorRt, config: trt.IBuilderConfig, options: BuildOptions) -> None:
    api = tensorrt.api
    # Without it the inspector knows only names.
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


def _use_timings(
    tensorrt: TensorRt, config: trt.IBuilderConfig, timings: bytes | None
) -> trt.ITimingCache | None:
    if tensorrt.flavour is Flavour.RTX:
        return None  # it takes no effect there, and asks for a GPU that building does not need
    cache = config.create_timing_cache(timings or b"")
    config.set_timing_cache(cache, False)
    return cache


def _interruptible(
    build: Callable[[], trt.IHostMemory | None],
    phases: BuildProgress,
    progress: Progress,
    watch: Callable[[], None] = lambda: None,
) -> trt.IHostMemory | None:
    """Build beside the main thread, which alone hears of CTRL-C and draws the bar."""
    shown = 0
    with ThreadPoolExecutor(1, "tensorrt-build") as pool, progress("building", PARTS) as advance:
        building = pool.submit(build)
        try:
            while not building.done():
                wait([building], POLL_SECONDS)
                watch()
                done = int(PARTS * phases.fraction())
                advance(done - shown)
                shown = done
        except BaseException:
            phases.cancel()  # the pool waits until TensorRT heeds it
            raise
        advance(PARTS - shown)
    return building.result()


def _failure(tensorrt: TensorRt, name: str) -> BackendError:
    return BackendError(
        f"{tensorrt.flavour.value} {tensorrt.version} cannot build {name}: {tensorrt.last_error()}",
        "try a smaller --batch or --workspace; resdeploy doctor shows the GPU and its driver",
    )
