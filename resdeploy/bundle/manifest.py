"""TODO."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from resdeploy.bundle.work import Work
from resdeploy.images.preprocessing import Preprocessing

SCHEMA = 1


MANIFEST = "manifest.json"


MAX_FILE_BYTES = 2 << 30  # what an ONNX file can be at most


PARITY_FIGURES = ("max_error", "agreement", "sqnr_db", "sqnr_db_p5")


INPUT_NAME = "images"


OUTPUT_NAME = "logits"


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
