"""Files on a local disk, or in a store that fsspec opens, such as `s3://bucket/photos`.

Source: the documentation of fsspec (https://filesystem-spec.readthedocs.io), `url_to_fs` and
`AbstractFileSystem`. A name is that of a store if it begins with a protocol and `://`; credentials
and endpoints come from the variables and files that the store's own package reads.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from resdeploy.errors import (
    DataError,
    ImageError,
    OutputError,
    ResdeployError,
    needs_extra,
    one_line_reason,
    remedy_for,
)
from resdeploy.filesystem import new_file, open_regular, tidy_up
from resdeploy.images.decode import MAX_IMAGE_BYTES

LOCAL = "file://"
HINT = "check the name, the credentials and the endpoint of the store"


def is_url(name: str) -> bool:
    """Return True if a name is that of a store, not of a local file."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", name) is not None and not is_local(name)


def is_local(name: str) -> bool:
    """Return True if a name is an address of the local disk, such as `file:///photos/a.jpg`."""
    return name.startswith(LOCAL)


def local_path(name: str) -> Path:
    """Return the path that a name or an address of the local disk stands for."""
    return Path(name.removeprefix(LOCAL))


def absolute_name(name: str) -> str:
    """Return a URL as it is, and a local name as an absolute path."""
    return name if is_url(name) else str(local_path(name).absolute())


def open_store(url: str) -> tuple[Any, str]:
    """Return the file system of a store, of fsspec, and the path in it.

    Raises:
        DataError: There is no such store, or it refuses the connection.
        MissingDependencyError: A package for this store is not installed.
    """
    with needs_extra():
        from fsspec.core import url_to_fs
    protocol = url.partition("://")[0]
    try:
        found: tuple[Any, str] = url_to_fs(url)
    except ImportError as error:
        hint = f"install the package of fsspec for {protocol}: {one_line_reason(error)}"
        raise DataError(f"{url} cannot be opened: a package is missing", hint) from error
    except Exception as error:  # each store has exceptions of its own
        raise _failed(url, error, DataError) from error
    return found


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file with what tells whether it has changed."""

    name: str
    """The name that a user could give: a path or a URL."""
    stamp: str
    """Size, and time of the last change or the store's digest; another one is another file."""


def local_stamp(path: Path) -> str:
    """Return size and time of change of a local file; a reason in place of a file without them."""
    try:
        facts = path.stat()
    except OSError as error:
        return one_line_reason(error)
    return f"{facts.st_size} {facts.st_mtime_ns}"


def stamp_of(name: str) -> str:
    """Return the stamp of a file that a user named.

    Raises:
        DataError: There is no such file, or the store refuses.
    """
    if not is_url(name):
        path = local_path(name)
        try:
            with open_regular(path):
                return local_stamp(path)
        except OSError as error:
            reason, hint = one_line_reason(error), remedy_for(error, "check the path")
            raise DataError(f"{name} cannot be read: {reason}", hint) from error
    store, path_there = open_store(name)
    try:
        return _stored_stamp(store.info(path_there))
    except Exception as error:
        raise _failed(name, error, DataError) from error


def is_stored_folder(url: str) -> bool:
    """Return True if there are files below a URL, and none with exactly this name."""
    store, path = open_store(url)
    try:
        return bool(store.isdir(path))
    except Exception as error:
        raise _failed(url, error, DataError) from error


def walk_store(url: str) -> Iterator[StoredFile]:
    """Yield all files below a URL, those of one folder in the order of their names.

    Raises:
        DataError: The store refuses.
    """
    store, path = open_store(url)
    top, path = url.rstrip("/"), path.rstrip("/")
    try:
        for folder, _, files in store.walk(path, detail=True):
            place = f"{top}{folder.rstrip('/').removeprefix(path)}"  # with the protocol as given
            for name in sorted(files):
                yield StoredFile(f"{place}/{name}", _stored_stamp(files[name]))
            store.invalidate_cache(folder)  # the names of a million files
    except Exception as error:
        raise _failed(url, error, DataError) from error


@contextmanager
def open_file(name: str) -> Iterator[BinaryIO]:
    """Yield a file of any size that is read in parts.

    Raises:
        OSError: There is no such file, or the store refuses.
    """
    if not is_url(name):
        with open_regular(local_path(name)) as stream:
            yield stream
        return
    store, path = open_store(name)
    with store.open(path, "rb") as stream:
        yield stream


def read_picture(name: str, offset: int | None, size: int | None) -> Path | bytes:
    """Return the path of a local picture, or the content of one in a store or a tar file.

    Args:
        name: Path or URL of the picture, or of the tar file that holds it.
        offset: Position in the tar file.
        size: Size in the tar file, in bytes.

    Raises:
        ImageError: The picture cannot be read, or is too large.
    """
    if size is not None and size > MAX_IMAGE_BYTES:
        reason = f"{name} has a picture of {size} bytes, more than {MAX_IMAGE_BYTES >> 20} MiB"
        raise ImageError(reason, "scale it down")
    if not is_url(name):
        if offset is None:
            return local_path(name)
        try:
            with open_regular(local_path(name)) as stream:
                stream.seek(offset)
                return stream.read(-1 if size is None else size)
        except OSError as error:
            raise _failed(name, error, ImageError) from error
    start = offset or 0
    end = start + (MAX_IMAGE_BYTES + 1 if size is None else size)
    try:
        store, path = open_store(name)
        data: bytes = store.cat_file(path, start=start, end=end)
    except ResdeployError as error:
        raise ImageError(str(error), error.hint) from error
    except Exception as error:
        raise _failed(name, error, ImageError) from error
    if len(data) > MAX_IMAGE_BYTES:
        raise ImageError(f"{name} is larger than {MAX_IMAGE_BYTES >> 20} MiB", "scale it down")
    return data


class OutputFolder:
    """A folder for results, on a local disk or in a store; each file appears complete or not."""

    def __init__(self, name: str) -> None:
        """Name the folder, which `write` creates."""
        self.name = name.rstrip("/")
        self._store: Any
        self._store, self._path = open_store(self.name) if is_url(name) else (None, "")

    @property
    def local(self) -> Path | None:
        """The local folder; None in a store."""
        return local_path(self.name) if self._store is None else None

    def write(self, file: str, data: bytes) -> None:
        """Write a file under its name, or leave nothing.

        Raises:
            OutputError: It cannot be written.
        """
        if self.local is not None:
            with new_file(self.local / file) as stream:
                stream.write(data)
            return
        try:  # the stores that fsspec writes to show a file when all of it has arrived
            self._store.pipe_file(f"{self._path}/{file}", data)
        except Exception as error:
            raise _failed(f"{self.name}/{file}", error, OutputError) from error

    def read(self, file: str, limit: int) -> bytes | None:
        """Return the first `limit` bytes of a file; None if there is none.

        Raises:
            OutputError: It cannot be read.
        """
        try:
            if self.local is not None:
                with open_regular(self.local / file) as stream:
                    return stream.read(limit)
            data: bytes = self._store.cat_file(f"{self._path}/{file}", start=0, end=limit)
        except FileNotFoundError:
            return None
        except Exception as error:
            raise _failed(f"{self.name}/{file}", error, OutputError) from error
        return data

    def tidy_up(self, file: str) -> None:
        """Remove what killed runs left beside a file, of which a store shows nothing."""
        if self.local is not None:
            tidy_up(self.local / file)

    def is_empty(self) -> bool:
        """Return True if the folder is missing, or has neither files nor folders.

        Raises:
            OutputError: The folder cannot be listed.
        """
        return not self._entries("")

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Return the sizes of the files of the folder, or of one in it, by name; none if missing.

        Raises:
            OutputError: The folder cannot be listed.
        """
        return {name: size for name, size in self._entries(folder).items() if size is not None}

    def _entries(self, folder: str) -> dict[str, int | None]:
        """Return the sizes of files, and None for folders, by name."""
        try:
            if self.local is not None:
                with os.scandir(self.local / folder) as found:
                    return {e.name: e.stat().st_size if e.is_file() else None for e in found}
            there = f"{self._path}/{folder}".rstrip("/")
            self._store.invalidate_cache()
            entries = self._store.ls(there, detail=True)
        except FileNotFoundError:
            return {}
        except Exception as error:
            raise _failed(f"{self.name}/{folder}".rstrip("/"), error, OutputError) from error
        return {
            str(e["name"]).rpartition("/")[2]: (e["size"] or 0) if e["type"] == "file" else None
            for e in entries
        }


def _stored_stamp(facts: dict[str, Any]) -> str:
    """Return the stamp of a file from what its store tells, whose keys differ between stores."""
    lowered = {key.lower(): value for key, value in facts.items()}
    keys = ("size", "etag", "lastmodified", "last_modified", "mtime", "updated", "created")
    return " ".join(str(lowered[key]) for key in keys if lowered.get(key) is not None)


def _failed(name: str, error: Exception, kind: type[ResdeployError]) -> ResdeployError:
    missing = isinstance(error, FileNotFoundError)
    reason = "it does not exist" if missing else one_line_reason(error)
    return kind(f"{name} cannot be used: {reason}", remedy_for(error, HINT))
