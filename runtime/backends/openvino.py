"""OpenVINO on a CPU as a backend.

On a processor with AMX it runs `int8-cpu.onnx` about twice as fast as ONNX Runtime. Its
kernels round at other places: other bits than the export's, so answers are held to their SQNR.

Source: OpenVINO, "Optimizing for Latency" and "Precision Control" of its inference guide.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.golden import Float32Array
from resdeploy.bundle.manifest import Artifact
from resdeploy.errors import BackendError, needs_extra
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.runtime.backends.base import Obstacle, OpenOptions

NAME = "openvino"
ARTIFACTS = ("int8-cpu", "fp32")


def installed_version() -> str | None:
    """The version of OpenVINO; None where it is not installed."""
    # Slow to import, and needed only where OpenVINO is asked for.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("openvino")
    except PackageNotFoundError:
        return None


def obstacle() -> Obstacle | None:
    """Why it cannot run here."""
    if installed_version() is None:
        return Obstacle("openvino is not installed", "pip install 'resdeploy[openvino]'")
    return None


def open_artifact(bundle: Bundle, artifact: Artifact, opening: OpenOptions) -> OpenVinoCpu:
    """Load one of a bundle's graphs, after checking its sha256.

    Raises:
        BackendError, BundleError, MissingDependencyError: it cannot be loaded.
    """
    return OpenVinoCpu(bundle.read(artifact.file), opening.threads)


class OpenVinoCpu:
    """A graph that is compiled for the CPU, and one request at a time."""

    name = NAME

    def __init__(self, graph: bytes, threads: int | None = None) -> None:
        """Compile for the shortest latency.

        Args:
            graph: The content of a bundle's ONNX file.
            threads: Threads for one inference; None for one per core.

        Raises:
            BackendError: OpenVINO refuses the graph.
            MissingDependencyError: OpenVINO is not installed.
        """
        with needs_extra():
            import openvino

        # Where a processor has bfloat16, float32 would else be rounded to it.
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        core = openvino.Core()
        try:
            compiled = core.compile_model(core.read_model(graph), "CPU", settings)
            self._request: Any = compiled.create_infer_request()
        except RuntimeError as error:
            raise BackendError(
                f"OpenVINO refuses the graph: {_cause(error)}",
                "use --backend onnxruntime-cpu, which runs every graph",
            ) from error

    def run(self, images: UInt8Array) -> Float32Array:
        """See `Backend.run`."""
        if self._request is None:
            raise BackendError("the model was closed", "load the bundle again")
        try:
            (logits,) = self._request.infer({0: images}, share_inputs=True).values()
        except RuntimeError as error:
            raise BackendError(
                f"OpenVINO failed: {_cause(error)}", "try a smaller batch"
            ) from error
        return np.array(logits, dtype=np.float32)

    def close(self) -> None:
        """See `Backend.close`."""
        self._request = None


def _cause(error: RuntimeError) -> str:
    """What a program may show of an error: the places in OpenVINO's sources come first."""
    return [line.strip() for line in str(error).splitlines() if line.strip()][-1]
