"""ONNX Runtime's CPU provider as a backend."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.golden import Float32Array
from resdeploy.bundle.manifest import Artifact, Encoding
from resdeploy.errors import BackendError, needs_extra
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.machine.cpu import Cpu, read_cpu
from resdeploy.runtime.backends.base import Obstacle, OpenOptions
from resdeploy.runtime.backends.onnxruntime.session import (
    ERRORS_ONLY,
    create_session,
    installed_version,
    run_session,
)

if TYPE_CHECKING:
    import onnxruntime

NAME = "onnxruntime-cpu"
ARTIFACTS = ("int8-cpu", "fp32", "fp16", "int8", "int8-dla")
# Their activations are quantised from float16.
HALF = (Encoding.TENSORRT, Encoding.DLA)
PROVIDER = "CPUExecutionProvider"


def obstacle() -> Obstacle | None:
    """Why it cannot run here."""
    if installed_version() is None:
        return Obstacle("onnxruntime is not installed", "pip install 'resdeploy[cpu]'")
    return None


def artifacts(version: str) -> tuple[str, ...]:
    """What this version computes rightly, the fastest first.

    On a CPU, float16 is emulated and the encodings for TensorRT and DLA leave float convolutions
    between conversions: all are right, and slow.
    """
    return ARTIFACTS if rounds_float16(version) else ARTIFACTS[:-2]


def rounds_float16(version: str) -> bool:
    """Whether quantising a float16 rounds, as ONNX asks, or cuts off (20 dB worse).

    Source: github.com/microsoft/onnxruntime/pull/32452, which came with 1.30.
    """
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return numbers is not None and tuple(map(int, numbers.groups())) >= (1, 30)


def open_artifact(bundle: Bundle, artifact: Artifact, opening: OpenOptions) -> OnnxRuntimeCpu:
    """Load one of a bundle's graphs, after checking its sha256.

    Raises:
        BackendError, BundleError, MissingDependencyError: it cannot be loaded.
    """
    with bundle.checked_path(artifact.file) as graph:
        return OnnxRuntimeCpu(graph, artifact.encoding, opening.threads)


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
    if encoding is not Encoding.CPU:
        # What is not laid out for integer kernels runs fastest as the floats that it means: weights
        # are then restored once, where they were in every inference.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


class OnnxRuntimeCpu:
    """A session on the CPU provider."""

    name = NAME

    def __init__(
        self,
        graph: bytes | Path,
        encoding: Encoding,
        threads: int | None = None,
        weights: Mapping[str, npt.NDArray[Any]] = MappingProxyType({}),
    ) -> None:
        """Load a graph.

        Args:
            graph: The content of a bundle's ONNX file, or its path.
            encoding: How it is quantised.
            threads: Threads for one inference; None for one per core.
            weights: Initialisers whose numbers the graph has elsewhere; they are not copied.

        Raises:
            BackendError: ONNX Runtime refuses the graph.
            MissingDependencyError: ONNX Runtime is not installed.
        """
        with needs_extra():
            import onnxruntime
        if encoding in HALF and not rounds_float16(onnxruntime.__version__):
            raise BackendError(
                f"ONNX Runtime {onnxruntime.__version__} cannot run the {encoding.value} encoding: "
                "it cuts float16 off where it should round",
                "install onnxruntime 1.30 or newer; to serve on a CPU, use int8-cpu",
            )
        options = session_options(encoding, read_cpu(), threads)
        if weights:
            values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
            options.add_external_initializers(list(weights), values)
        self._session: Any = create_session(graph, options, [(PROVIDER, {})])

    def run(self, images: UInt8Array) -> Float32Array:
        """See `Backend.run`."""
        return run_session(self._session, images)

    def close(self) -> None:
        """See `Backend.close`."""
        self._session = None
