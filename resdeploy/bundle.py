"""The bundle: one folder with the graphs, their labels, their proof and where they came from.

Nothing in a bundle is trusted before its size and sha256 match the manifest; the manifest itself
is limited in size and checked field by field. Shape letters: N images, H rows, W columns,
K classes.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from resdeploy.errors import BundleError
from resdeploy.preprocessing import Preprocessing, UInt8Array
from resdeploy.roofline import Work
from resdeploy.storage import sha256, sha256_file

SCHEMA = 1
MANIFEST = "manifest.json"
LABELS = "labels.txt"
GOLDEN = "golden.npz"
CALIBRATION = "calibration.json"
CALIBRATION_CACHE = "calibration.cache"
ANALYSIS = "analysis.json"
REPORT = "report.html"
MAX_MANIFEST_BYTES = 16 << 20
MAX_GOLDEN_BYTES = 1 << 30
MAX_FILE_BYTES = 2 << 30  # what an ONNX file can be at most
PARITY_FIGURES = ("max_error", "agreement", "sqnr_db", "sqnr_db_p5")
EXACT = "exact-"  # before an artifact's name, in golden.npz
INPUT_NAME = "images"
OUTPUT_NAME = "logits"

Float32Array = npt.NDArray[np.float32]


class Precision(str, Enum):
    """The arithmetic of the convolutions."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


class Encoding(str, Enum):
    """For which kind of engine the quantised edges were placed."""

    FLOAT = "float"  # nothing is quantised
    TENSORRT = "tensorrt"  # symmetric Q/DQ on what convolutions read; FP16 elsewhere
    CPU = "cpu"  # asymmetric uint8 on every edge; int32 biases
    DLA = "dla"  # symmetric int8 on every edge; FP16 elsewhere


def graph_name(precision: str, encoding: Encoding) -> str:
    """The artifact's name: `fp32`, `fp16`, `int8`, `int8-cpu`, `int8-dla`."""
    kind = str.__str__(precision)  # a Precision would name itself
    return f"{kind}-{encoding.value}" if encoding in (Encoding.CPU, Encoding.DLA) else kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """How an artifact's logits compare with PyTorch's FP32 logits on the golden images."""

    images: int
    max_error: float
    """Largest absolute difference of a logit."""
    agreement: float
    """Images with the same most likely class, in percent."""
    sqnr_db: float
    """Median over images of the signal to quantisation noise ratio of the logits, in dB."""
    sqnr_db_p5: float
    """The same for the worst twentieth of the images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """One ONNX file of the bundle."""

    precision: Precision
    encoding: Encoding
    file: str
    bytes: int
    sha256: str
    opset: int
    convs: int
    int8_convs: int
    parity: Parity

    @property
    def name(self) -> str:
        """`fp32`, `fp16`, `int8`, `int8-cpu`, `int8-dla`: the file's name without its ending."""
        return Path(self.file).stem


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """Another file of the bundle."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What `manifest.json` says."""

    model: dict[str, Any]
    """Architecture, and the file that the weights came from."""
    preprocessing: Preprocessing
    artifacts: tuple[Artifact, ...]
    files: dict[str, FileRecord]
    calibration: dict[str, Any] | None
    """Method, number of images, scales file; None without INT8."""
    golden: dict[str, Any]
    """Where the golden images came from."""
    provenance: dict[str, Any]
    work: Work | None = None
    """Of the FP32 graph, by layer; None where an earlier version made the bundle."""

    def to_json(self) -> dict[str, Any]:
        """The document that `manifest.json` holds."""
        size = self.preprocessing.image_size
        return {
            "schema": SCHEMA,
            "model": self.model,
            "input": {
                "name": INPUT_NAME, "dtype": "uint8", "shape": ["batch", size, size, 3],
                "layout": "NHWC", "colour": "RGB",
            },
            "output": {
                "name": OUTPUT_NAME, "dtype": "float32", "shape": ["batch", self.classes],
            },
            "preprocessing": self.preprocessing.to_json(),
            "artifacts": [asdict(artifact) for artifact in self.artifacts],
            "files": {name: asdict(record) for name, record in self.files.items()},
            "calibration": self.calibration,
            "golden": self.golden,
            "provenance": self.provenance,
            **({"work": self.work.to_json()} if self.work else {}),
        }  # fmt: skip

    @property
    def classes(self) -> int:
        """Length of a row of logits."""
        return int(self.model["classes"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """Images with the logits that PyTorch gave for them in FP32."""

    images: UInt8Array
    """Shape (N, H, W, 3)."""
    logits: Float32Array
    """Shape (N, K)."""
    exact: Mapping[str, Float32Array] = field(default_factory=dict)
    """By artifact: the logits (N, K) that every CPU must give, to the last bit."""

    def to_bytes(self) -> bytes:
        """The content of `golden.npz`."""
        stream = io.BytesIO()
        exact: dict[str, Any] = {f"{EXACT}{name}": given for name, given in self.exact.items()}
        np.savez_compressed(stream, images=self.images, logits=self.logits, **exact)
        return stream.getvalue()


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
                exact = {
                    name.removeprefix(EXACT): arrays[name]
                    for name in arrays.files
                    if name.startswith(EXACT)
                }
            count = len(images)
            if images.dtype != np.uint8 or images.shape != (count, size, size, 3) or not count:
                raise ValueError(f"its images are {images.dtype} {images.shape}")
            for given in (logits, *exact.values()):
                if given.dtype != np.float32 or given.shape != (count, classes):
                    raise ValueError(f"its logits are {given.dtype} {given.shape}")
        except Exception as error:  # damaged archives and arrays raise nearly anything
            raise BundleError(
                f"{self.path / GOLDEN} cannot be used: {error}", "export the bundle again"
            ) from error
        return Golden(images=images, logits=logits, exact=exact)

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


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Add `manifest.json` to a bundle's folder that is being written."""
    text = json.dumps(manifest.to_json(), indent=2, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def _parse(document: dict[str, Any]) -> Manifest:
    artifacts = tuple(_parse_artifact(entry) for entry in document["artifacts"])
    if not artifacts:
        raise ValueError("it lists no artifacts")
    manifest = Manifest(
        model=dict(document["model"]),
        preprocessing=Preprocessing.from_json(document["preprocessing"]),
        artifacts=artifacts,
        files={_file_name(name): _parse_record(entry) for name, entry in document["files"].items()},
        calibration=document["calibration"],
        golden=dict(document["golden"]),
        provenance=dict(document["provenance"]),
        work=Work.from_json(document["work"]) if "work" in document else None,
    )
    if manifest.classes < 1:
        raise ValueError("it has no classes")
    return manifest


def _parse_artifact(entry: dict[str, Any]) -> Artifact:
    return Artifact(
        precision=Precision(entry["precision"]),
        encoding=Encoding(entry["encoding"]),
        file=_file_name(entry["file"]),
        **asdict(_parse_record(entry)),
        opset=int(entry["opset"]),
        convs=int(entry["convs"]),
        int8_convs=int(entry["int8_convs"]),
        parity=Parity(
            images=int(entry["parity"]["images"]),
            **{name: float(entry["parity"][name]) for name in PARITY_FIGURES},
        ),
    )


def _parse_record(entry: dict[str, Any]) -> FileRecord:
    size = int(entry["bytes"])
    if not 0 <= size <= MAX_FILE_BYTES:
        raise ValueError(f"a file of {size} bytes")
    return FileRecord(bytes=size, sha256=str(entry["sha256"]))


def _file_name(name: str) -> str:
    # A plain name: a manifest must not be able to point outside its folder.
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
        raise ValueError(f"{name!r} is not a plain file name")
    return name


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
