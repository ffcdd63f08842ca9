"""Sessions of ONNX Runtime, with any provider: create and run them, and translate their errors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resdeploy.bundle.golden import Float32Array
from resdeploy.bundle.manifest import INPUT_NAME, OUTPUT_NAME
from resdeploy.errors import BackendError, one_line_reason, remedy_for
from resdeploy.images.preprocessing import UInt8Array

if TYPE_CHECKING:
    import onnxruntime

# This optimiser replaces a float bias behind Q/DQ by an int32 bias whose float16 scale underflows,
# which makes the logits of the TensorRT encoding wrong (seen in 1.32.0; a test shows the effect).
DISABLED_OPTIMIZER = "WeightBiasQuantization"
ERRORS_ONLY = 3
OLDEST_VERSION = (1, 23, 2)
DOCTOR_HINT = "run resdeploy doctor BUNDLE, which checks the bundle and this machine"

Provider = tuple[str, dict[str, str]]
"""Name and options of an execution provider."""


def installed_version() -> str | None:
    """Return the version of ONNX Runtime; None if it is not installed."""
    if find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    return str(onnxruntime.__version__)


def create_session(
    graph: bytes | Path, options: onnxruntime.SessionOptions, providers: Sequence[Provider]
) -> Any:
    """Load a graph for exactly these providers; raise BackendError if that fails."""
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(
            str(graph) if isinstance(graph, Path) else graph,
            options,
            providers=list(providers),
            disabled_optimizers=[DISABLED_OPTIMIZER],
            enable_fallback=0,  # the fallback would use the CPU, with the disabled optimiser
        )
    except Exception as error:  # pybind raises error classes that have no common base
        numbers = re.findall(r"\d+", onnxruntime.__version__)[: len(OLDEST_VERSION)]
        is_old = tuple(map(int, numbers)) < OLDEST_VERSION
        raise BackendError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load the graph: "
            f"{one_line_reason(error)}",
            remedy_for(error, "install onnxruntime 1.23.2 or newer" if is_old else DOCTOR_HINT),
        ) from error


class SessionBackend:
    """A backend that runs a session; its subclasses create the session."""

    def __init__(self, session: Any) -> None:
        self._session: Any = session

    def run(self, images: UInt8Array) -> Float32Array:
        if self._session is None:
            raise BackendError("the session was closed", "load the bundle again")
        try:
            (logits,) = self._session.run([OUTPUT_NAME], {INPUT_NAME: images})
        except Exception as error:
            raise BackendError(
                f"ONNX Runtime failed: {one_line_reason(error)}", remedy_for(error, DOCTOR_HINT)
            ) from error
        return np.asarray(logits, dtype=np.float32)

    def close(self) -> None:
        self._session = None
