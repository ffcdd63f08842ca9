"""The manifest of a bundle, `manifest.json`, and the names that all graphs share."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from os.path import splitext
from pathlib import Path
from typing import Any

from resdeploy.bundle.batch_norm_shift import BatchNormShift
from resdeploy.bundle.operation_counts import Work
from resdeploy.images.preprocessing import Preprocessing
from resdeploy.json_documents import jsonable, to_text
from resdeploy.tables import plural

SCHEMA = 1
MANIFEST = "manifest.json"
INPUT_NAME = "images"
OUTPUT_NAME = "logits"
MAX_LISTED_BYTES = 2 << 30  # protobuf's limit, which an ONNX file cannot exceed

MAX_FILES = 64  # an export writes at most 14
MAX_BUNDLE_BYTES = 6 << 30  # `check_files` reads all of them, at about 1 GB/s


class Precision(str, Enum):
    """The arithmetic of the convolutions."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


class Encoding(str, Enum):
    """The placement of quantised tensors in a graph, which depends on the target engine."""

    FLOAT = "float"  # nothing is quantised
    TENSORRT = "tensorrt"  # symmetric Q/DQ on the inputs of convolutions; FP16 elsewhere
    CPU = "cpu"  # asymmetric uint8 on every edge; int32 biases
    DLA = "dla"  # symmetric int8 on every edge; FP16 elsewhere


def graph_name(precision: str, encoding: Encoding) -> str:
    """Return the artifact's name: `fp32`, `fp16`, `int8`, `int8-cpu` or `int8-dla`."""
    value = str.__str__(precision)  # str() of a member is `Precision.INT8`
    return f"{value}-{encoding.value}" if encoding in (Encoding.CPU, Encoding.DLA) else value


def with_use(graph: str, encoding: Encoding) -> str:
    """Return the name of a graph, followed by its target unless every machine can use it."""
    targets = {Encoding.TENSORRT: "TensorRT", Encoding.DLA: "a DLA"}
    return f"{graph} (for {targets[encoding]})" if encoding in targets else graph


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """A comparison of an artifact's logits with the golden logits, which are FP32."""

    images: int
    max_error: float
    """Largest absolute difference of a logit."""
    agreement: float
    """Images with the same predicted class, in percent."""
    sqnr_db: float
    """Median SQNR of the logits over the images, in dB."""
    sqnr_db_p5: float
    """5th percentile of the SQNR over the images, in dB."""


class QualityOrigin(str, Enum):
    """The way in which images served to judge a graph that did not calibrate it."""

    HELD_OUT = "held-out"  # images that the export used for nothing else
    CROSS_VALIDATION = "cross-validation"  # each fold judged ranges of the other folds' images


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """A comparison of an INT8 graph's logits with FP32's on images that did not calibrate it."""

    images: int
    agreement: float
    """Images with the same predicted class, in percent."""
    sqnr_db: float
    """Median SQNR of the logits over the images, in dB."""
    origin: QualityOrigin


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """Size and digest of a file in a bundle."""

    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        _check_size(self.bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """One ONNX file of a bundle."""

    precision: Precision
    encoding: Encoding
    file: str
    bytes: int
    sha256: str
    opset: int
    convs: int
    int8_convs: int
    parity: Parity
    quality: Quality | None = None
    """None for graphs without INT8, and if there were no images to judge it on."""

    def __post_init__(self) -> None:
        _check_size(self.bytes)
        _check_file_name(self.file)

    @property
    def name(self) -> str:
        """Name of the file without its suffix: `fp32`, `fp16`, `int8`, `int8-cpu`, `int8-dla`."""
        return splitext(self.file)[0]


GRAPH_KIND = "graph"


class GoldenOrigin(str, Enum):
    """The source of the golden images."""

    DATA = "data"  # pictures of a user's folder
    SYNTHETIC = "synthetic"  # colour gradients


class GoldenReference(str, Enum):
    """The network that computed the golden logits."""

    PYTORCH = "pytorch"
    FP32 = "fp32.onnx"  # the bundle's graph in ONNX Runtime, which PyTorch had verified
    SOURCE_GRAPH = "source-graph"  # the exported ONNX file in ONNX Runtime, without optimisations


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenRecord:
    """Number and origin of the golden images, and the network that their logits are from."""

    images: int
    origin: GoldenOrigin
    reference: GoldenReference

    @property
    def kind(self) -> str:
        """Adjective for the images."""
        return "synthetic" if self.origin is GoldenOrigin.SYNTHETIC else "golden"

    @property
    def described(self) -> str:
        """Number of images, with their meaning if they are synthetic."""
        note = ": arithmetic only, not accuracy" if self.kind == "synthetic" else ""
        return f"{plural(self.images, f'{self.kind} image')}{note}"

    @property
    def reference_name(self) -> str:
        """Name of the network that the graphs are compared with, for a sentence."""
        names = {
            GoldenReference.PYTORCH: "PyTorch",
            GoldenReference.SOURCE_GRAPH: "the exported ONNX file in ONNX Runtime",
        }
        return names.get(self.reference, self.reference.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportWarning:
    """A doubt about a bundle, which every command that uses the bundle repeats."""

    message: str
    """One sentence with the cause, without a full stop."""
    hint: str
    """The remedy."""
    artifacts: tuple[str, ...] = ()
    """Names of the graphs that it concerns; empty if it concerns all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The content of `manifest.json`."""

    model: dict[str, Any]
    """Architecture, and origin of the weights."""
    preprocessing: Preprocessing
    preprocessing_origins: dict[str, str]
    """Place that states each setting: an option, a file, the run, or `assumed`."""
    artifacts: tuple[Artifact, ...]
    files: dict[str, FileRecord]
    """Files that are no artifacts, by name."""
    calibration: dict[str, Any] | None
    """A `CalibrationRecord` with the digests of the images; None without INT8."""
    golden: GoldenRecord
    provenance: dict[str, Any]
    warnings: tuple[ExportWarning, ...] = ()
    batch_norm_shift: BatchNormShift | None = None
    """None if the export had no images, or the network no batch norm with statistics."""
    batch_norms_lack_statistics: bool = False
    """True if the export had images, but no batch norm has statistics to compare them with; False
    for a run with its own images, whose pre-processing is known."""
    work: Work
    """Work of the FP32 graph."""

    def __post_init__(self) -> None:
        if not self.artifacts:
            raise ValueError("artifacts is empty; at least one graph is needed")
        names = [*(artifact.file for artifact in self.artifacts), *self.files]
        if len(names) > MAX_FILES:
            raise ValueError(f"it lists {len(names):,} files; at most {MAX_FILES} are allowed")
        for name in names:
            _check_file_name(name)
            if names.count(name) > 1 or name == MANIFEST:
                raise ValueError(f"it lists {name} twice")
        total = sum(entry.bytes for entry in self.artifacts)
        total += sum(entry.bytes for entry in self.files.values())
        if total > MAX_BUNDLE_BYTES:
            raise ValueError(f"its files have {total:,} bytes; at most {MAX_BUNDLE_BYTES:,}")
        classes = self.model.get("classes")
        if not isinstance(classes, int) or classes < 1:
            raise ValueError(f"model.classes is {classes!r:.40}; at least 1 is needed")

    def to_json(self) -> dict[str, Any]:
        """Return the document that `manifest.json` holds."""
        return {
            "schema": SCHEMA,
            "input": {
                "name": INPUT_NAME, "dtype": "uint8",
                "shape": ["batch", *self.preprocessing.size, 3],
                "layout": "NHWC", "colour": "RGB",
            },
            "output": {
                "name": OUTPUT_NAME, "dtype": "float32", "shape": ["batch", self.classes],
            },
            **jsonable(self),
            "work": self.work.to_json(),
        }  # fmt: skip

    @property
    def is_graph(self) -> bool:
        """True if the bundle was exported from a graph, and not from weights of PyTorch."""
        return bool(self.model.get("kind") == GRAPH_KIND)

    @property
    def classes(self) -> int:
        """Number of classes, which is the number of logits for an image."""
        return int(self.model["classes"])


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` into the folder of a new bundle."""
    text = to_text(manifest.to_json(), allow_nan=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def _check_size(size: int) -> None:
    if not 0 <= size <= MAX_LISTED_BYTES:
        raise ValueError(f"bytes is {size}; 0 to {MAX_LISTED_BYTES} are allowed")


def _check_file_name(name: str) -> None:
    # A path in a manifest must not lead outside of the folder.
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
        raise ValueError(f"{name!r:.80} is not a plain file name")
