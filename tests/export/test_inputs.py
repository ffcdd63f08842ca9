"""Tests of the source of an export: defaults, labels, calibration and golden images."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from resdeploy.bundle.golden import Golden
from resdeploy.bundle.manifest import GoldenOrigin
from resdeploy.errors import CheckpointError, DataError, ExportError
from resdeploy.export.golden_images import (
    GOLDEN_IMAGES,
    choose_golden,
    make_golden,
    measure_parity,
    synthetic_images,
)
from resdeploy.export.inputs import ImagePools, read_source
from resdeploy.export.source.network import TorchClassifier
from resdeploy.file_locks import release_lock, take_lock
from resdeploy.images.class_folders import hold_out, names_digest, read_image_folder
from resdeploy.images.preprocessing import Preprocessing, image_digest
from resdeploy.train.checkpoint.contents import Weights
from resdeploy.train.model.architecture import Architecture
from resdeploy.train.model.resnet import ResNet
from resdeploy.train.run.folder import save_model
from tests.samples import CLASSES, SIZE, make_classifier
from tests.train.data.test_shards import write_tar


@pytest.fixture
def run(tmp_path: Path, image_data: Path) -> Path:
    """Return the folder of a finished run on `image_data`."""
    folder = tmp_path / "runs" / "one"
    save_model(
        folder, make_classifier().network, labels=CLASSES,
        preprocessing=Preprocessing.standard(SIZE), data=str(image_data), config={}, metrics={},
        provenance={"date": "2026-11-29T10:00:00+00:00"},
    )  # fmt: skip
    return folder


# Defaults


def test_a_run_has_labels_preprocessing_and_images(run: Path, image_data: Path) -> None:
    source = read_source(run)
    assert source.labels == CLASSES
    assert source.preprocessing == Preprocessing.standard(SIZE)
    assert len(source.pools.calibration) == 60
    assert all(path.is_relative_to(image_data / "train") for path in source.pools.calibration)
    assert all(path.is_relative_to(image_data / "val") for path in source.pools.golden)


def test_images_that_a_training_held_out_are_golden_candidates(
    run: Path, image_data: Path, tmp_path: Path
) -> None:
    data = image_data / "train"
    train, val = hold_out(read_image_folder(data), 3)
    model = run / "model.json"
    document = json.loads(model.read_text())
    document |= {"data": str(data), "held_out": {"seed": 3, "sha256": names_digest(val, data)}}
    model.write_text(json.dumps(document))
    source = read_source(run)
    assert (source.pools.calibration, source.pools.golden) == (train.files, val.files)
    assert source.classes_of(source.pools.golden) == list(val.labels)
    for origin, folder in ((run / "model.safetensors", data), (run, data)):
        again = read_source(origin, calibration_data=folder)
        assert (again.pools, again.held_out) == (source.pools, source.held_out)
    document["held_out"]["sha256"] = "of other images"
    model.write_text(json.dumps(document))
    assert len(read_source(run).pools.golden) == 60


@pytest.mark.parametrize("kept", [0, 1])
def test_a_class_with_few_images_holds_none_out(
    run: Path, image_data: Path, tmp_path: Path, kept: int, caplog: pytest.LogCaptureFixture
) -> None:
    data = shutil.copytree(image_data / "train", tmp_path / "few")
    for path in sorted((data / CLASSES[0]).iterdir())[1:]:
        path.unlink()
    val = hold_out(read_image_folder(data), 3)[1]
    document = json.loads((run / "model.json").read_text())
    document |= {"data": str(data), "held_out": {"seed": 3, "sha256": names_digest(val, data)}}
    (run / "model.json").write_text(json.dumps(document))
    if not kept:
        next((data / CLASSES[0]).iterdir()).unlink()
    source = read_source(run)
    if kept:
        assert source.pools.golden == val.files
        assert source.classes_of(val.files) == list(val.labels)
    else:
        assert source.pools.calibration == source.pools.golden
    assert ("holds no images" in caplog.text) == (not kept)


def test_for_another_size_the_preprocessing_is_the_standard_one(run: Path) -> None:
    assert read_source(run, image_size=64).preprocessing == Preprocessing.standard(64)
    assert read_source(run, image_size=SIZE).preprocessing == Preprocessing.standard(SIZE)


def test_a_run_whose_data_was_moved_has_no_images(run: Path) -> None:
    model = run / "model.json"
    model.write_text(model.read_text().replace("images", "elsewhere"))
    assert read_source(run).pools == ImagePools()


def test_the_data_of_a_run_is_named_as_long_as_it_is_there(
    run: Path, image_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_source(run).validation_data == image_data
    monkeypatch.chdir(image_data.parent)
    assert read_source(run).validation_data == Path(image_data.name)
    model = run / "model.json"
    model.write_text(model.read_text().replace("images", "elsewhere"))
    assert read_source(run).validation_data is None


def test_a_checkpoint_without_metadata_has_default_values(tiny_checkpoint: Path) -> None:
    source = read_source(tiny_checkpoint)
    assert source.labels == ("class 0", "class 1", "class 2")
    assert source.preprocessing.image_size == 224
    assert source.pools == ImagePools()


def test_calibration_data_may_be_a_flat_folder(tiny_checkpoint: Path, image_data: Path) -> None:
    pools = read_source(tiny_checkpoint, calibration_data=image_data / "train" / "red").pools
    assert pools.calibration == pools.golden
    assert len(pools.calibration) == 20


@pytest.mark.parametrize(
    ("pixels", "image_size", "warns"), [(32, None, True), (32, 32, False), (200, None, False)]
)
def test_a_too_large_default_size_logs_a_warning(
    pixels: int,
    image_size: int | None,
    warns: bool,
    tiny_checkpoint: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    Image.new("RGB", (pixels, pixels)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    with caplog.at_level(logging.WARNING, "resdeploy"):
        read_source(tiny_checkpoint, image_size=image_size, calibration_data=tmp_path)
    warning = f"to which these images of {pixels} are enlarged; if the training had another size"
    assert (warning in caplog.text) == warns


@pytest.fixture
def one_logit(tmp_path: Path) -> Path:
    network = ResNet(Architecture(classes=1, blocks=(1, 1), width=8))
    torch.save(network.state_dict(), tmp_path / "one.pth")
    return tmp_path / "one.pth"


def test_one_logit_needs_two_labels(one_logit: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="one logit needs two labels") as caught:
        read_source(one_logit)
    assert "--labels" in str(caught.value.hint)
    (tmp_path / "labels.txt").write_text("no\nyes\n")
    source = read_source(one_logit, labels=tmp_path / "labels.txt")
    assert (source.labels, source.checkpoint.architecture.classes) == (("no", "yes"), 2)
    assert source.checkpoint.network()(torch.rand(1, 3, 32, 32))[0, 0] == 0


def test_labels_that_differ_from_those_in_the_file_log_a_warning(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "labels.txt").write_text("Blue\nred\ngreen\n")
    assert read_source(run, labels=tmp_path / "labels.txt").labels == ("Blue", "red", "green")
    assert "class 1 is 'green' in one and 'red' in the other" in caplog.text
    assert "are equal" not in caplog.text
    (tmp_path / "labels.txt").write_text("blue\nred\nRed\n")
    read_source(run, labels=tmp_path / "labels.txt")
    assert "labels.txt are equal, such as 'red'" in caplog.text


def test_notes_of_the_checkpoint_are_warnings(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = ResNet(Architecture(classes=3, blocks=(1, 1), width=8)).state_dict()
    torch.save({"model": state, "ema": dict(state)}, tmp_path / "a.pth")
    assert read_source(tmp_path / "a.pth").checkpoint.weights == "ema"
    assert "the average is taken; --weights raw takes the others" in caplog.text
    assert read_source(tmp_path / "a.pth", weights=Weights.RAW).checkpoint.weights == "raw"


def test_the_latest_run_has_the_name_of_its_folder(run: Path) -> None:
    Path("runs/latest").symlink_to("one")
    assert read_source(Path("runs/latest")).checkpoint.path == run


@pytest.mark.parametrize("name", ["v1.2", "imagenet.v2-2026"])
def test_a_dot_in_the_name_of_a_run_is_kept(run: Path, name: str, tmp_path: Path) -> None:
    renamed = run.rename(tmp_path / name)
    assert read_source(renamed).name == name
    os.chdir(renamed)
    assert read_source(Path()).name == name


def test_the_name_of_a_file_has_no_suffix(tiny_checkpoint: Path) -> None:
    assert read_source(tiny_checkpoint).name == "tiny"


def test_a_missing_run_has_a_hint() -> None:
    with pytest.raises(CheckpointError, match="no finished run here") as caught:
        read_source(Path("runs/latest"))
    assert "resdeploy train" in str(caught.value.hint)


def test_an_unfinished_run_is_named(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    half = Path("runs/half")
    half.mkdir()
    state = half / "state.safetensors"
    state.touch()
    with pytest.raises(CheckpointError, match="; runs/half is unfinished") as caught:
        read_source(Path("runs/latest"))
    assert "resdeploy train --resume runs/half" in str(caught.value.hint)
    lock = take_lock(half)
    with pytest.raises(CheckpointError, match="; runs/half is being trained") as caught:
        read_source(Path("runs/latest"))
    assert str(caught.value.hint).startswith("wait until it ends; or stop it with Ctrl-C")
    release_lock(lock)
    Path("runs/latest").symlink_to("one")
    os.utime(state, (0, 0))  # older than the finished one
    assert read_source(Path("runs/latest")).described == "runs/one (data, trained 2026-11-29)"
    assert "runs/half" not in caplog.text
    os.utime(state, (2**33, 2**33))
    read_source(Path("runs/latest"))
    assert "runs/half is newer, but its training has not finished" in caplog.text
    assert "resdeploy train --resume runs/half" in caplog.text


@pytest.mark.parametrize("image_size", [None, 2 * SIZE])
def test_a_run_owns_its_images_with_its_own_settings(run: Path, image_size: int | None) -> None:
    assert read_source(run, image_size=image_size).is_own is (image_size is None)


def test_missing_calibration_data_is_a_data_error(tiny_checkpoint: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        read_source(tiny_checkpoint, calibration_data=Path("nowhere"))


# Classes of the calibration images


@pytest.mark.parametrize("numbered", [False, True], ids=["similar names", "numbers"])
def test_the_class_is_the_folder_at_the_top_whatever_its_spelling(
    run: Path, image_data: Path, tmp_path: Path, numbered: bool
) -> None:
    for split in ("train", "val"):
        for k, name in enumerate(CLASSES):
            folder = tmp_path / "data" / split / (f"{k:02d}" if numbered else name.title())
            shutil.copytree(image_data / split / name, folder / "deep" / "er")
    source = read_source(run, calibration_data=tmp_path / "data")
    for paths in source.pools.calibration, source.pools.golden:
        assert source.classes_of(paths) == sorted([0, 1, 2] * (len(paths) // 3))


def test_classes_are_those_of_val_if_there_is_no_train(
    run: Path, image_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(image_data / "val", tmp_path / "data" / "Val")
    source = read_source(run, calibration_data=tmp_path / "data")
    assert source.classes_of(source.pools.calibration) == sorted([0, 1, 2] * 8)
    assert not caplog.records


def test_unknown_classes_are_reported(
    run: Path, image_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(image_data / "train" / "blue", tmp_path / "data" / "2025")
    source = read_source(run, calibration_data=tmp_path / "data")
    assert source.classes_of(source.pools.calibration) is None
    assert "are not known: the folder '2025' is not one of the 3 classes" in caplog.text


def test_images_without_folders_need_no_classes(
    run: Path, image_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = read_source(run, calibration_data=image_data / "train" / "blue")
    assert source.classes_of(source.pools.calibration) is None
    assert not caplog.records


# Labels


def test_labels_of_a_checkpoint_fit_into_a_line(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    labels = json.dumps(["fire\n truck", "\x1b]0;owned\x07", "\udcd5"])
    save_file(make_classifier().network.state_dict(), path, {"labels": labels})
    assert read_source(path).labels == ("fire truck", r"\x1b]0;owned\x07", r"\xd5")


@pytest.mark.parametrize("text", ["\ufeffa\nb\nc", "a\nb\nc", "a\r\nb\r\nc\r\n", "\n a \n\nb\nc\n"])
def test_labels_are_the_lines_of_a_file(tiny_checkpoint: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "labels.txt").write_text(text)
    assert read_source(tiny_checkpoint, labels=tmp_path / "labels.txt").labels == ("a", "b", "c")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a\nb", "2 labels, but the network has 3 classes"),
        (b"\xff\xfe\x00", "it is not UTF-8 text"),
    ],
)
def test_wrong_labels_are_rejected(
    tiny_checkpoint: Path, tmp_path: Path, data: bytes, message: str
) -> None:
    (tmp_path / "labels.txt").write_bytes(data)
    with pytest.raises(ExportError, match=message):
        read_source(tiny_checkpoint, labels=tmp_path / "labels.txt")
    with pytest.raises(ExportError, match="cannot be read"):
        read_source(tiny_checkpoint, labels=tmp_path / "nothing.txt")


def test_a_run_on_tar_files_is_exported_without_images(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for split in ("train", "val"):
        write_tar(tmp_path / "tars" / split / "a.tar", {"red/1.png": b""})
    document = json.loads((run / "model.json").read_text())
    document["data"] = str(tmp_path / "tars")
    (run / "model.json").write_text(json.dumps(document))
    assert read_source(run).pools == ImagePools()
    assert "--calibration-data" in caplog.text


# Golden images


def test_golden_images_are_different_and_depend_on_the_seed(image_data: Path) -> None:
    pools = ImagePools(golden=tuple(sorted((image_data / "val").rglob("*.png"))))
    images, origin = choose_golden(pools, Preprocessing.standard(SIZE), seed=0)
    assert (images.shape, origin) == ((24, SIZE, SIZE, 3), GoldenOrigin.DATA)
    assert len({image_digest(image) for image in images}) == 24
    again, other = (choose_golden(pools, Preprocessing.standard(SIZE), s)[0] for s in (0, 1))
    np.testing.assert_array_equal(images, again)
    assert (images != other).any()


def test_three_quarters_of_shared_images_remain_for_calibration(image_data: Path) -> None:
    paths = tuple(sorted((image_data / "train").rglob("*.png")))
    images, _ = choose_golden(
        ImagePools(calibration=paths, golden=paths), Preprocessing.standard(SIZE), seed=0
    )
    assert len(images) == 15


def test_duplicates_and_damaged_files_are_not_golden(
    tmp_path: Path, image_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = image_data / "val" / "red" / "000.png"
    for name in ("a.png", "b.png"):
        shutil.copy(image, tmp_path / name)
    (tmp_path / "c.png").write_bytes(b"")
    pools = ImagePools(golden=tuple(sorted(tmp_path.glob("*.png"))))
    with caplog.at_level(logging.WARNING, "resdeploy"):
        images, _ = choose_golden(pools, Preprocessing.standard(SIZE), seed=0)
    assert len(images) == 1
    assert "c.png" in caplog.text


def test_without_readable_images_golden_images_are_synthetic(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"")
    for pools in (ImagePools(), ImagePools(golden=(tmp_path / "bad.png",))):
        images, origin = choose_golden(pools, Preprocessing.standard(SIZE), seed=0)
        assert images.shape == (GOLDEN_IMAGES, SIZE, SIZE, 3)
        assert origin is GoldenOrigin.SYNTHETIC  # also if there were files, but none to read


def test_synthetic_images_are_not_constant_and_differ() -> None:
    images = synthetic_images(64, 8, seed=0)
    assert (images.dtype, images.shape) == (np.dtype(np.uint8), (8, 64, 64, 3))
    assert images.std(axis=(1, 2, 3)).min() > 10
    assert len({image.tobytes() for image in images}) == 8
    assert Image.fromarray(images[0]).size == (64, 64)


def test_golden_logits_match_pytorch() -> None:
    classifier = make_classifier()
    images = synthetic_images(SIZE, 3, seed=0)
    golden = make_golden(TorchClassifier(classifier, Preprocessing.standard(SIZE)), images)
    with torch.inference_mode():
        expected = classifier(torch.from_numpy(images[1:2])).numpy()
    np.testing.assert_array_equal(golden.logits[1:2], expected)


def test_parity_matches_a_computation_by_hand() -> None:
    logits = np.array([[3.0, 4.0], [4.0, 3.0]], np.float32)
    golden = Golden(images=np.zeros((2, 1, 1, 3), np.uint8), logits=logits)
    parity = measure_parity(golden, logits + np.array([[0.0, 0.5], [0.0, 1.5]], np.float32))
    assert (parity.images, parity.max_error, parity.agreement) == (2, 1.5, 50.0)
    # The SQNRs are 25 / 0.25, or 20 dB, and 25 / 2.25, or 10.46 dB; the median is their mean.
    assert parity.sqnr_db == pytest.approx((20 + 10.458) / 2, abs=1e-3)
    assert parity.sqnr_db_p5 == pytest.approx(10.458 + 0.05 * (20 - 10.458), abs=1e-3)
