"""Everything that can go wrong for a reason a user can mend.

    ResdeployError
    |-- BackendError            an inference backend refused or failed
    |-- BundleError             a bundle is missing, damaged or of an unknown schema
    |-- CalibrationError        the calibration images cannot give scales
    |-- CheckpointError         weights are missing, damaged or of another network
    |-- DataError               a folder of images is missing, empty or badly labelled
    |-- DocumentError           a benchmark or verification is damaged, or two do not fit together
    |-- ExportError             the network could not be written as ONNX, or does not agree
    |-- ImageError              one image cannot be decoded
    |-- MissingDependencyError  an optional package is not installed
    |-- OutputError             a result cannot be written
    |-- ServeError              the server cannot start
    `-- TrainingError           training cannot start or go on

A mistake in a Python call stays a ValueError or TypeError.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class ResdeployError(Exception):
    """One sentence with the cause; `hint` is the remedy."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class BackendError(ResdeployError):
    """An inference backend refused or failed."""


class BundleError(ResdeployError):
    """A bundle is missing, damaged or of an unknown schema."""


class CalibrationError(ResdeployError):
    """The calibration images cannot give scales."""


class CheckpointError(ResdeployError):
    """Weights are missing, damaged or of another network."""


class DataError(ResdeployError):
    """A folder of images is missing, empty or badly labelled."""


class DocumentError(ResdeployError):
    """A benchmark or verification is damaged, or two do not fit together."""


class ExportError(ResdeployError):
    """The network could not be written as ONNX, or the result does not agree with it."""


class ImageError(ResdeployError):
    """One image cannot be decoded."""


class MissingDependencyError(ResdeployError):
    """An optional package is not installed."""


class OutputError(ResdeployError):
    """A result cannot be written."""


class ServeError(ResdeployError):
    """The server cannot start."""


class TrainingError(ResdeployError):
    """Training cannot start or go on."""


# Which extra brings which optional package, by the name it is imported under.
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
    """The same error with the command that mends it."""
    package = (error.name or "").split(".")[0]
    return MissingDependencyError(
        f"this needs {package}, which is not installed",
        f"pip install 'resdeploy[{EXTRAS.get(package, 'all')}]'",
    )


@contextmanager
def needs_extra() -> Iterator[None]:
    """Wrap the import of an optional package, to name the extra that brings it.

    Raises:
        MissingDependencyError: the package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise missing_dependency(error) from error
