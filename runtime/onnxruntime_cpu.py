"""ONNX Runtime's CPU provider as a backend."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from resdeploy.bundle import INPUT_NAME, OUTPUT_NAME, Artifact, Bundle, Encoding, Float32Array
from resdeploy.cpu import Cpu, read_cpu
from resdeploy.errors import BackendError, needs_extra
from resdeploy.preprocessing import UInt8Array

if TYPE_CHECKING:
    import onnxruntime

NAME = "onnxruntime-cpu"
ARTIFACTS = ("int8-cpu", "fp32", "fp16", "int8")
# This step turns a float bias behind Q/DQ into an int32 one whose float16 scale underflows, which
# spoils the logits of the TensorRT encoding (seen in 1.32.0; a test shows that it matters).
HARMFUL_OPTIMIZER = "WeightBiasQuantization"
ERRORS_ONLY = 3


def version() -> str | None:
    """The version of ONNX Runtime; None where it is not installed."""
    if find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    return str(onnxruntime.__version__)


def artifacts(version: str) -> tuple[str, ...]:
    """What this version computes rightly, the fastest first.

    On a CPU, float16 is emulated and TensorRT's encoding leaves float convolutions between
    conversions: both are right, and slow.
    """
    return ARTIFACTS if rounds_float16(version) else ARTIFACTS[:-1]


def rounds_float16(version: str) -> bool:
    """Whether quantising a float16 rounds, as ONNX asks, or cuts off (20 dB worse).

    Source: github.com/microsoft/onnxruntime/pull/32452, which came with 1.30.
    """
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return numbers is not None and tuple(map(int, numbers.groups())) >= (1, 30)


def open_artifact(bundle: Bundle, artifact: Artifact, threads: int | None) -> OnnxRuntimeCpu:
    """Load one of a bundle's graphs, after checking its sha256.

    Raises:
        BackendError, BundleError, MissingDependencyError: it cannot be loaded.
    """
    return OnnxRuntimeCpu(bundle.read(artifact.file), artifact.encoding, threads)


def session_options(
    encoding: Encoding, cpu: Cpu, threads: int | None
) -> onnxruntime.SessionOptions:
    """How a session must be set up on `cpu` to give the right answers."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    if threads is not None:
        options.intra_op_num_threads = threads
    if encoding is Encoding.CPU and not cpu.multiplies_int8_exactly:
        # Without VNNI the fast kernels saturate sums of products at 16 bits.
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


class OnnxRuntimeCpu:
    """A session on the CPU provider."""

    name = NAME

    def __init__(self, graph: bytes, encoding: Encoding, threads: int | None = None) -> None:
        """Load a graph.

        Args:
            graph: The content of a bundle's ONNX file.
            encoding: How it is quantised.
            threads: Threads for one inference; None for one per core.

        Raises:
            BackendError: ONNX Runtime refuses the graph.
            MissingDependencyError: ONNX Runtime is not installed.
        """
        with needs_extra():
            import onnxruntime
        if encoding is Encoding.TENSORRT and not rounds_float16(onnxruntime.__version__):
            raise BackendError(
                f"ONNX Runtime {onnxruntime.__version__} cannot run TensorRT's encoding: it cuts "
                "float16 off where it should round",
                "install onnxruntime 1.30 or newer; to serve on a CPU, use int8-cpu",
            )
        try:
            self._session: Any = onnxruntime.InferenceSession(
                graph,
                session_options(encoding, read_cpu(), threads),
                providers=["CPUExecutionProvider"],
                disabled_optimizers=[HARMFUL_OPTIMIZER],
            )
        except Exception as error:  # pybind raises classes of its own, without a common base
            raise BackendError(
                f"ONNX Runtime refuses the graph: {_first_line(error)}",
                "resdeploy doctor shows the versions; 1.23.2 is the oldest that is supported",
            ) from error

    def run(self, images: UInt8Array) -> Float32Array:
        """See `Backend.run`."""
        try:
            (logits,) = self._session.run([OUTPUT_NAME], {INPUT_NAME: images})
        except Exception as error:
            raise BackendError(
                f"ONNX Runtime failed: {_first_line(error)}", "try a smaller batch"
            ) from error
        return np.asarray(logits, dtype=np.float32)

    def close(self) -> None:
        """See `Backend.close`."""
        self._session = None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
