"""The backend that runs on ONNX Runtime's CPU provider."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.golden import Float32Array
from resdeploy.bundle.manifest import Artifact, Encoding
from resdeploy.errors import BackendError, install_hint, needs_extra
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.machine.jetson import version_numbers
from resdeploy.runtime.backends.base import OpenOptions, Unavailability
from resdeploy.runtime.backends.onnxruntime.session import (
    ERRORS_ONLY,
    SessionBackend,
    create_session,
    installed_version,
)

if TYPE_CHECKING:
    import onnxruntime

NAME = "onnxruntime-cpu"
ARTIFACTS = ("int8-cpu", "fp32", "fp16", "int8", "int8-dla")
# In these encodings the activations are quantised from float16.
FLOAT16_ENCODINGS = (Encoding.TENSORRT, Encoding.DLA)
PROVIDER = "CPUExecutionProvider"


def check_availability() -> Unavailability | None:
    """Return the reason why ONNX Runtime cannot run here; None if it can."""
    if installed_version() is None:
        return Unavailability("onnxruntime is not installed", install_hint("cpu"))
    return None


def artifacts(version: str) -> tuple[str, ...]:
    """Return the names of the artifacts that this version computes correctly, fastest first.

    All but the first two are slow on a CPU: float16 is emulated, and the encodings for TensorRT and
    DLA run float convolutions between conversions.
    """
    return ARTIFACTS if rounds_float16(version) else ARTIFACTS[:-2]


def rounds_float16(version: str) -> bool:
    """Return True if this version rounds when it quantises float16, as ONNX requires.

    Older versions truncate, which costs 20 dB.

    Source: github.com/microsoft/onnxruntime/pull/32452, which came with 1.30.
    """
    return version_numbers(version) >= (1, 30)


def open_artifact(bundle: Bundle, artifact: Artifact, options: OpenOptions) -> OnnxRuntimeCpu:
    """Open an artifact; see `registry.Engine.open`."""
    threads, streams = options.threads, options.streams
    if threads is not None:
        # The thread that calls a session computes, too; streams share the session's other threads.
        # Source: ONNX Runtime, "Thread management".
        threads = max(threads - streams + 1, 1)
    with bundle.checked_path(artifact.file) as graph:
        return OnnxRuntimeCpu(graph, artifact.encoding, threads, streams=streams)


def session_options(encoding: Encoding, threads: int | None) -> onnxruntime.SessionOptions:
    """Return the options of a session; `int8-cpu.onnx` needs none of them for its exact bits."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    if threads is not None:
        options.intra_op_num_threads = threads
    if encoding is not Encoding.CPU:
        # Graphs that are not laid out for integer kernels run fastest in float: the weights are
        # then dequantised once, and not in every inference.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


class OnnxRuntimeCpu(SessionBackend):
    """A session of ONNX Runtime on the CPU provider."""

    name = NAME

    def __init__(
        self,
        graph: bytes | Path,
        encoding: Encoding,
        threads: int | None = None,
        weights: Mapping[str, npt.NDArray[Any]] = MappingProxyType({}),
        streams: int = 1,
    ) -> None:
        """Load an ONNX file, given as its content or as its path.

        `weights` holds the values, by name, of initialisers with external data. They are not
        copied. One inference uses `threads` threads; None for one per core.

        Raises:
            BackendError: ONNX Runtime rejects the graph.
            MissingDependencyError: ONNX Runtime is not installed.
        """
        with needs_extra():
            import onnxruntime
        if encoding in FLOAT16_ENCODINGS and not rounds_float16(onnxruntime.__version__):
            raise BackendError(
                f"ONNX Runtime {onnxruntime.__version__} cannot run the {encoding.value} encoding: "
                "it truncates float16 where it should round",
                "install onnxruntime 1.30 or newer; to serve on a CPU, use int8-cpu",
            )
        options = session_options(encoding, threads)
        if weights:
            values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
            options.add_external_initializers(list(weights), values)
        super().__init__(create_session(graph, options, [(PROVIDER, {})]))
        self._streams = streams
        self._pool = ThreadPoolExecutor(streams) if streams > 1 else None

    def run(self, images: UInt8Array) -> Float32Array:
        if self._pool is None:
            return super().run(images)
        parts = np.array_split(images, min(len(images), self._streams))
        return np.concatenate(list(self._pool.map(super().run, parts)))

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()  # waits for the parts of a batch that is running
            self._pool = None
        super().close()
