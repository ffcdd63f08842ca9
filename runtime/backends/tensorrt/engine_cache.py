"""The cache of built engines: files by a hash of everything on which an engine depends.

    engines/KEY.data  the serialised engine
    engines/KEY.json  its record: the parts of the key and the sha256 of the data; written last
    timings/          the timing caches of the builder, in the same form
    kernels/          the kernels that TensorRT-RTX compiled for engines, in the same form

Deserialising an engine runs code of the file. So the cache returns only data whose sha256 is that
of its record, and only from a folder to which no other user can write.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import stat
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from resdeploy.errors import DocumentError, OutputError
from resdeploy.filesystem import cache_folder, open_regular, read_limited, sha256, write_file
from resdeploy.json_documents import parse, strict_json

logger = logging.getLogger(__name__)

LIMIT_BYTES = 4 << 30
AUXILIARY_LIMIT_BYTES = 256 << 20
MAX_RECORD_BYTES = 1 << 16
# A younger file without a record may belong to another process that is still writing.
ABANDONED_SECONDS = 3600.0

Parts = Mapping[str, Any]
"""The values from which a key is computed: texts, numbers, and mappings of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedEngine:
    """The record of one file of the cache."""

    key: str
    parts: dict[str, Any]
    sha256: str
    bytes: int
    built: float
    """Time of the build, in seconds since 1970."""
    notes: dict[str, int]
    """Facts about the engine, such as its number of INT8 convolutions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneReport:
    """The result of `resdeploy build --prune`."""

    folder: Path
    removed: int
    freed_bytes: int
    kept: int
    bytes: int
    """Size of the engines that were kept, in bytes."""
    schema: str = "resdeploy.engine-cache/1"


def prune_engines(limit: int) -> PruneReport:
    """Remove the least recently used engines until at most `limit` bytes are left.

    The same limit applies to the timing caches and to the compiled kernels.
    """
    cache = EngineCache()
    removed = cache.prune(limit)
    prune_auxiliary(limit)
    left = cache.records()
    return PruneReport(
        folder=cache.folder,
        removed=len(removed),
        freed_bytes=sum(record.bytes for record in removed),
        kept=len(left),
        bytes=sum(record.bytes for record in left),
    )


def prune_auxiliary(limit: int = AUXILIARY_LIMIT_BYTES) -> None:
    """Reduce the timing caches and the compiled kernels to at most `limit` bytes each."""
    for kind in ("timings", "kernels"):
        EngineCache(kind).prune(limit)


def compute_key(parts: Parts) -> str:
    """Return the key, 32 hexadecimal digits; it does not depend on the order of the parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


class EngineCache:
    """One folder of the cache; `store` and `lock` raise OutputError if it cannot be used."""

    def __init__(self, kind: str = "engines") -> None:
        """Choose the folder `engines`, `timings` or `kernels`; `store` creates it."""
        self.folder = cache_folder() / kind

    def store(
        self, parts: Parts, data: bytes, *, notes: Mapping[str, int] | None = None
    ) -> CachedEngine:
        """Write `data` and its record; other processes see the old content or the new one."""
        self._prepare()
        record = CachedEngine(
            key=compute_key(parts), parts=dict(parts), sha256=sha256(data), bytes=len(data),
            built=time.time(), notes=dict(notes or {}),
        )  # fmt: skip
        self._record_path(record.key).unlink(missing_ok=True)  # it describes the old content
        write_file(self.data_path(record.key), data)
        document = asdict(record)
        del document["key"]  # the key is the name of the file
        write_file(self._record_path(record.key), json.dumps(document, indent=2).encode())
        return record

    def load(self, record: CachedEngine) -> bytes | None:
        """Return the data if it is intact; otherwise remove it and return None."""
        path = self.data_path(record.key)
        with suppress(OSError):
            with open_regular(path) as stream:
                intact = os.fstat(stream.fileno()).st_size == record.bytes
                data = stream.read(record.bytes) if intact else b""
            if sha256(data) == record.sha256:
                with suppress(OSError):  # the cache may be part of a read-only image
                    os.utime(path)  # `prune` removes the least recently used engines
                return data
        newer = self._read(self._record_path(record.key))
        if newer is not None and newer.sha256 != record.sha256:  # another process has stored it
            return self.load(newer)
        logger.warning("%s is damaged and will be built again", path)
        self.remove(record)
        return None

    @contextmanager
    def lock(self, parts: Parts) -> Iterator[None]:
        """Hold the lock of these parts, so that only one process builds them."""
        self._prepare()
        with (self.folder / f".{compute_key(parts)}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def find(self, parts: Parts) -> CachedEngine | None:
        """Return the newest record whose parts include `parts`; None if there is none."""
        matching = [record for record in self.records() if parts.items() <= record.parts.items()]
        return max(matching, key=lambda record: record.built, default=None)

    def load_newest(self, parts: Parts) -> bytes | None:
        """Return the data of the record that `find` returns; None if there is none intact."""
        record = self.find(parts)
        return self.load(record) if record else None

    def records(self) -> list[CachedEngine]:
        """Return all readable records; skip other files and damaged records."""
        if not self._is_ours():
            return []
        found = (self._read(path) for path in sorted(self.folder.glob("*.json")))
        return [record for record in found if record is not None]

    def remove(self, record: CachedEngine) -> None:
        with suppress(OSError):
            self._record_path(record.key).unlink(missing_ok=True)
            self.data_path(record.key).unlink(missing_ok=True)

    def prune(self, limit: int = LIMIT_BYTES, *, keep: str = "") -> list[CachedEngine]:
        """Remove the least recently used data beyond `limit` bytes; return the removed records.

        The engine with the key `keep` stays. Files that a crashed process left are removed, too.
        """
        records = sorted(self.records(), key=self._last_used, reverse=True)
        known = {record.key for record in records}
        if self._is_ours():
            self._remove_abandoned(known)
        removed = []
        left = sum(record.bytes for record in records)
        while left > limit and records:
            record = records.pop()
            if record.key != keep:
                self.remove(record)
                removed.append(record)
                left -= record.bytes
        return removed

    def _remove_abandoned(self, known: Collection[str]) -> None:
        for path in self.folder.iterdir():
            with suppress(OSError):  # another process may have removed the file
                age = time.time() - path.stat().st_mtime
                in_use = path.stem in known or path.suffix == ".lock"
                if not in_use and age > ABANDONED_SECONDS and path.is_file():
                    path.unlink()

    def _read(self, path: Path) -> CachedEngine | None:
        try:
            document = strict_json(read_limited(path, MAX_RECORD_BYTES, DocumentError, ""))
            record = parse(CachedEngine, {**document, "key": path.stem})
        except (DocumentError, ValueError, TypeError):
            return None
        return record if compute_key(record.parts) == record.key else None

    def _last_used(self, record: CachedEngine) -> float:
        with suppress(OSError):
            return self.data_path(record.key).stat().st_mtime
        return 0.0

    def _is_ours(self) -> bool:
        try:
            ours, above = self.folder.stat(), self.folder.parent.stat()
        except OSError:
            return False
        # A group, such as the user's own one, may write to the parent folder.
        private = not ours.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        return private and not above.st_mode & stat.S_IWOTH and ours.st_uid == os.getuid()

    def _prepare(self) -> None:
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
            self.folder.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise OutputError(
                f"cannot write {self.folder}: {error.strerror or error}",
                "set XDG_CACHE_HOME to a folder that you can write to",
            ) from error
        if not self._is_ours():
            raise OutputError(
                f"other users can write to {self.folder}; only you may, since engines contain code",
                f"chmod -R go-w {self.folder.parent}, or set XDG_CACHE_HOME to your own folder",
            )

    def data_path(self, key: str) -> Path:
        return self.folder / f"{key}.data"

    def _record_path(self, key: str) -> Path:
        return self.folder / f"{key}.json"
