"""`tensorrt` and `tensorrt_rtx`: one API under two names.

Sources: NVIDIA, "TensorRT Python API" 10.3 to 11.4; NVIDIA, "Porting Guide for TensorRT
Applications" of TensorRT-RTX. All code here is written against the API that they share.
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

from resdeploy.errors import BackendError
from resdeploy.runtime.backends.base import Unavailability
from resdeploy.runtime.backends.cuda import CudaRuntime, CudaDevice, check_gpu_availability

if TYPE_CHECKING:
    import tensorrt as trt

logger = logging.getLogger(__name__)

# The names of the artifacts that TensorRT reads, the fastest first.
ARTIFACTS = ("int8", "fp16", "fp32")

KEPT_MESSAGES = 20
# Engines that are built without naming a GPU are for Ampere and later; Turing would need its own.
OLDEST_RTX = 8.0


class Flavour(str, Enum):
    """Which of NVIDIA's two products."""

    TENSORRT = "tensorrt"
    RTX = "tensorrt-rtx"

    @property
    def modules(self) -> tuple[str, ...]:
        """The names it may be imported under; aarch64 wheels of RTX have only the second."""
        if self is Flavour.TENSORRT:
            return ("tensorrt",)
        return ("tensorrt_rtx", "tensorrt_rtx_bindings")

    @property
    def extra(self) -> str:
        """What brings it."""
        return "gpu" if self is Flavour.TENSORRT else "rtx"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRt:
    """A TensorRT that is installed here."""

    flavour: Flavour
    version: str
    api: Any
    """The module; what it makes is typed where it is made."""
    log: trt.ILogger
    errors: deque[str]
    """What it complained of last."""
    layers: deque[str]
    """What it wrote of an engine's layers last; not every version does."""

    @property
    def release(self) -> tuple[int, int]:
        """(10, 3) of 10.3.0.26."""
        major, minor = self.version.split(".")[:2]
        return int(major), int(minor)

    def dims(self, *numbers: int) -> trt.Dims:
        """A shape, as TensorRT holds it."""
        shape: trt.Dims = self.api.Dims(numbers)
        return shape

    def last_error(self) -> str:
        """One line."""
        return self.errors[-1] if self.errors else "it gave no reason"


@functools.cache
def load_tensorrt(flavour: Flavour) -> TensorRt:
    """Import a flavour.

    Raises:
        BackendError: it is not installed, or does not load.
    """
    name = _module(flavour)
    if name is None:
        raise BackendError(f"{flavour.value} is not installed", _install(flavour))
    try:
        api = import_module(name)
    except (ImportError, OSError) as error:
        raise BackendError(
            f"{flavour.value} is installed but does not load: {str(error).splitlines()[0]}",
            "resdeploy doctor shows what is missing",
        ) from error
    errors: deque[str] = deque(maxlen=KEPT_MESSAGES)
    layers: deque[str] = deque(maxlen=1)
    return TensorRt(
        flavour=flavour,
        version=str(api.__version__),
        api=api,
        log=_make_log(api, errors, layers),  # one for all: TensorRT keeps the first it is given
        errors=errors,
        layers=layers,
    )


def sizes(dims: trt.Dims) -> tuple[int, ...]:
    """A shape, as Python holds it."""
    return tuple(dims[index] for index in range(len(dims)))


def installed_version(flavour: Flavour) -> str | None:
    """The version that would be used; None where it is not installed or does not load."""
    try:
        return load_tensorrt(flavour).version
    except BackendError:
        return None


def check_availability(flavour: Flavour) -> Unavailability | None:
    """Why no engine of this flavour can run here."""
    if _module(flavour) is None:
        return Unavailability(f"{flavour.value} is not installed", _install(flavour))
    if none := check_gpu_availability():
        return none
    try:
        tensorrt = load_tensorrt(flavour)
        return _unknown_gpu(tensorrt.api, CudaRuntime().gpu()) if flavour is Flavour.RTX else None
    except BackendError as error:
        return Unavailability(str(error), error.hint or "")


def _unknown_gpu(api: Any, gpu: CudaDevice) -> Unavailability | None:
    """TensorRT-RTX is for Ampere and later RTX GPUs, as its enumeration of them tells."""
    known = f"SM{gpu.compute_capability.replace('.', '')}"
    if hasattr(api.ComputeCapability, known) and float(gpu.compute_capability) >= OLDEST_RTX:
        return None
    return Unavailability(
        f"TensorRT-RTX is not for the {gpu.name} (compute capability {gpu.compute_capability})",
        "use --backend tensorrt",
    )


def _module(flavour: Flavour) -> str | None:
    for name in flavour.modules:
        spec = find_spec(name)
        if spec is not None and spec.origin is not None:  # a folder of type stubs has no origin
            return name
    return None


def _install(flavour: Flavour) -> str:
    if flavour is Flavour.RTX:
        return "pip install 'resdeploy[rtx]'"
    return (
        "pip install 'resdeploy[gpu]'; on a Jetson it comes with JetPack, and a virtual "
        "environment sees it only if it was made with --system-site-packages"
    )


def _make_log(api: Any, errors: deque[str], layers: deque[str]) -> trt.ILogger:
    severity = api.ILogger.Severity

    class Log(api.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()

        def log(self, kind: object, message: str) -> None:
            if kind in (severity.ERROR, severity.INTERNAL_ERROR):
                errors.append(" ".join(message.split()))
            if kind != severity.VERBOSE:
                logger.debug("%s: %s", api.__name__, message)
            elif "LayerType: " in message:
                layers.append(message)

    log: trt.ILogger = Log()
    return log
