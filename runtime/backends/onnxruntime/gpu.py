"""The backends that run on ONNX Runtime's CUDA and TensorRT providers.

By default ONNX Runtime falls back to the CPU without an error if a provider cannot start. These
backends raise an error instead.

Source: ONNX Runtime, "CUDA Execution Provider" and "TensorRT Execution Provider", sections on
options; "session.disable_cpu_ep_fallback" in its list of session options.
"""

from __future__ import annotations

from ctypes.util import find_library

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.manifest import INPUT_NAME, Artifact, Precision
from resdeploy.errors import BackendError, install_hint, needs_extra
from resdeploy.images.preprocessing import ImageSize, height_and_width, size_text
from resdeploy.runtime.backends.base import Batches, OpenOptions, Unavailability
from resdeploy.runtime.backends.cuda import check_gpu_availability
from resdeploy.runtime.backends.onnxruntime.session import (
    ERRORS_ONLY,
    Provider,
    SessionBackend,
    create_session,
    installed_version,
)
from resdeploy.runtime.backends.tensorrt.tensorrt_or_rtx import Flavour
from resdeploy.runtime.backends.tensorrt.tensorrt_or_rtx import (
    installed_version as tensorrt_version,
)

CUDA = "onnxruntime-cuda"
TENSORRT = "onnxruntime-tensorrt"
PROVIDERS = {CUDA: "CUDAExecutionProvider", TENSORRT: "TensorrtExecutionProvider"}
# Artifacts that each provider computes correctly, fastest first. The CUDA provider has no integer
# convolutions: it runs int8.onnx in float16, with conversions.
ARTIFACTS = {CUDA: ("fp16", "fp32", "int8"), TENSORRT: ("int8", "fp16", "fp32")}


def check_availability(name: str) -> Unavailability | None:
    """Return the reason why the backend `name` cannot run here; None if it can."""
    if installed_version() is None:
        return Unavailability("onnxruntime-gpu is not installed", install_hint("gpu"))
    import onnxruntime

    if PROVIDERS[name] not in onnxruntime.get_available_providers():
        return Unavailability(
            f"the installed onnxruntime has no {PROVIDERS[name]}",
            "pip uninstall onnxruntime onnxruntime-gpu, then pip install onnxruntime-gpu: only one "
            "of the two can be installed; on a Jetson use --backend tensorrt",
        )
    if unavailability := check_gpu_availability():
        return unavailability
    # The package contains the provider, but not the TensorRT library that it links to.
    if name == TENSORRT and not (tensorrt_version(Flavour.TENSORRT) or find_library("nvinfer")):
        return Unavailability(
            f"{PROVIDERS[name]} needs TensorRT, which is not installed",
            f"{install_hint('gpu')}; or use --backend onnxruntime-cuda",
        )
    return None


def open_artifact(
    name: str, bundle: Bundle, artifact: Artifact, options: OpenOptions
) -> OnnxRuntimeGpu:
    """Open an artifact with the backend `name`; see `registry.Engine.open`."""
    graph = bundle.read(artifact.file)
    size = bundle.manifest.preprocessing.image_size
    providers = choose_providers(name, artifact.precision, size, options.batches or Batches())
    return OnnxRuntimeGpu(name, graph, providers)


def choose_providers(
    name: str, precision: Precision, image_size: ImageSize, batches: Batches
) -> list[Provider]:
    """Return the providers and their options: CUDA runs the nodes that TensorRT does not support.

    The image size is that of the input, in pixels.
    """
    cuda = (
        PROVIDERS[CUDA],
        {
            "device_id": "0",
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_algo_search": "EXHAUSTIVE",
            "cudnn_conv_use_max_workspace": "1",
            "do_copy_in_default_stream": "1",
            "use_tf32": "1",  # PyTorch's convolutions use TF32, too
        },
    )
    if name == CUDA:
        return [cuda]
    image = f"{size_text(height_and_width(image_size))}x3"
    tensorrt = (
        PROVIDERS[TENSORRT],
        {
            "device_id": "0",
            # This provider builds weakly typed networks: without these flags all is float32.
            "trt_fp16_enable": str(precision is not Precision.FP32),
            "trt_int8_enable": str(precision is Precision.INT8),
            "trt_profile_min_shapes": f"{INPUT_NAME}:{batches.smallest}x{image}",
            "trt_profile_opt_shapes": f"{INPUT_NAME}:{batches.usual}x{image}",
            "trt_profile_max_shapes": f"{INPUT_NAME}:{batches.largest}x{image}",
            # The provider's caches load files without checking who wrote them.
            "trt_engine_cache_enable": "False",
            "trt_timing_cache_enable": "False",
        },
    )
    return [tensorrt, cuda]


class OnnxRuntimeGpu(SessionBackend):
    """A session of ONNX Runtime whose nodes all run on the GPU."""

    def __init__(self, name: str, graph: bytes, providers: list[Provider]) -> None:
        """Load a graph with the providers that `choose_providers` returns."""
        with needs_extra():
            import onnxruntime
        self.name = name
        options = onnxruntime.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        provider = providers[0][0]
        if name == TENSORRT:
            tensorrt_version(Flavour.TENSORRT)  # importing it loads libnvinfer
        onnxruntime.preload_dlls()  # the dynamic loader does not search pip's folder
        if provider not in onnxruntime.get_available_providers():
            raise BackendError(
                f"the installed onnxruntime has no {provider}",
                "uninstall onnxruntime and install onnxruntime-gpu",
            )
        super().__init__(create_session(graph, options, providers))
        used = self._session.get_providers()
        if used[:1] != [provider]:
            raise BackendError(
                f"ONNX Runtime would run the graph on {', '.join(used)} instead of {provider}",
                "run resdeploy doctor and check the versions of CUDA and cuDNN; one may be missing",
            )
