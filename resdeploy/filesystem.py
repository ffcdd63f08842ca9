"""Functions that read files up to a size limit, and write files and folders atomically."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import mmap
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

from resdeploy.errors import OutputError, ResdeployError, one_line_reason, remedy_for
from resdeploy.file_locks import release_lock, take_lock

HEAD_BYTES = 512
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of linux/fcntl.h and linux/fs.h


def sha256(data: bytes | memoryview) -> str:
    """Return the SHA-256 digest of `data` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def open_regular(path: Path) -> BinaryIO:
    """Return a regular file opened for reading.

    A FIFO, a socket or a device could block its reader for ever, or never end. The open file itself
    is checked, so nothing can replace it after the check.

    Raises:
        OSError: The file cannot be opened, or it is not a regular file.
    """
    # Without O_NONBLOCK, opening a FIFO waits for a writer. It has no effect on regular files.
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except ValueError as error:  # a name from a table may have characters that no file name has
        raise OSError(errno.EINVAL, one_line_reason(error), str(path)) from error
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def sha256_file(path: Path) -> str:
    """Return the SHA-256 digest of a file without loading the whole file into memory."""
    digest = hashlib.sha256()
    with open_regular(path) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_limited(path: Path, limit: int, error_type: type[ResdeployError], hint: str) -> bytes:
    """Return the content of a file of at most `limit` bytes.

    Raises:
        ResdeployError: An `error_type`, if the file cannot be read or is larger, or has the content
            that `check_file` refuses.
    """
    data = _read_start(path, limit + 1, error_type, hint)
    if len(data) > limit:
        raise error_type(f"{path} is larger than {limit >> 20} MiB", hint)
    return data


def check_file(path: Path, error_type: type[ResdeployError], hint: str) -> None:
    """Raise an `error_type` if a file cannot be read, is empty, or stands for another file.

    Such a file is a pointer of Git LFS (https://github.com/git-lfs/git-lfs, docs/spec.md) or the
    HTML page that a server sent instead of a file.
    """
    _read_start(path, HEAD_BYTES, error_type, hint)


def _read_start(path: Path, size: int, error_type: type[ResdeployError], hint: str) -> bytes:
    try:
        with open_regular(path) as stream:
            data = stream.read(size)
    except OSError as error:
        reason = one_line_reason(error)
        raise error_type(f"{path} cannot be read: {reason}", remedy_for(error, hint)) from error
    if not data:
        raise error_type(f"{path} is empty", hint)
    if data.startswith(b"version https://git-lfs.github.com/spec/"):
        raise error_type(
            f"{path} is only a pointer of Git LFS", "fetch the file with: git lfs pull"
        )
    if data[:HEAD_BYTES].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise error_type(f"{path} is an HTML page", "download the file itself, not its web page")
    return data


@contextmanager
def in_memory(name: str, data: bytes = b"") -> Iterator[Path]:
    """Yield a path to a copy that no other process changes, and that ends with this process."""
    copy = os.memfd_create(name, os.MFD_CLOEXEC)
    with os.fdopen(copy, "wb") as stream:
        stream.write(data)
        stream.flush()
        yield Path(f"/proc/self/fd/{copy}")


def fill(path: Path, source: BinaryIO, size: int) -> memoryview:
    """Copy `size` bytes of an open file to `path`, and return them.

    They are mapped, because the C library keeps more memory for later after a large allocation.
    """
    with path.open("r+b") as copy:
        while block := source.read(min(size - copy.tell(), 1 << 18)):
            copy.write(block)
        copy.flush()
        return memoryview(mmap.mmap(copy.fileno(), 0) if copy.tell() else b"")


def write_file(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader sees either the old file or the complete new file.

    Raises:
        OutputError: The file cannot be written; the old file is unchanged.
    """
    with new_file(path) as stream:
        stream.write(data)


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that is renamed to `path` if the `with` block ends without an error.

    Raises:
        OutputError: The file cannot be written; the old file is unchanged.
    """
    with _output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        tidy_up(path)
        temporary = _temporary_sibling(path, "tmp")
        try:
            with claimed(temporary, partial(temporary.touch, exist_ok=False)):
                with temporary.open("wb") as stream:
                    yield stream
                    stream.flush()
                    os.fsync(stream.fileno())
                os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def refuse_existing(path: Path, *, force: bool, marker: str) -> None:
    """Check before long work that `new_directory` will accept `path` at the end.

    With `force`, an empty folder or an older result may be replaced. `marker` is the name of a file
    that every result of this kind has; a folder without it belongs to the user.

    Raises:
        OutputError: `path` exists and must not be replaced, or it cannot be written.
    """
    check_writable(path)
    tidy_up(path)
    if not path.exists():
        return
    if not force:
        raise OutputError(f"{path} exists already", "choose another name, or add --force")
    if not (path / marker).is_file() and not (path.is_dir() and not any(path.iterdir())):
        raise OutputError(
            f"{path} exists and was not written by resdeploy: it has no {marker}",
            "choose another name, or remove it yourself",
        )


def refuse_existing_file(path: Path, *, force: bool) -> None:
    """Raise an OutputError before long work if `path` exists or cannot be written.

    With `force`, a file may exist.
    """
    check_writable(path)
    if path.is_dir():
        raise OutputError(f"{path} is a folder", "give the path of a file to write")
    # A new file is renamed to its place, so it would replace a device or a link.
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise OutputError(f"{path} is a link or no regular file", "give the path of another file")
    if path.name == "-":
        raise OutputError("nothing is written to the terminal as a file", "give the path of a file")
    if path.exists() and not force:
        raise OutputError(f"{path} exists already", "choose another name, or add --force")


def check_writable(path: Path) -> None:
    """Raise an OutputError if `path` cannot be created in its folder or the nearest one above."""
    with _output_errors(path):
        parent = existing_folder(path.parent)
        if not parent.is_dir():
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(parent, os.W_OK | os.X_OK):
            read_only = os.statvfs(parent).f_flag & os.ST_RDONLY
            code = errno.EROFS if read_only else errno.EACCES
            raise OSError(code, os.strerror(code))


def existing_folder(path: Path) -> Path:
    """Return `path`, or the nearest path above it that exists."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


@contextmanager
def new_directory(path: Path, *, force: bool = False, marker: str = "") -> Iterator[Path]:
    """Yield an empty folder that is renamed to `path` if the `with` block ends without an error.

    With `force`, the complete new result replaces an older one (see `refuse_existing`). Where the
    file system can exchange two names in one step, `path` exists at every moment.

    Raises:
        OutputError: `path` exists and must not be replaced, or it cannot be written.
    """
    refuse_existing(path, force=force, marker=marker)
    with _output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, retired = _temporary_sibling(path, "tmp"), _temporary_sibling(path, "old")
        try:
            with claimed(temporary, temporary.mkdir):
                yield temporary
                _flush(temporary)
                if path.exists():
                    # Another process may have created it since the first check.
                    refuse_existing(path, force=force, marker=marker)
                    if not _exchange(temporary, path):
                        with claimed(path):  # so that nobody tidies `retired` up
                            os.replace(path, retired)
                            os.replace(temporary, path)
                else:
                    os.replace(temporary, path)
                _remove(temporary, retired)
        except BaseException:
            if retired.exists() and not path.exists():
                os.replace(retired, path)
            _remove(temporary, retired)
            raise


def tidy_up(path: Path) -> None:
    """Remove what killed processes left beside an output, and restore what they were replacing.

    A living process holds the lock of its temporary file or folder; see `take_lock`.
    """
    leftover = re.compile(re.escape(f".{path.name}.") + "(tmp|old)-[0-9a-f]{16}")
    with suppress(OSError):
        for name in os.listdir(path.parent):
            if match := leftover.fullmatch(name):
                with suppress(OSError):
                    _tidy_entry(path.parent / name, path if match[1] == "old" else None)


def _tidy_entry(entry: Path, replaced: Path | None) -> None:
    """Remove an entry that no process has locked, or rename it to `replaced` if that is missing."""
    lock = take_lock(entry)
    try:
        if replaced is not None and not replaced.exists():
            os.replace(entry, replaced)
        else:
            _remove(entry)
    finally:
        release_lock(lock)


def cache_folder() -> Path:
    """Return the folder for files that can be created again: `$XDG_CACHE_HOME/resdeploy`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "resdeploy"


def _temporary_sibling(path: Path, kind: str) -> Path:
    # The name is known before the file exists, so that the file can be removed after an interrupt
    # between any two steps.
    return path.parent / f".{path.name}.{kind}-{secrets.token_hex(8)}"


def _remove(*paths: Path) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def claimed(path: Path, create: Callable[[], object] | None = None) -> Iterator[None]:
    """Lock `path` in the `with` block, after creating it; without locks, only create it."""
    lock, exists = -1, False
    try:
        while not exists:
            if create is not None:
                create()
            exists = True
            try:
                lock = take_lock(path, wait=create is not None)
            except FileNotFoundError:  # another process tidied it up before it was locked
                exists = create is None
            except OSError:  # there are no locks, or somebody else holds that of an old folder
                pass
        yield
    finally:
        release_lock(lock)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names in one step; return False if the system or the file system cannot.

    Source: rename(2), RENAME_EXCHANGE.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    names = AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second)
    return rename is not None and rename(*names, RENAME_EXCHANGE) == 0


def _flush(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _output_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # A file elsewhere that the `with` block reads is not the output.
        if isinstance(error.filename, (str, Path)) and not _is_near(Path(error.filename), path):
            raise
        raise OutputError(
            f"cannot write {path}: {one_line_reason(error)}",
            remedy_for(error, "choose another folder"),
        ) from error


def _is_near(file: Path, path: Path) -> bool:
    """Return True if `file` is a folder above `path`, or below the folder of `path`."""
    return file in path.parents or path.parent in file.parents
