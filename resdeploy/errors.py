"""Exceptions for errors that a user can correct.

A wrong argument in a Python call raises a ValueError or TypeError instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class ResdeployError(Exception):
    """An error whose message is one sentence with the cause, and whose `hint` is the remedy."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class BackendError(ResdeployError):
    """An unusable or failed inference backend."""


class BundleError(ResdeployError):
    """A missing or damaged bundle, or one with an unknown schema."""


class CalibrationError(ResdeployError):
    """Calibration images that are not sufficient for scales."""


class CheckpointError(ResdeployError):
    """Missing or damaged weights, or weights of another network."""


class DataError(ResdeployError):
    """A missing or empty folder of images, or one with wrong labels."""


class DocumentError(ResdeployError):
    """A damaged file of results, or results that cannot be compared."""


class ExportError(ResdeployError):
    """A network that cannot be written as ONNX, or whose logits differ too much afterwards."""


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


# The extra that installs an optional package, by the name of its import.
EXTRAS = {
    "onnxruntime": "cpu",
    "cuda": "gpu",
    "cv2": "camera",
    "openvino": "openvino",
    "torch": "train",
    "safetensors": "train",
    "sklearn": "train",
    "matplotlib": "train",
    "onnx": "export",
    "onnx_ir": "export",
    "onnxscript": "export",
    "jinja2": "report",
    "tensorboard": "tensorboard",
    "starlette": "serve",
    "uvicorn": "serve",
    "httptools": "serve",
    "prometheus_client": "serve",
    "python_multipart": "serve",
    "grpc": "serve",
}


def missing_dependency(error: ModuleNotFoundError) -> MissingDependencyError:
    """Return an error that names the extra to install."""
    package = (error.name or "").split(".")[0]
    return MissingDependencyError(
        f"this needs {package}, which is not installed",
        f"pip install 'resdeploy[{EXTRAS.get(package, 'all')}]'",
    )


@contextmanager
def needs_extra() -> Iterator[None]:
    """Turn a failed import within the `with` block into an error that names the extra to install.

    Raises:
        MissingDependencyError: An optional package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise missing_dependency(error) from error
