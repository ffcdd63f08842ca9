"""The reader of a bundle: a folder with the graphs of a network and the files that describe them.

A file is used only if its size and sha256 match the manifest. The size of the manifest is limited,
and all its fields are checked. Shape letters: N images, H rows, W columns, K classes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from resdeploy import __version__
from resdeploy.bundle.golden import MAX_GOLDEN_BYTES, Golden, read_golden
from resdeploy.bundle.graph_check import check_onnx
from resdeploy.bundle.manifest import (
    MANIFEST,
    SCHEMA,
    Artifact,
    FileRecord,
    Manifest,
)
from resdeploy.errors import BundleError, one_line_reason, remedy_for
from resdeploy.filesystem import check_file, fill, in_memory, open_regular, read_limited, sha256
from resdeploy.images.class_folders import HeldOut
from resdeploy.images.preprocessing import height_and_width
from resdeploy.json_documents import decode, parse, strict_json
from resdeploy.missing_paths import missing_path_hint
from resdeploy.readable_text import readable

LABELS = "labels.txt"
GOLDEN = "golden.npz"
CALIBRATION = "calibration.json"
CALIBRATION_CACHE = "calibration.cache"
ANALYSIS = "analysis.json"
REPORT = "report.html"
MODEL_CARD = "README.md"
SBOM = "sbom.cdx.json"
SIGNATURE = "model.sig"
MAX_MANIFEST_BYTES = 16 << 20
MAX_LABEL_LENGTH = 1000
# Only graphs are larger: an analysis has a few kB per layer, a report about 100 kB.
MAX_OTHER_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Bundle:
    """An open bundle, which checks a file each time that it is read."""

    path: Path
    manifest: Manifest
    signer: str | None = None
    """Signer whose signature was verified; None if none was asked for."""
    digest: str = ""
    """SHA-256 of the manifest, which has the digests of all other files; empty if made by hand."""

    @property
    def files(self) -> dict[str, FileRecord]:
        """All files that the manifest lists, by name."""
        graphs = {
            artifact.file: FileRecord(bytes=artifact.bytes, sha256=artifact.sha256)
            for artifact in self.manifest.artifacts
        }
        return {**graphs, **self.manifest.files}

    @property
    def held_out(self) -> HeldOut | None:
        """Images that the training held out, if its data had no folder for them.

        Raises:
            BundleError: The manifest does not describe them.
        """
        try:
            return parse(HeldOut | None, self.manifest.model.get("held_out"))  # type: ignore[arg-type]
        except ValueError as error:
            raise self.damaged(MANIFEST, f"model.held_out: {error}") from error

    def read(self, name: str) -> bytes:
        """Return the content of one file after checking its size and sha256.

        Raises:
            BundleError: The file is missing, was changed, or is not listed in the manifest.
        """
        record = self._record(name)
        limit = MAX_GOLDEN_BYTES if name == GOLDEN else MAX_OTHER_BYTES
        if name in self.manifest.files and record.bytes > limit:
            raise self.damaged(name, f"it has {record.bytes:,} bytes; at most {limit:,} are read")
        return bytes(self._checked(name))

    @contextmanager
    def checked_path(self, name: str) -> Iterator[Path]:
        """Yield a path to a copy of one file, valid within the `with` block, as `read` returns it.

        A library can load the file itself, and needs no second copy in the memory of this process.

        Raises:
            BundleError: As for `read`.
        """
        with in_memory(name) as path:
            self._checked(name, path)
            yield path

    def _checked(self, name: str, copy: Path | None = None) -> bytes | memoryview:
        """Return the content of a file after all checks, and write it to `copy`, if given."""
        record = self._record(name)
        size = record.bytes + 1
        try:
            with open_regular(self.path / name) as stream:
                data = fill(copy, stream, size) if copy else stream.read(size)
        except OSError as error:
            raise _unreadable(self.path / name, error) from error
        if len(data) != record.bytes or sha256(data) != record.sha256:
            raise self._changed(name)
        self._check_onnx(name, data)
        return data

    def _check_onnx(self, name: str, data: bytes | memoryview) -> None:
        for artifact in self.manifest.artifacts:
            if artifact.file == name:
                try:
                    check_onnx(
                        data,
                        opset=artifact.opset,
                        image_size=height_and_width(self.manifest.preprocessing.image_size),
                        classes=self.manifest.classes,
                    )
                except ValueError as error:
                    raise BundleError(
                        f"{self.path / name} is not a graph that resdeploy runs: {error}",
                        "export the bundle again; do not run graphs of unknown origin",
                    ) from error

    def artifact(self, name: str) -> Artifact:
        """Return the artifact called `name`.

        Raises:
            BundleError: The bundle has no such artifact.
        """
        artifacts = {artifact.name: artifact for artifact in self.manifest.artifacts}
        if name in artifacts:
            return artifacts[name]
        option = "--int8 --dla" if name == "int8-dla" else f"--{name.split('-')[0]}"
        raise BundleError(
            f"{self.path} holds no {name} graph, only {', '.join(artifacts)}",
            f"export it with {option}",
        )

    def labels(self) -> tuple[str, ...]:
        """Return the names of the classes, in the order of the logits.

        Raises:
            BundleError: `labels.txt` is damaged or has a wrong number of lines.
        """
        text = self.read(LABELS).decode("utf-8", errors="replace").removesuffix("\n")
        if (lines := text.count("\n") + 1) != self.manifest.classes:
            reason = f"it has {lines} lines for {self.manifest.classes} classes"
            raise self.damaged(LABELS, reason)
        labels = text.split("\n")
        if (longest := max(map(len, labels))) > MAX_LABEL_LENGTH:
            raise self.damaged(LABELS, f"it has a line of {longest:,} characters")
        return tuple(map(readable, labels))

    def golden(self) -> Golden:
        """Return the golden images and logits.

        Raises:
            BundleError: `golden.npz` is damaged or does not fit the model.
        """
        data, manifest = self.read(GOLDEN), self.manifest
        try:
            return read_golden(
                data, manifest.preprocessing.image_size, manifest.classes, manifest.golden.images
            )
        except MemoryError:
            raise
        except Exception as error:  # damaged archives and arrays raise exceptions of many types
            raise self.damaged(GOLDEN, error) from error

    def damaged(self, name: str, reason: object) -> BundleError:
        """Return an error for a file that has not changed since the export, but cannot be used."""
        return BundleError(
            f"{self.path / name} cannot be used: {reason}", "export the bundle again"
        )

    def _changed(self, name: str) -> BundleError:
        hint = "copy the bundle again, or export it again"
        if name != REPORT:  # the only HTML page of a bundle
            check_file(self.path / name, BundleError, hint)
        return BundleError(
            f"{self.path / name} was changed: its size or sha256 differs from {MANIFEST}", hint
        )

    def _record(self, name: str) -> FileRecord:
        if (record := self.files.get(name)) is not None:
            return record
        raise BundleError(f"{self.path} lists no file {name}", "export the bundle again")


def is_bundle(path: Path) -> bool:
    """Return True if `path` is a folder with a manifest; an unreadable folder is none."""
    return os.path.isfile(path / MANIFEST)


def open_bundle(path: Path, *, manifest_sha256: str | None = None) -> Bundle:
    """Read and check the manifest of a bundle.

    Args:
        path: Folder of the bundle.
        manifest_sha256: Digest that the manifest must have; None to accept any.

    Raises:
        BundleError: The folder is not a bundle, is damaged, or has an unknown schema.
    """
    manifest = path / MANIFEST
    if not manifest.exists():
        raise _no_bundle(path)
    hint = "copy or export the bundle again"
    data = read_limited(manifest, MAX_MANIFEST_BYTES, BundleError, hint)
    if manifest_sha256 is not None and sha256(data) != manifest_sha256:
        raise BundleError(f"{manifest} is not the file that was signed", hint)
    try:
        document = decode(dict[str, Any], data)
        if "schema" not in document:
            raise ValueError("it has no schema")
        if document["schema"] == SCHEMA:
            return Bundle(path, parse(Manifest, document), digest=sha256(data))
    except ValueError as error:
        version, date = _writer(data)
        if version not in ("", __version__):
            raise BundleError(
                f"{path} was written by resdeploy {version}, and {__version__} cannot read it: "
                f"{error}",
                "export the checkpoint again, or install the version that wrote the bundle",
            ) from error
        since = f"; it was exported on {date}, so an older build may have written it"
        raise BundleError(
            f"{manifest} is damaged: {error}", hint + (since if date else "")
        ) from error
    raise BundleError(
        f"{path} has schema {document['schema']!r:.60}; this version of resdeploy reads {SCHEMA}",
        "export it again, or install the version that made it",
    )


def _writer(manifest: bytes) -> tuple[str, str]:
    """Return the version and the day that a manifest states for its export, as far as it does."""
    with suppress(ValueError, KeyError, TypeError):
        origin = strict_json(manifest)["provenance"]
        return readable(str(origin["versions"]["resdeploy"]))[:40], readable(origin["date"])[:10]
    return "", ""


def _no_bundle(path: Path) -> BundleError:
    """Return the reason why `path` is not a bundle, with the command that gives one."""
    if not path.exists():
        hint = missing_path_hint(
            path, is_bundle, "create a bundle with resdeploy export", "bundles"
        )
        return BundleError(f"{path} does not exist", hint)
    if path.is_file() and (path.parent / MANIFEST).is_file():
        return BundleError(
            f"{path} is a file of a bundle, not its folder", f"give the folder: {path.parent}"
        )
    if path.is_file():
        hint = "give the folder that resdeploy export wrote; of weights, it writes one with: "
        hint += f"resdeploy export {quote(str(path))}"
        return BundleError(f"{path} is a file, and a bundle is a folder", hint)
    hint = "create a bundle with resdeploy export"
    if (path / "model.json").is_file():  # a run of resdeploy train
        hint = f"create a bundle of this run with: resdeploy export {quote(str(path))}"
    elif (path / "state.json").is_file():
        shown = quote(str(path))
        hint = f"finish this run with resdeploy train --resume {shown}, "
        hint += f"or with --finish after its best epoch so far; then resdeploy export {shown}"
    return BundleError(f"{path} is not a bundle: it has no {MANIFEST}", hint)


def _unreadable(path: Path, error: OSError) -> BundleError:
    return BundleError(
        f"{path} cannot be read: {one_line_reason(error)}",
        remedy_for(error, "copy the bundle again"),
    )
