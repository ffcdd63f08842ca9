"""Results appear whole or not at all: write to a temporary name, flush, then rename."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
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
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.tmp-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
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
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.tmp-", dir=path.parent))
        try:
            temporary.chmod(0o777 & ~_umask())
            yield temporary
            _flush(temporary)
            if path.exists():
                refuse_existing(path, force=force, sign=sign)  # it may have appeared meanwhile
                retired = Path(tempfile.mkdtemp(prefix=f".{path.name}.old-", dir=path.parent))
                os.replace(path, retired / "old")
                try:
                    os.replace(temporary, path)
                except BaseException:
                    os.replace(retired / "old", path)
                    raise
                finally:
                    shutil.rmtree(retired)
            else:
                os.replace(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _flush(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    # mkstemp and mkdtemp make private files; results get the permissions of ordinary ones.
    mask = os.umask(0)
    os.umask(mask)
    return mask


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
