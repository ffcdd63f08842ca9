"""Tests of the reasons and remedies of errors, and of the message for a missing package."""

from __future__ import annotations

import errno
import os
import sys
import traceback

import numpy as np
import pytest

from resdeploy.errors import (
    BundleError,
    MissingDependencyError,
    install_hint,
    is_out_of_memory,
    needs_extra,
    one_line_reason,
    remedy_for,
)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("first\nsecond"), "first"),
        (ValueError("  \n"), "ValueError"),
        (RuntimeError(), "RuntimeError"),
        (KeyError("position"), "KeyError 'position'"),
        (PermissionError(errno.EACCES, "Permission denied", "a.jpg"), "Permission denied"),
        (OSError("no number"), "no number"),
        (MemoryError(), "there is not enough memory"),
        (SystemError("error return without exception set"), "there is not enough memory"),
        (MemoryError("Unable to allocate 3 TiB"), "Unable to allocate 3 TiB"),
        (UnicodeDecodeError("utf-8", b"a\xff", 1, 2, "invalid"), "it is not UTF-8 text (byte 2)"),
    ],
)
def test_the_reason_is_one_line_without_the_class(error: Exception, reason: str) -> None:
    assert one_line_reason(error) == reason


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.EACCES, "permissions"),
        (errno.ENOENT, "check the path"),
        (errno.EISDIR, "not of a folder"),
        (errno.ENOTDIR, "a file, not a folder"),
        (errno.ENOSPC, "free some space"),
        (errno.EROFS, "read-only"),
        (errno.EMFILE, "ulimit -n"),
        (errno.EIO, "check the disk"),
        (errno.ENOMEM, "smaller batch"),
        (errno.ENODEV, "another hint"),
    ],
)
def test_the_remedy_follows_the_cause(code: int, remedy: str) -> None:
    assert remedy in remedy_for(OSError(code, os.strerror(code)), "another hint")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        SystemError("<built-in function f> returned NULL without setting an exception"),
        RuntimeError("can't start new thread"),
        RuntimeError("Failed to allocate memory for requested buffer of size 4"),
        RuntimeError("std::bad_alloc"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_exhausted_memory_is_recognised(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("shapes differ"))


def test_numpy_reports_memory_in_a_way_that_is_recognised() -> None:
    with pytest.raises(MemoryError) as caught:
        np.empty(1 << 60, np.uint8)
    assert is_out_of_memory(caught.value)
    assert one_line_reason(caught.value).startswith("Unable to allocate")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ImportError("libGL.so.1: cannot open", name="cv2"),
            "cv2 does not load: libGL.so.1: cannot",
        ),
        (ModuleNotFoundError("No module", name="cv2"), "this needs cv2, which is not installed"),
    ],
)
def test_a_package_that_does_not_load_is_not_called_missing(
    error: ImportError, message: str
) -> None:
    with pytest.raises(MissingDependencyError, match=message) as caught, needs_extra():
        raise error
    assert install_hint("camera") in str(caught.value.hint)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="notes exist from Python 3.11 on")
def test_a_traceback_shows_the_hint() -> None:
    error = BundleError("photo.bundle does not exist", "did you mean photos.bundle?")
    assert str(error) == "photo.bundle does not exist"
    shown = traceback.format_exception(error)
    assert shown[-1] == "hint: did you mean photos.bundle?\n"
    assert traceback.format_exception(BundleError("damaged"))[-1].endswith("BundleError: damaged\n")
