"""The bundle: one folder with the graphs, their labels, their proof and where they came from.

Nothing in a bundle is trusted before its size and sha256 match the manifest; the manifest itself
is limited in size and checked field by field. Shape letters: N images, H rows, W columns,
K classes.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resdeploy.bundle.golden import BIT_EXACT_PREFIX, Golden
from resdeploy.bundle.manifest import MANIFEST, SCHEMA, Artifact, FileRecord, Manifest, _parse
from resdeploy.errors import BundleError
from resdeploy.storage import sha256, sha256_file

LABELS = "labels.txt"
GOLDEN = "golden.npz"
CALIBRATION = "calibration.json"
CALIBRATION_CACHE = "calibration.cache"
ANALYSIS = "analysis.json"
REPORT = "report.html"
MAX_MANIFEST_BYTES = 16 << 20
MAX_GOLDEN_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle; files are read, and checked, when asked for."""

    path: Path
    manifest: Manifest

    def read(self, name: str) -> bytes:
        """The content of one file, after its size and sha256 were found as the manifest says.

        Raises:
            BundleError: the file is missing, was changed, or is not listed.
        """
        record = self._record(name)
        data = _read(self.path / name, record.bytes)
        if len(data) != record.bytes or sha256(data) != record.sha256:
            raise self._changed(name)
        return data

    @contextmanager
    def verified(self, name: str) -> Iterator[Path]:
        """One file under a path that is good for as long as this lasts, checked as by `read`.

        For engines that read files themselves: the content is never in our memory as well. The
        path is that of the open file, so that what takes its place in the folder is not read.

        Raises:
            BundleError: the file is missing, was changed, or is not listed.
        """
        record = self._record(name)
        try:
            stream = (self.path / name).open("rb")
        except OSError as error:
            raise _unreadable(self.path / name, error) from error
        with stream:
            opened = Path(f"/proc/self/fd/{stream.fileno()}")
            path = opened if opened.exists() else self.path / name
            if path.stat().st_size != record.bytes or sha256_file(path) != record.sha256:
                raise self._changed(name)
            yield path

    def artifact(self, name: str) -> Artifact:
        """The artifact called `name`.

        Raises:
            BundleError: there is none; the message lists those that are there.
        """
        for artifact in self.manifest.artifacts:
            if artifact.name == name:
                return artifact
        there = ", ".join(artifact.name for artifact in self.manifest.artifacts)
        option = "--int8 --dla" if name == "int8-dla" else f"--{name.split('-')[0]}"
        raise BundleError(
            f"{self.path} holds no {name} graph, only {there}", f"export it with {option}"
        )

    def labels(self) -> tuple[str, ...]:
        """One name per class.

        Raises:
            BundleError: `labels.txt` is damaged or has another number of lines.
        """
        labels = tuple(
            self.read(LABELS).decode("utf-8", errors="replace").removesuffix("\n").split("\n")
        )
        if len(labels) != self.manifest.classes:
            raise BundleError(
                f"{LABELS} has {len(labels)} lines for {self.manifest.classes} classes",
                "export the bundle again",
            )
        return labels

    def golden(self) -> Golden:
        """The golden images and logits.

        Raises:
            BundleError: `golden.npz` is damaged or does not fit the model.
        """
        data = self.read(GOLDEN)
        size, classes = self.manifest.preprocessing.image_size, self.manifest.classes
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > MAX_GOLDEN_BYTES:
                    raise ValueError("it is too large")
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                images, logits = arrays["images"], arrays["logits"]
                bit_exact = {
                    name.removeprefix(BIT_EXACT_PREFIX): arrays[name]
                    for name in arrays.files
                    if name.startswith(BIT_EXACT_PREFIX)
                }
            count = len(images)
            if images.dtype != np.uint8 or images.shape != (count, size, size, 3) or not count:
                raise ValueError(f"its images are {images.dtype} {images.shape}")
            for given in (logits, *bit_exact.values()):
                if given.dtype != np.float32 or given.shape != (count, classes):
                    raise ValueError(f"its logits are {given.dtype} {given.shape}")
        except Exception as error:  # damaged archives and arrays raise nearly anything
            raise BundleError(
                f"{self.path / GOLDEN} cannot be used: {error}", "export the bundle again"
            ) from error
        return Golden(images=images, logits=logits, bit_exact=bit_exact)

    def _changed(self, name: str) -> BundleError:
        return BundleError(
            f"{self.path / name} was changed: it has not the sha256 in {MANIFEST}",
            "copy the bundle again, or export it again",
        )

    def _record(self, name: str) -> FileRecord:
        if name in self.manifest.files:
            return self.manifest.files[name]
        for artifact in self.manifest.artifacts:
            if artifact.file == name:
                return FileRecord(bytes=artifact.bytes, sha256=artifact.sha256)
        raise BundleError(f"{self.path} lists no file {name}", "export the bundle again")


def open_bundle(path: Path) -> Bundle:
    """Read and check a bundle's manifest.

    Raises:
        BundleError: not a bundle, damaged, or of a schema that this version does not know.
    """
    if not (path / MANIFEST).is_file():
        raise BundleError(
            f"{path} is not a bundle: it has no {MANIFEST}", "make one with resdeploy export"
        )
    data = _read(path / MANIFEST, MAX_MANIFEST_BYTES)
    try:
        if len(data) > MAX_MANIFEST_BYTES:
            raise ValueError(f"it is larger than {MAX_MANIFEST_BYTES >> 20} MiB")
        document = json.loads(data)
        schema = document["schema"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(path, error) from error
    if schema != SCHEMA:
        raise BundleError(
            f"{path} has schema {schema!r}; this version of resdeploy reads schema {SCHEMA}",
            "export it again, or install the version that made it",
        )
    try:
        return Bundle(path, _parse(document))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise _damaged(path, error) from error


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise _unreadable(path, error) from error
    return data


def _unreadable(path: Path, error: OSError) -> BundleError:
    return BundleError(f"{path} cannot be read: {error.strerror or error}", "copy the bundle again")


def _damaged(path: Path, error: Exception) -> BundleError:
    detail = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return BundleError(f"{path / MANIFEST} is damaged: {detail}", "copy or export the bundle again")
