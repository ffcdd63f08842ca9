"""Exceptions for errors that a user can correct.

    ResdeployError
    |-- BackendError            an inference backend is not usable, or failed
    |-- BundleError             a bundle is missing, is damaged, or has an unknown schema
    |-- CalibrationError        the calibration images are not sufficient for scales
    |-- CheckpointError         weights are missing, are damaged, or belong to another network
    |-- DataError               a folder of images is missing, is empty, or has wrong labels
    |-- DocumentError           a result's file is damaged, or two results cannot be compared
    |-- ExportError             a network cannot be written as ONNX, or its logits differ too much
    |-- ImageError              one image cannot be decoded
    |-- MissingDependencyError  an optional package is not installed
    |-- OutputError             a result cannot be written
    |-- ServeError              the server cannot start
    `-- TrainingError           training cannot start or continue

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
    """An inference backend is not usable, or failed."""


class BundleError(ResdeployError):
    """A bundle is missing, is damaged, or has an unknown schema."""


class CalibrationError(ResdeployError):
    """The calibration images are not sufficient for scales."""


class CheckpointError(ResdeployError):
    """Weights are missing, are damaged, or belong to another network."""


class DataError(ResdeployError):
    """A folder of images is missing, is empty, or has wrong labels."""


class DocumentError(ResdeployError):
    """A result's file is damaged, or two results cannot be compared."""


class ExportError(ResdeployError):
    """A network cannot be written as ONNX, or its logits differ too much afterwards."""


class ImageError(ResdeployError):
    """One image cannot be decoded."""


class MissingDependencyError(ResdeployError):
    """An optional package is not installed."""


class OutputError(ResdeployError):
    """A result cannot be written."""


class ServeError(ResdeployError):
    """The server cannot start."""


class TrainingError(ResdeployError):
    """Training cannot start or continue."""


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
