"""ONNX Runtime's CUDA and TensorRT providers as backends.

Source: ONNX Runtime, "CUDA Execution Provider" and "TensorRT Execution Provider", sections on
options; "session.disable_cpu_ep_fallback" in its list of session options. A provider that cannot
start is replaced by the CPU without an error: asked for a GPU, that is wrong here.
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes.util import find_library
from typing import Any

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.golden import Float32Array
from resdeploy.bundle.manifest import Artifact, Precision
from resdeploy.errors import BackendError, needs_extra
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.runtime.backends.base import Batches, Unavailability, OpenOptions
from resdeploy.runtime.backends.cuda import check_gpu_availability
from resdeploy.runtime.backends.onnxruntime.session import (
    ERRORS_ONLY,
    Provider,
    create_session,
    installed_version,
    run_session,
)
from resdeploy.runtime.backends.tensorrt.flavour import Flavour
from resdeploy.runtime.backends.tensorrt.flavour import installed_version as tensorrt_version

CUDA = "onnxruntime-cuda"
TENSORRT = "onnxruntime-tensorrt"
PROVIDERS = {CUDA: "CUDAExecutionProvider", TENSORRT: "TensorrtExecutionProvider"}
# Of what each computes rightly, the fastest first: CUDA has no integer convolutions, so that
# int8.onnx is float16 with conversions there.
ARTIFACTS = {CUDA: ("fp16", "fp32", "int8"), TENSORRT: ("int8", "fp16", "fp32")}


def check_availability(name: str) -> Unavailability | None:
    """Why `onnxruntime-cuda` or `onnxruntime-tensorrt` cannot run here."""
    if installed_version() is None:
        return Unavailability("onnxruntime-gpu is not installed", "pip install 'resdeploy[gpu]'")
    import onnxruntime

    if PROVIDERS[name] not in onnxruntime.get_available_providers():
        return Unavailability(
            f"the onnxruntime that is installed has no {PROVIDERS[name]}",
            "pip uninstall onnxruntime onnxruntime-gpu, then pip install onnxruntime-gpu: only one "
            "of the two can be installed; on a Jetson use --backend tensorrt",
        )
    if none := check_gpu_availability():
        return none
    # The provider is in the package, and what it links to is not.
    if name == TENSORRT and not (tensorrt_version(Flavour.TENSORRT) or find_library("nvinfer")):
        return Unavailability(
            f"{PROVIDERS[name]} needs TensorRT, which is not installed",
            "pip install 'resdeploy[gpu]', or use --backend onnxruntime-cuda",
        )
    return None


def open_backend(name: str) -> Callable[[Bundle, Artifact, OpenOptions], OnnxRuntimeGpu]:
    """What `selection.Engine.open` is for `onnxruntime-cuda` or `onnxruntime-tensorrt`."""

    def open_artifact(bundle: Bundle, artifact: Artifact, opening: OpenOptions) -> OnnxRuntimeGpu:
        """Load one of a bundle's graphs, after checking its sha256.

        Raises:
            BackendError, BundleError, MissingDependencyError: it cannot be loaded.
        """
        graph = bundle.read(artifact.file)
        size = bundle.manifest.preprocessing.image_size
        providers = choose_providers(name, artifact.precision, size, opening.batches or Batches())
        return OnnxRuntimeGpu(name, graph, providers)

    return open_artifact


def choose_providers(
    name: str, precision: Precision, image_size: int, batches: Batches
) -> list[Provider]:
    """The provider and, for what TensorRT does not take, the next one, with all options."""
    cuda = (
        PROVIDERS[CUDA],
        {
            "device_id": "0",
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_algo_search": "EXHAUSTIVE",
            "cudnn_conv_use_max_workspace": "1",
            "do_copy_in_default_stream": "1",
            "use_tf32": "1",  # as PyTorch's convolutions do
        },
    )
    if name == CUDA:
        return [cuda]
    half, integers = precision is not Precision.FP32, precision is Precision.INT8

    def shapes(batch: int) -> str:
        return f"images:{batch}x{image_size}x{image_size}x3"

    tensorrt = (
        PROVIDERS[TENSORRT],
        {
            "device_id": "0",
            # This provider builds weakly typed networks: without these, all is float32.
            "trt_fp16_enable": str(half),
            "trt_int8_enable": str(integers),
            "trt_profile_min_shapes": shapes(batches.smallest),
            "trt_profile_opt_shapes": shapes(batches.usual),
            "trt_profile_max_shapes": shapes(batches.largest),
            # Its caches load files without knowing who wrote them.
            "trt_engine_cache_enable": "False",
            "trt_timing_cache_enable": "False",
        },
    )
    return [tensorrt, cuda]


class OnnxRuntimeGpu:
    """A session whose every node runs on the provider that was asked for, or CUDA behind it."""

    def __init__(self, name: str, graph: bytes, providers: list[Provider]) -> None:
        """Load a graph.

        Args:
            name: The backend's name.
            graph: The content of a bundle's ONNX file.
            providers: From `choose_providers`.

        Raises:
            BackendError: ONNX Runtime refuses the graph, or would run it on something else.
            MissingDependencyError: ONNX Runtime is not installed.
        """
        with needs_extra():
            import onnxruntime
        self.name = name
        options = onnxruntime.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        asked = providers[0][0]
        _load_libraries(asked)
        if asked not in onnxruntime.get_available_providers():
            raise BackendError(
                f"the onnxruntime that is installed has no {asked}",
                "install onnxruntime-gpu in its place",
            )
        self._session: Any = create_session(graph, options, providers)
        used = self._session.get_providers()
        if used[:1] != [asked]:
            raise BackendError(
                f"ONNX Runtime would run the graph on {', '.join(used)} instead of {asked}",
                "its own CUDA or cuDNN may be missing: resdeploy doctor shows the versions",
            )

    def run(self, images: UInt8Array) -> Float32Array:
        """See `Backend.run`."""
        return run_session(self._session, images)

    def close(self) -> None:
        """See `Backend.close`."""
        self._session = None


def _load_libraries(provider: str) -> None:
    """Load what the provider links to from where pip put it; the loader would not look there."""
    import onnxruntime

    if provider == PROVIDERS[TENSORRT]:
        tensorrt_version(Flavour.TENSORRT)  # importing it loads libnvinfer
    onnxruntime.preload_dlls()
