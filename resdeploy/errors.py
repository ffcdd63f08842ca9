"""Exceptions for errors that a user can correct.

A wrong argument in a Python call raises a ValueError or TypeError instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class ResdeployError(Exception):
    """An error with one sentence that names the cause, and a `hint` that names the remedy."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class BackendError(ResdeployError):
    """An inference backend that failed or cannot be used."""


class BundleError(ResdeployError):
    """A missing or damaged bundle, or one with an unknown schema."""


class CalibrationError(ResdeployError):
    """Calibration images from which no scales can be computed."""


class CheckpointError(ResdeployError):
    """Missing or damaged weights, or weights of another network."""


class DataError(ResdeployError):
    """A folder of images that is missing or empty, or has wrong labels."""


class DocumentError(ResdeployError):
    """A file of results that is damaged, or results that cannot be compared."""


class ExportError(ResdeployError):
    """A network that cannot be exported to ONNX, or whose exported logits differ too much."""


class ImageError(ResdeployError):
    """An image that cannot be decoded."""


class MissingDependencyError(ResdeployError):
    """An optional package that is not installed."""


class OutputError(ResdeployError):
    """A result that cannot be written."""


class ServeError(ResdeployError):
    """A server that cannot start."""


class TrainingError(ResdeployError):
    """Training that cannot start or continue."""


# Import names of the optional packages, by the extra that installs them.
EXTRAS = {
    "cpu": ("onnxruntime",),
    "gpu": ("cuda",),
    "camera": ("cv2",),
    "openvino": ("openvino",),
    "train": ("torch", "safetensors", "sklearn", "matplotlib"),
    "export": ("onnx", "onnx_ir", "onnxscript"),
    "report": ("jinja2",),
    "tensorboard": ("tensorboard",),
    "serve": ("starlette", "uvicorn", "httptools", "prometheus_client", "python_multipart", "grpc"),
}


def missing_dependency(error: ModuleNotFoundError) -> MissingDependencyError:
    """Return an error that names the extra to install."""
    package = (error.name or "").split(".")[0]
    extra = next((extra for extra, packages in EXTRAS.items() if package in packages), "all")
    return MissingDependencyError(
        f"this needs {package}, which is not installed", f"pip install 'resdeploy[{extra}]'"
    )


@contextmanager
def needs_extra() -> Iterator[None]:
    """Raise a MissingDependencyError if an import within the `with` block fails."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise missing_dependency(error) from error
