"""Exceptions for errors that a user can correct.

A wrong argument in a Python call raises a ValueError or TypeError instead.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from resdeploy import __version__


class Interrupted(KeyboardInterrupt):
    """An interruption whose message the user has seen, with the exit code of the command."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Terminated(KeyboardInterrupt):
    """The end of a command by SIGTERM, with the exit code of a shell."""

    code = 128 + signal.SIGTERM


def end_command(number: int, _: object) -> None:
    """Raise Terminated: the handler of SIGTERM in the process of a command."""
    signal.signal(number, signal.SIG_DFL)
    raise Terminated


def _end_silently() -> None:
    """Let SIGTERM end a process that a command forked without a message."""
    if signal.getsignal(signal.SIGTERM) is end_command:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


os.register_at_fork(after_in_child=_end_silently)


class ResdeployError(Exception):
    """An error with one sentence that names the cause, and a `hint` that names the remedy."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        if hint and sys.version_info >= (3, 11):
            self.add_note(f"hint: {hint}")  # below the message in a traceback


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
    "train": ("torch", "safetensors", "sklearn"),
    "export": ("onnx", "onnx_ir", "onnxscript"),
    "report": ("jinja2",),
    "score": ("pyarrow", "fsspec"),
    "ray": ("ray",),
    "sign": ("model_signing", "OpenSSL"),
    "tensorboard": ("tensorboard",),
    "serve": ("starlette", "uvicorn", "httptools", "prometheus_client", "python_multipart", "grpc"),
}


_SPACE = "free some space, or choose another folder"
_FILE_LIMIT = "allow more open files (ulimit -n 65536), or close some programs"
_MEMORY = "close other programs, or use a smaller batch, smaller images or fewer processes"
_REMEDIES = {
    errno.EACCES: "check the permissions of the file and of its folders",
    errno.EPERM: "check the permissions of the file and of its folders",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path: a part of it is a file, not a folder",
    errno.EEXIST: "check the path: a part of it is a file, not a folder",
    errno.EISDIR: "give the path of a file, not of a folder",
    errno.ELOOP: "check the path: its links lead in a circle",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: _SPACE,
    errno.EROFS: "choose another folder: this one is read-only",
    errno.EMFILE: _FILE_LIMIT,
    errno.ENFILE: _FILE_LIMIT,
    errno.EIO: "check the disk and the kernel's log (dmesg)",
}
# Parts of the messages with which PyTorch, CUDA, ONNX Runtime, OpenVINO and C++ report that memory
# is exhausted; each has an exception class of its own.
_OUT_OF_MEMORY = (
    "out of memory", "allocate memory", "bad_alloc", "bad allocation", "can't start new thread",
    "cannot allocate", "failed to map segment", "could not create a primitive",
)  # fmt: skip
_NO_EXCEPTION = ("without setting an exception", "without exception set", "an exception set")


def one_line_reason(error: BaseException) -> str:
    """Return the cause of an error as one line; the name of its class if it has no text."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 text (byte {error.start + 1})"
    text = str(error).strip()
    if isinstance(error, SystemError) and is_out_of_memory(error):
        return "there is not enough memory"
    if isinstance(error, MemoryError) and not text:
        return "there is not enough memory"
    if isinstance(error, KeyError) or not text:  # the text of a KeyError is only the key
        return f"{type(error).__name__} {text}".strip()
    return text.splitlines()[0]


def remedy_for(error: BaseException, otherwise: str) -> str:
    """Return a hint for an error whose cause is known: memory or the file system."""
    if is_out_of_memory(error):
        return _MEMORY
    return _REMEDIES.get(getattr(error, "errno", None) or 0, otherwise)


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if the memory of this machine or of its GPU was exhausted."""
    # Without memory, a call into C may fail without an exception, which Python reports by this one.
    if isinstance(error, SystemError) and any(words in str(error) for words in _NO_EXCEPTION):
        return True
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    text = str(error).lower()
    return any(words in text for words in _OUT_OF_MEMORY)


def missing_dependency(error: ImportError) -> MissingDependencyError:
    """Return an error that names the extra to install, or says why a package does not load."""
    package = (error.name or "").split(".")[0]
    extra = next((extra for extra, packages in EXTRAS.items() if package in packages), "all")
    install = install_hint(extra)
    if isinstance(error, ModuleNotFoundError):
        return MissingDependencyError(f"this needs {package}, which is not installed", install)
    return MissingDependencyError(
        f"{package or 'a package'} does not load: {one_line_reason(error)}",
        f"install the library that it names, or install the package again: {install}",
    )


def install_hint(extra: str) -> str:
    """Return the commands that install an extra; no package index has this package."""
    wheel = f"resdeploy-{__version__}-py3-none-any.whl"
    return f"pip install '.[{extra}]' in the clone, or pip install '{wheel}[{extra}]'"


@contextmanager
def needs_extra() -> Iterator[None]:
    """Raise a MissingDependencyError if an import within the `with` block fails."""
    try:
        yield
    except ImportError as error:
        raise missing_dependency(error) from error
