"""Tests of the check of outputs before each timing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu import logit_checks
from benchmarks.gpu.logit_checks import (
    CLASSES,
    IMAGES,
    REFERENCE,
    FixedBatch,
    check_outputs,
    float_floor_db,
    write_labelled,
)
from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.golden import Float32Array
from resdeploy.errors import DataError
from resdeploy.images.preprocessing import UInt8Array, image_digest
from resdeploy.runtime.backends.onnxruntime.cpu import OnnxRuntimeCpu
from tests.fakes import ColourBackend, GoldenBackend
from tests.samples import rename_folders, write_images


class Counting:
    """A backend that returns the first pixel of each image and records the batch sizes."""

    name = "counting"

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.closed = False

    def run(self, images: UInt8Array) -> Float32Array:
        self.batches.append(len(images))
        return images[:, 0, 0, :1].astype(np.float32)

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(("count", "batch", "runs"), [(5, 2, 3), (4, 4, 1), (3, 8, 1), (3, 1, 3)])
def test_a_backend_receives_only_full_batches(count: int, batch: int, runs: int) -> None:
    inner = Counting()
    images = np.arange(count, dtype=np.uint8).reshape(count, 1, 1, 1).repeat(3, axis=3)
    fixed = FixedBatch(inner, batch)
    assert fixed.run(images)[:, 0].tolist() == list(range(count))
    assert inner.batches == [batch] * runs
    fixed.close()
    assert inner.closed


def test_detects_wrong_outputs(tiny_bundle: Bundle) -> None:
    golden = tiny_bundle.golden()
    correct = check_outputs(GoldenBackend(golden), 3, tiny_bundle, "fp32", "fp32", "")
    assert correct["golden"]["passed"] is True
    assert correct["golden"]["agreement"] == 100.0
    assert correct["labelled"] is None
    wrong = check_outputs(GoldenBackend(golden, -1.0), 3, tiny_bundle, "fp32", "fp32", "")
    assert wrong["golden"]["passed"] is False
    assert json.loads(json.dumps([correct, wrong])) == [correct, wrong]


def test_the_limit_of_pytorch_depends_on_its_precision(tiny_bundle: Bundle) -> None:
    backend = GoldenBackend(tiny_bundle.golden())
    for precision in ("fp32", "fp16", "bf16"):
        answers = check_outputs(backend, 3, tiny_bundle, precision, "", "")
        assert answers["golden"]["floor_db"] == float_floor_db(precision)
    assert float_floor_db("bf16") < float_floor_db("fp16") < float_floor_db("fp32")


def test_stores_labelled_images_with_the_outputs_of_fp32(
    tiny_bundle: Bundle, image_data: Path, tmp_path: Path
) -> None:
    assert write_labelled(tiny_bundle, image_data, 10, tmp_path) == 10
    images, classes, reference = (np.load(tmp_path / n) for n in (IMAGES, CLASSES, REFERENCE))
    assert images.shape == (10, 32, 32, 3)
    # The brightest channel depends on the class.
    assert images.mean(axis=(1, 2)).argmax(axis=1).tolist() == [2 - label for label in classes]

    artifact = tiny_bundle.artifact("fp32")
    backend = OnnxRuntimeCpu(tiny_bundle.read(artifact.file), artifact.encoding, 1)
    labelled = check_outputs(backend, 4, tiny_bundle, "fp32", "fp32", str(tmp_path))["labelled"]
    assert labelled["images"] == 10
    assert labelled["agreement"] == 100.0
    assert labelled["drop"] == 0.0
    assert labelled["top1"] == labelled["fp32_top1"]
    assert labelled["top1"] == 100 * np.mean(reference.argmax(axis=1) == classes)


def test_skips_images_used_for_calibration(
    tiny_bundle: Bundle, image_data: Path, tmp_path: Path
) -> None:
    calibration = tiny_bundle.manifest.calibration
    assert calibration is not None
    used = {*calibration["image_sha256"], *calibration["selection_sha256"]}
    count = write_labelled(tiny_bundle, image_data / "train", 1000, tmp_path)
    assert 0 < count == 60 - len(used)
    assert not used & {image_digest(image) for image in np.load(tmp_path / IMAGES)}


def test_rejects_labels_in_another_order(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = ColourBackend(tiny_bundle.golden())
    monkeypatch.setattr(logit_checks, "OnnxRuntimeCpu", lambda *arguments: backend)
    write_images(tmp_path / "data", 8, seed=5)
    renamed = rename_folders(tmp_path / "data", tmp_path / "renamed")
    with pytest.raises(DataError, match="not in the order of the network's classes"):
        write_labelled(tiny_bundle, renamed, 1000, tmp_path)
    assert not (tmp_path / IMAGES).exists()


def test_rejects_a_folder_without_usable_images(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no images"):
        write_labelled(tiny_bundle, tmp_path, 10, tmp_path)
    for label in tiny_bundle.labels():
        (tmp_path / label).mkdir()
        (tmp_path / label / "damaged.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="has no readable image that was not used"):
        write_labelled(tiny_bundle, tmp_path, 10, tmp_path)
