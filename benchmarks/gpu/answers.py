"""Are the answers right of the very engine, at the very batch, that is timed?

On the bundle's golden images, against PyTorch's logits; and on labelled images, which the owner
of the benchmark decodes once into a folder of arrays that its children read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.golden import Float32Array
from resdeploy.bundle.manifest import Encoding, Precision
from resdeploy.calibration.image_set import CalibrationImages, draw
from resdeploy.documents import jsonable
from resdeploy.errors import CalibrationError, DataError
from resdeploy.images.folder import match_labels, read_image_folder, split_folder
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.runtime.backends.base import Backend
from resdeploy.runtime.backends.onnxruntime.cpu import OnnxRuntimeCpu
from resdeploy.runtime.verification.golden_check import FLOAT_FLOOR_DB, check_golden, load_batches
from resdeploy.statistics import agreement_percent, compare_accuracy

IMAGES, CLASSES, REFERENCE = "images.npy", "classes.npy", "reference.npy"
DECODED_AT_ONCE = 64
# Three bits of mantissa fewer than float16's, at 6 dB each.
BF16_FLOOR_DB = FLOAT_FLOOR_DB[Precision.FP16] - 18.0


class Exactly:
    """A backend that is always shown `batch` images at once, as when it is timed."""

    def __init__(self, backend: Backend, batch: int) -> None:
        self.name = backend.name
        self._backend = backend
        self._batch = batch

    def run(self, images: UInt8Array) -> Float32Array:
        """See `Backend.run`; what is too few is filled up with the first image."""
        parts = []
        for start in range(0, len(images), self._batch):
            part = images[start : start + self._batch]
            filling = np.repeat(images[:1], self._batch - len(part), axis=0)
            parts.append(self._backend.run(np.concatenate([part, filling]))[: len(part)])
        return np.concatenate(parts)

    def close(self) -> None:
        """See `Backend.close`."""
        self._backend.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledAnswers:
    """Against fp32.onnx in ONNX Runtime on the CPU, in percent and percentage points."""

    images: int
    agreement: float
    top1: float
    fp32_top1: float
    drop: float
    drop_upper95: float


def write_labelled(bundle: Bundle, data: Path, most: int, folder: Path) -> int:
    """Decode up to `most` images of a labelled folder, with the answers of FP32 on the CPU.

    Images that chose the ranges or layers of the INT8 graphs are left out: they would flatter
    those. So are repeated ones.

    Returns:
        How many there are.

    Raises:
        DataError: the folder cannot be used with this model, or not one image is left.
    """
    labelled = match_labels(read_image_folder(split_folder(data, "val")), bundle.labels())
    calibration: Mapping[str, Any] = bundle.manifest.calibration or {}
    used = {*calibration.get("image_sha256", ()), *calibration.get("selection_sha256", ())}
    ledger = CalibrationImages(bundle.manifest.preprocessing, wanted=most, excluded=used)
    try:
        admitted = list(ledger.admit(draw(labelled.files, seed=0), DECODED_AT_ONCE))
    except CalibrationError as error:
        raise DataError(
            f"no image in {data} can be decoded that did not choose INT8's ranges",
            "name a folder of other images",
        ) from error
    images = np.concatenate(admitted)
    class_of = dict(zip(labelled.files, labelled.labels))
    fp32 = OnnxRuntimeCpu(bundle.read("fp32.onnx"), Encoding.FLOAT)
    np.save(folder / IMAGES, images)
    np.save(folder / CLASSES, np.array([class_of[path] for path in ledger.paths]))
    np.save(folder / REFERENCE, load_batches(fp32, images))
    fp32.close()
    return len(images)


def read_answers(
    backend: Backend, batch: int, bundle: Bundle, precision: str, artifact: str, labelled: str
) -> dict[str, Any]:
    """What `backend` answers, JSON-ready.

    Args:
        backend: What is going to be timed.
        batch: Images in one run.
        bundle: Brings the golden images.
        precision: Of the contender: fp32, fp16, bf16 or int8.
        artifact: The graph that it runs; empty for PyTorch.
        labelled: The folder of `write_labelled`; empty for none.

    Returns:
        `golden` with `passed`, and `labelled`, which is None without a folder.
    """
    exactly = Exactly(backend, batch)
    graph = bundle.artifact(artifact or Precision.FP32.value)
    check = check_golden(exactly, graph, bundle.golden())
    if not artifact:
        check = replace(check, floor_db=float_floor_db(precision))
    return {
        "golden": {**jsonable(check), "passed": check.passed},
        "labelled": jsonable(_on_labelled(exactly, Path(labelled))) if labelled else None,
    }


def float_floor_db(precision: str) -> float:
    """The least median SQNR of a network that is not quantised."""
    return BF16_FLOOR_DB if precision == "bf16" else FLOAT_FLOOR_DB[Precision(precision)]


def _on_labelled(backend: Exactly, folder: Path) -> LabelledAnswers:
    images, classes, reference = (
        np.load(folder / name, mmap_mode="r") for name in (IMAGES, CLASSES, REFERENCE)
    )
    logits = backend.run(images)
    paired = compare_accuracy(reference, logits, classes)
    return LabelledAnswers(
        images=paired.images,
        agreement=agreement_percent(reference, logits),
        top1=100 * paired.candidate_right / paired.images,
        fp32_top1=100 * paired.baseline_right / paired.images,
        drop=paired.drop,
        drop_upper95=paired.drop_bound(),
    )
