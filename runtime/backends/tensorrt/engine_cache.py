"""Built engines on disk, found again by everything that decides whether they fit.

    engines/KEY.data  what TensorRT serialised
    engines/KEY.json  what the key was made of, and the sha256 of the data; written last
    timings/          in the same form: what the builder measured, for the next build
    kernels/          and what TensorRT-RTX compiled when an engine was loaded

Deserialising runs what is in the file: only content whose sha256 stands in its record is given
out, from a folder that nobody else can write to.
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

from resdeploy.errors import OutputError
from resdeploy.storage import cache_folder, sha256, write_file

logger = logging.getLogger(__name__)

LIMIT_BYTES = 4 << 30
SIDE_LIMIT_BYTES = 256 << 20
SIDE_KINDS = ("timings", "kernels")
LARGEST_RECORD = 1 << 16
# What has no record is another process's work under way, until it is older than any write takes.
ABANDONED_SECONDS = 3600.0

Parts = Mapping[str, Any]
"""What a key is made of: text, numbers, and mappings of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedEngine:
    """What is known of one file of the cache."""

    key: str
    parts: dict[str, Any]
    sha256: str
    bytes: int
    built: float
    """Seconds since 1970."""
    notes: dict[str, int]
    """What was found out about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneReport:
    """What `resdeploy build --prune` reports."""

    folder: Path
    removed: int
    freed_bytes: int
    kept: int
    bytes: int
    """What is still there."""


def prune_engines(limit: int = LIMIT_BYTES) -> PruneReport:
    """Remove the engines that were longest unused until `limit` bytes are left.

    What was measured for them, and compiled of them, is held to the same limit.
    """
    cache = EngineCache()
    removed = cache.prune(limit)
    for kind in SIDE_KINDS:
        EngineCache(kind).prune(limit)
    left = cache.records()
    return PruneReport(
        folder=cache.folder,
        removed=len(removed),
        freed_bytes=sum(record.bytes for record in removed),
        kept=len(left),
        bytes=sum(record.bytes for record in left),
    )


def key_of(parts: Parts) -> str:
    """32 hexadecimal digits for what was written in any order."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


class EngineCache:
    """One of the cache's folders."""

    def __init__(self, kind: str = "engines") -> None:
        """Nothing is written before the first `store`.

        Args:
            kind: `engines`, `timings` or `kernels`.
        """
        self.folder = cache_folder() / kind

    def store(
        self, parts: Parts, data: bytes, *, notes: Mapping[str, int] | None = None
    ) -> CachedEngine:
        """Keep `data`; whoever looks sees the old content or the new, never a mixture.

        Raises:
            OutputError: the folder cannot be used.
        """
        self.prepare()
        record = CachedEngine(
            key=key_of(parts), parts=dict(parts), sha256=sha256(data), bytes=len(data),
            built=time.time(), notes=dict(notes or {}),
        )  # fmt: skip
        self._record_path(record.key).unlink(missing_ok=True)  # it is of the old content
        write_file(self.data_path(record.key), data)
        document = asdict(record)
        del document["key"]  # the file's name
        write_file(self._record_path(record.key), json.dumps(document, indent=2).encode())
        return record

    def load(self, record: CachedEngine) -> bytes | None:
        """The content, if it is what was stored; otherwise None, and it is removed."""
        path = self.data_path(record.key)
        with suppress(OSError):
            if path.stat().st_size == record.bytes:
                data = path.read_bytes()
                if sha256(data) == record.sha256:
                    with suppress(OSError):  # the cache may be part of a read-only image
                        os.utime(path)  # least recently used goes first
                    return data
        newer = self._read(self._record_path(record.key))
        if newer is not None and newer.sha256 != record.sha256:  # stored by another process
            return self.load(newer)
        logger.warning("%s is damaged and is built again", path)
        self.remove(record)
        return None

    @contextmanager
    def only_one(self, parts: Parts) -> Iterator[None]:
        """Let one process at a time look for these parts and build them; the others wait."""
        self.prepare()
        with (self.folder / f".{key_of(parts)}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def find(self, parts: Parts) -> CachedEngine | None:
        """The newest record that agrees with `parts`, as far as they go."""
        fitting = [
            record
            for record in self.records()
            if all(record.parts.get(name) == value for name, value in parts.items())
        ]
        return max(fitting, key=lambda record: record.built, default=None)

    def load_newest(self, parts: Parts) -> bytes | None:
        """What `find` finds, if it is whole."""
        record = self.find(parts)
        return self.load(record) if record else None

    def records(self) -> list[CachedEngine]:
        """All that can be read; files of other kinds and damaged records are passed over."""
        if not self._is_ours():
            return []
        found = (self._read(path) for path in sorted(self.folder.glob("*.json")))
        return [record for record in found if record is not None]

    def remove(self, record: CachedEngine) -> None:
        """Forget it."""
        with suppress(OSError):
            self._record_path(record.key).unlink(missing_ok=True)
            self.data_path(record.key).unlink(missing_ok=True)

    def prune(self, limit: int = LIMIT_BYTES, *, keep: str = "") -> list[CachedEngine]:
        """Remove what was longest unused until `limit` bytes are left, and what has no record.

        Args:
            limit: In bytes.
            keep: A key that stays whatever the limit.

        Returns:
            What was removed.
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
            try:
                age = time.time() - path.stat().st_mtime
                known_here = path.stem in known or path.suffix == ".lock"
                if not known_here and age > ABANDONED_SECONDS and path.is_file():
                    path.unlink()
            except OSError:
                continue  # another process was faster

    def _read(self, path: Path) -> CachedEngine | None:
        try:
            if path.stat().st_size > LARGEST_RECORD:
                return None
            document = json.loads(path.read_bytes())
            record = CachedEngine(
                key=path.stem,
                parts=dict(document["parts"]),
                sha256=str(document["sha256"]),
                bytes=int(document["bytes"]),
                built=float(document["built"]),
                notes={str(name): int(count) for name, count in document["notes"].items()},
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return record if key_of(record.parts) == record.key else None

    def _last_used(self, record: CachedEngine) -> float:
        try:
            return self.data_path(record.key).stat().st_mtime
        except OSError:
            return 0.0

    def _is_ours(self) -> bool:
        try:
            ours, above = self.folder.stat(), self.folder.parent.stat()
        except OSError:
            return False
        # The folder above may belong to a group, such as the user's own one.
        private = not ours.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        return private and not above.st_mode & stat.S_IWOTH and ours.st_uid == os.getuid()

    def prepare(self) -> None:
        """Make the folder, before the work whose result is to go there.

        Raises:
            OutputError: it cannot be made, or is not the user's alone.
        """
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
            self.folder.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise OutputError(
                f"cannot write {self.folder}: {error.strerror or error}",
                "set XDG_CACHE_HOME to a folder of yours",
            ) from error
        if not self._is_ours():
            raise OutputError(
                f"{self.folder} is not yours alone, and engines run what is in their files",
                f"chmod -R go-w {self.folder.parent}, or set XDG_CACHE_HOME to a folder of yours",
            )

    def data_path(self, key: str) -> Path:
        """Where the content of a record lies."""
        return self.folder / f"{key}.data"

    def _record_path(self, key: str) -> Path:
        return self.folder / f"{key}.json"
