"""Results appear whole or not at all: write to a temporary name, flush, then rename."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from resdeploy.errors import OutputError


def sha256(data: bytes | memoryview) -> str:
    """Digest of `data`, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Digest of a file of any size, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_file(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, so that a reader sees the old file or the new one, never a part.

    Raises:
        OutputError: the file cannot be written; the old one is untouched.
    """
    with _output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(path, "tmp")
        try:
            with temporary.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def refuse_existing(path: Path, *, force: bool, sign: str) -> None:
    """Check before long work what `new_directory` will check at its end.

    Args:
        path: The folder to be written.
        force: Whether an older result may be replaced.
        sign: A file that is in every result of this kind; what lacks it is somebody's own.

    Raises:
        OutputError: `path` exists and `force` is not set, or it is no older result.
    """
    if not path.exists():
        return
    if not force:
        raise OutputError(f"{path} exists already", "choose another name, or add --force")
    if not (path / sign).is_file() and not (path.is_dir() and not any(path.iterdir())):
        raise OutputError(
            f"{path} exists and was not written by resdeploy: it has no {sign}",
            "choose another name, or remove it yourself",
        )


def refuse_existing_file(path: Path, *, force: bool) -> None:
    """The same for a single file, which `write_file` replaces.

    Raises:
        OutputError: `path` exists and `force` is not set, or it is a folder.
    """
    if path.is_dir() or (path.exists() and not force):
        raise OutputError(f"{path} exists already", "choose another name, or add --force")


@contextmanager
def new_directory(path: Path, *, force: bool = False, sign: str = "") -> Iterator[Path]:
    """Yield an empty folder that becomes `path` when the block ends without an error.

    With `force` an older result is replaced, see `refuse_existing`; it stays until the new one is
    complete.

    Raises:
        OutputError: `path` exists and must not be replaced, or it cannot be written.
    """
    refuse_existing(path, force=force, sign=sign)
    with _output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, retired = _beside(path, "tmp"), _beside(path, "old")
        try:
            temporary.mkdir()
            yield temporary
            _flush(temporary)
            if path.exists():
                refuse_existing(path, force=force, sign=sign)  # it may have appeared meanwhile
                os.replace(path, retired)
            os.replace(temporary, path)
            shutil.rmtree(retired, ignore_errors=True)
        except BaseException:
            if retired.exists() and not path.exists():
                os.replace(retired, path)
            for folder in (temporary, retired):
                shutil.rmtree(folder, ignore_errors=True)
            raise


def _beside(path: Path, kind: str) -> Path:
    # The name is known before anything has it: an interrupt can come between any two steps, and
    # what was made must be found again.
    return path.parent / f".{path.name}.{kind}-{secrets.token_hex(8)}"


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
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}",
            f"{'free some space' if full else 'check the permissions'}, or choose another folder",
        ) from error


def cache_folder() -> Path:
    """Where resdeploy keeps what it can make again: `$XDG_CACHE_HOME/resdeploy`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "resdeploy"
