"""ONNX Runtime's CPU provider as a backend."""

from __future__ import annotations

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
# This step turns a float bias behind Q/DQ into an int32 one whose float16 scale underflows, which
# spoils the logits of the TensorRT encoding (seen in 1.32.0; a test shows that it matters).
HARMFUL_OPTIMIZER = "WeightBiasQuantization"
ERRORS_ONLY = 3


def is_installed() -> bool:
    """Whether `onnxruntime` can be imported, found without importing it."""
    return find_spec("onnxruntime") is not None


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
