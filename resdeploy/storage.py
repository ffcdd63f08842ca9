"""Atomic writing: a result gets a temporary name, is flushed, and is then renamed."""

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
    """Return the digest of `data` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the digest of a file of any size, which is read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_file(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader sees either the old file or the complete new one.

    Raises:
        OutputError: The file cannot be written; the old one is unchanged.
    """
    with _output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary_sibling(path, "tmp")
        try:
            with temporary.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def refuse_existing(path: Path, *, force: bool, marker: str) -> None:
    """Check before long work that `new_directory` will accept `path` at the end.

    Args:
        path: The folder to write.
        force: True if an older result may be replaced.
        marker: The name of a file that every result of this kind has; a folder without it is the
            user's own and is never replaced.

    Raises:
        OutputError: `path` exists, and `force` is not set or it is not an older result.
    """
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
    """Check before long work that `write_file` may write `path`.

    Raises:
        OutputError: `path` exists and `force` is not set, or `path` is a folder.
    """
    if path.is_dir() or (path.exists() and not force):
        raise OutputError(f"{path} exists already", "choose another name, or add --force")


@contextmanager
def new_directory(path: Path, *, force: bool = False, marker: str = "") -> Iterator[Path]:
    """Yield an empty folder that becomes `path` when the block ends without an error.

    With `force` an older result is replaced (see `refuse_existing`), once the new one is complete.

    Raises:
        OutputError: `path` exists and must not be replaced, or it cannot be written.
    """
    refuse_existing(path, force=force, marker=marker)
    with _output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, retired = _temporary_sibling(path, "tmp"), _temporary_sibling(path, "old")
        try:
            temporary.mkdir()
            yield temporary
            _flush(temporary)
            if path.exists():
                # It may have been created since the first check.
                refuse_existing(path, force=force, marker=marker)
                os.replace(path, retired)
            os.replace(temporary, path)
            shutil.rmtree(retired, ignore_errors=True)
        except BaseException:
            if retired.exists() and not path.exists():
                os.replace(retired, path)
            for folder in (temporary, retired):
                shutil.rmtree(folder, ignore_errors=True)
            raise


def cache_folder() -> Path:
    """Return the folder for files that can be made again: `$XDG_CACHE_HOME/resdeploy`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "resdeploy"


def _temporary_sibling(path: Path, kind: str) -> Path:
    # The name is chosen before the file exists: an interrupt can come between any two steps, and
    # the file must be found to be removed.
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
