"""The import of `tensorrt` or `tensorrt_rtx`, which have the same API.

Sources: NVIDIA, "TensorRT Python API" 10.3 to 11.4; NVIDIA, "Porting Guide for TensorRT
Applications" of TensorRT-RTX.
"""

from __future__ import annotations

import functools
import logging
from collections import deque
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from resdeploy.errors import BackendError, install_hint, one_line_reason
from resdeploy.runtime.backends.base import Unavailability
from resdeploy.runtime.backends.cuda import CudaDevice, CudaRuntime, check_gpu_availability

if TYPE_CHECKING:
    import tensorrt as trt

logger = logging.getLogger(__name__)

# The names of the artifacts that TensorRT reads, the fastest first.
ARTIFACTS = ("int8", "fp16", "fp32")

KEPT_MESSAGES = 20
# Engines that are built without a GPU run on Ampere and later GPUs, but not on Turing.
OLDEST_RTX = 8.0


class Flavour(str, Enum):
    """One of NVIDIA's two TensorRT products."""

    TENSORRT = "tensorrt"
    RTX = "tensorrt-rtx"


MODULES = {
    Flavour.TENSORRT: ("tensorrt",),
    Flavour.RTX: ("tensorrt_rtx", "tensorrt_rtx_bindings"),  # aarch64 wheels have only the second
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRt:
    """An installed TensorRT."""

    flavour: Flavour
    version: str
    api: Any
    """The imported module; its objects are typed where they are created."""
    log: trt.ILogger
    errors: deque[str]
    layer_log: deque[str]
    """The last message that lists the layers of an engine; only some versions log one."""

    def __str__(self) -> str:
        return f"{self.flavour.value} {self.version}"

    def dims(self, *numbers: int) -> trt.Dims:
        """Convert a shape to TensorRT's type."""
        shape: trt.Dims = self.api.Dims(numbers)
        return shape

    def last_error(self) -> str:
        """Return the last error message as one line."""
        return self.errors[-1] if self.errors else "it gave no reason"


@functools.cache
def load_tensorrt(flavour: Flavour) -> TensorRt:
    """Import a flavour; raise BackendError if it is not installed or its import fails."""
    name = _find_module(flavour)
    if name is None:
        raise BackendError(f"{flavour.value} is not installed", _install_hint(flavour))
    try:
        api = import_module(name)
    except (ImportError, OSError) as error:
        raise BackendError(
            f"{flavour.value} is installed but does not load: {one_line_reason(error)}",
            "run resdeploy doctor to find what is missing",
        ) from error
    errors: deque[str] = deque(maxlen=KEPT_MESSAGES)
    layer_log: deque[str] = deque(maxlen=1)
    return TensorRt(
        flavour=flavour,
        version=str(api.__version__),
        api=api,
        log=_make_logger(api, errors, layer_log),  # TensorRT uses only the first logger it gets
        errors=errors,
        layer_log=layer_log,
    )


def dims_to_tuple(dims: trt.Dims) -> tuple[int, ...]:
    """Convert a shape of TensorRT's type to a tuple."""
    return tuple(dims[index] for index in range(len(dims)))


def installed_version(flavour: Flavour) -> str | None:
    """Return the version of a flavour; None if it is not installed or does not load."""
    try:
        return load_tensorrt(flavour).version
    except BackendError:
        return None


def check_availability(flavour: Flavour) -> Unavailability | None:
    """Return the reason why no engine of this flavour can run here; None if one can."""
    if _find_module(flavour) is None:
        return Unavailability(f"{flavour.value} is not installed", _install_hint(flavour))
    if unavailability := check_gpu_availability():
        return unavailability
    try:
        tensorrt = load_tensorrt(flavour)
        return _check_rtx_gpu(tensorrt.api, CudaRuntime().gpu()) if flavour is Flavour.RTX else None
    except BackendError as error:
        return Unavailability(str(error), error.hint or "")


def _check_rtx_gpu(api: Any, gpu: CudaDevice) -> Unavailability | None:
    # The enumeration lists the supported GPUs, and Turing.
    known = f"SM{gpu.compute_capability.replace('.', '')}"
    if hasattr(api.ComputeCapability, known) and float(gpu.compute_capability) >= OLDEST_RTX:
        return None
    return Unavailability(
        f"TensorRT-RTX does not support the {gpu.name} (compute capability "
        f"{gpu.compute_capability})",
        "use --backend tensorrt",
    )


def _find_module(flavour: Flavour) -> str | None:
    for name in MODULES[flavour]:
        spec = find_spec(name)
        if spec is not None and spec.origin is not None:  # a folder with type stubs has no origin
            return name
    return None


def _install_hint(flavour: Flavour) -> str:
    if flavour is Flavour.RTX:
        return install_hint("rtx")
    return (
        f"{install_hint('gpu')}; on a Jetson, install JetPack and create the virtual "
        "environment with --system-site-packages"
    )


def _make_logger(api: Any, errors: deque[str], layer_log: deque[str]) -> trt.ILogger:
    severity = api.ILogger.Severity

    class Log(api.ILogger):  # type: ignore[misc]
        def log(self, kind: object, message: str) -> None:
            if kind in (severity.ERROR, severity.INTERNAL_ERROR):
                errors.append(" ".join(message.split()))
            if kind != severity.VERBOSE:
                logger.debug("%s: %s", api.__name__, message)
            elif "LayerType: " in message:
                layer_log.append(message)

    log: trt.ILogger = Log()
    return log
