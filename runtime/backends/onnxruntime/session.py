"""What every provider of ONNX Runtime has in common: making a session, running it, its errors."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resdeploy.bundle.golden import Float32Array
from resdeploy.bundle.manifest import INPUT_NAME, OUTPUT_NAME
from resdeploy.errors import BackendError
from resdeploy.images.preprocessing import UInt8Array

if TYPE_CHECKING:
    import onnxruntime

# This step turns a float bias behind Q/DQ into an int32 one whose float16 scale underflows, which
# spoils the logits of the TensorRT encoding (seen in 1.32.0; a test shows that it matters).
HARMFUL_OPTIMIZER = "WeightBiasQuantization"
ERRORS_ONLY = 3

Provider = tuple[str, dict[str, str]]
"""Its name and its options."""


def installed_version() -> str | None:
    """The version of ONNX Runtime; None where it is not installed."""
    if find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    return str(onnxruntime.__version__)


def create_session(
    graph: bytes | Path, options: onnxruntime.SessionOptions, providers: Sequence[Provider]
) -> Any:
    """Load a graph for exactly these providers.

    Raises:
        BackendError: ONNX Runtime refuses the graph, or a provider does not start.
    """
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(
            str(graph) if isinstance(graph, Path) else graph,
            options,
            providers=list(providers),
            disabled_optimizers=[HARMFUL_OPTIMIZER],
            enable_fallback=0,  # it would try again on the CPU, with the harmful step
        )
    except Exception as error:  # pybind raises classes of its own, without a common base
        raise BackendError(
            f"ONNX Runtime refuses the graph: {first_line(error)}",
            "resdeploy doctor shows the versions; 1.23.2 is the oldest that is supported",
        ) from error


def run_session(session: Any, images: UInt8Array) -> Float32Array:
    """Logits (N, K) of images (N, H, W, 3).

    Raises:
        BackendError: ONNX Runtime failed.
    """
    if session is None:
        raise BackendError("the session was closed", "load the bundle again")
    try:
        (logits,) = session.run([OUTPUT_NAME], {INPUT_NAME: images})
    except Exception as error:
        raise BackendError(
            f"ONNX Runtime failed: {first_line(error)}", "try a smaller batch"
        ) from error
    return np.asarray(logits, dtype=np.float32)


def first_line(error: Exception) -> str:
    """What a program may show of an error."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
