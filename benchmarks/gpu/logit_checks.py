"""The check of the outputs of each contender at the batch size that is timed.

Outputs are compared with PyTorch's logits on the golden images, and with the labels and the FP32
outputs on labelled images, which are decoded once into a folder of arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.golden import Float32Array
from resdeploy.bundle.manifest import Encoding, Precision
from resdeploy.calibration.image_set import CalibrationImages, draw
from resdeploy.errors import CalibrationError, DataError
from resdeploy.images.class_folders import match_labels, read_image_folder, split_folder
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.json_documents import jsonable
from resdeploy.label_check import refuse_wrong_labels
from resdeploy.runtime.backends.base import Backend
from resdeploy.runtime.backends.onnxruntime.cpu import OnnxRuntimeCpu
from resdeploy.runtime.verification.golden_check import FLOAT_FLOOR_DB, check_golden, run_batches
from resdeploy.statistics import agreement_percent, compare_accuracy

IMAGES, CLASSES, REFERENCE = "images.npy", "classes.npy", "reference.npy"
BF16_FLOOR_DB = FLOAT_FLOOR_DB[Precision.FP16] - 18.0
"""The mantissa has three bits fewer than that of float16; each bit is 6 dB."""


class FixedBatch:
    """A backend that always receives `batch` images at once, as when it is timed."""

    def __init__(self, backend: Backend, batch: int) -> None:
        self.name = backend.name
        self._backend = backend
        self._batch = batch

    def run(self, images: UInt8Array) -> Float32Array:
        """Run the images in batches; fill the last batch up with images from the start."""
        parts = [
            self._backend.run(images[np.arange(start, start + self._batch) % len(images)])
            for start in range(0, len(images), self._batch)
        ]
        return np.concatenate(parts)[: len(images)]

    def close(self) -> None:
        self._backend.close()


def write_labelled(bundle: Bundle, data: Path, limit: int, folder: Path) -> int:
    """Store up to `limit` decoded images with classes and FP32 outputs; return their number.

    Images used for calibration or layer selection are skipped, because they would favour the INT8
    graphs. Duplicates are skipped, too.
    """
    labelled = match_labels(read_image_folder(split_folder(data, "val")), bundle.labels())
    calibration: Mapping[str, Any] = bundle.manifest.calibration or {}
    used = {*calibration.get("image_sha256", ()), *calibration.get("selection_sha256", ())}
    chosen = CalibrationImages(bundle.manifest.preprocessing, wanted=limit, excluded=used)
    try:
        batches = list(chosen.add(draw(labelled.files, seed=0), 64))
    except CalibrationError as error:
        raise DataError(
            f"{data} has no readable image that was not used for calibration",
            "use a folder of other images",
        ) from error
    images = np.concatenate(batches)
    class_of = dict(zip(labelled.files, labelled.labels))
    fp32 = OnnxRuntimeCpu(bundle.read("fp32.onnx"), Encoding.FLOAT)
    reference = run_batches(fp32, images)
    fp32.close()
    classes = np.array([class_of[path] for path in chosen.paths])
    refuse_wrong_labels(classes, reference.argmax(axis=1), bundle.labels(), data)
    np.save(folder / IMAGES, images)
    np.save(folder / CLASSES, classes)
    np.save(folder / REFERENCE, reference)
    return len(images)


def check_outputs(
    backend: Backend, batch: int, bundle: Bundle, precision: str, artifact: str, labelled: str
) -> dict[str, Any]:
    """Check the outputs of a backend on the golden images of a bundle and on labelled images.

    `artifact` is empty for PyTorch. `labelled` is the folder of `write_labelled`; empty for none.
    """
    fixed = FixedBatch(backend, batch)
    graph = bundle.artifact(artifact or Precision.FP32.value)
    check = check_golden(fixed, graph, bundle.golden())
    if not artifact:
        check = replace(check, floor_db=float_floor_db(precision))
    return {
        "golden": {**jsonable(check), "passed": check.passed},
        "labelled": _check_labelled(fixed, Path(labelled)) if labelled else None,
    }


def float_floor_db(precision: str) -> float:
    """Return the least median SQNR that passes for a network that is not quantised."""
    return BF16_FLOOR_DB if precision == "bf16" else FLOAT_FLOOR_DB[Precision(precision)]


def _check_labelled(backend: FixedBatch, folder: Path) -> dict[str, float]:
    """Return the accuracy in percent, and its drop against FP32's outputs in percentage points."""
    images, classes, reference = (
        np.load(folder / name, mmap_mode="r") for name in (IMAGES, CLASSES, REFERENCE)
    )
    logits = backend.run(images)
    paired = compare_accuracy(reference, logits, classes)
    return {
        "images": paired.images,
        "agreement": agreement_percent(reference, logits),
        "top1": 100 * paired.candidate_correct / paired.images,
        "fp32_top1": 100 * paired.baseline_correct / paired.images,
        "drop": paired.drop,
        "drop_upper95": paired.drop_upper_bound(),
    }
