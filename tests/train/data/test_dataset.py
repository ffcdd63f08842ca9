"""Tests of the batches of training images and of the built-in digits."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resdeploy.errors import DataError
from resdeploy.filesystem import cache_folder
from resdeploy.images.class_folders import LabelledImages
from resdeploy.images.preprocessing import Preprocessing
from resdeploy.train.data.augment import Augmentation
from resdeploy.train.data.dataset import Batch, BatchPlan, EpochImages, load_batches, read_splits
from resdeploy.train.data.shards import ImageFile
from resdeploy.train.data.synthetic_digits import digits_folder
from tests.samples import CLASSES, SIZE

PREPROCESSING = Preprocessing.standard(SIZE)
STRONG = Augmentation(flip=True, min_area=0.3)


def epoch_batches(
    images: LabelledImages[ImageFile], *, epoch: int = 0, workers: int = 0, seed: int = 0
) -> list[Batch]:
    dataset = EpochImages(images, PREPROCESSING, STRONG, seed=seed, epoch=epoch)
    return list(load_batches([dataset], BatchPlan(batch_size=8, shuffle=True, workers=workers)))


def pixels(batches: list[Batch]) -> torch.Tensor:
    return torch.cat([batch.images for batch in batches])


def paths(images: LabelledImages[ImageFile]) -> list[Path]:
    return [source for source in images.files if isinstance(source, Path)]


@pytest.fixture
def train_images(image_data: Path) -> LabelledImages[ImageFile]:
    return read_splits(image_data).train


# Folders


def test_splits_have_the_same_classes(image_data: Path) -> None:
    splits = read_splits(image_data)
    assert splits.train.classes == splits.val.classes == CLASSES
    assert (len(splits.train.files), len(splits.val.files)) == (60, 24)


def picture(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name)


@pytest.mark.parametrize("train", ["", "train/"])
def test_without_val_a_part_of_each_class_is_held_out(
    tmp_path: Path, train: str, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"{train}{label}/{index}.png" for label in "ab" for index in range(5)]
    picture(tmp_path, *names, *(["test/a/1.png"] if train else []))
    caplog.set_level(logging.INFO, "resdeploy")
    splits = read_splits(tmp_path, seed=3)
    assert splits.held_out
    assert splits.val.labels == (0, 1)
    assert {*paths(splits.train), *paths(splits.val)} == {tmp_path / name for name in names}
    assert "a part of each class validates: 2 of 10 images, chosen with seed 3" in caplog.text
    assert ("not using the folders beside" in caplog.text) == bool(train)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["val/a/1.png", "val/b/1.png"], "has no folder 'train'"),
        (["training/1.png", "test/1.png"], "has parts of a data set as classes: test, training"),
        (["1.png", "2.png"], "have no labels"),
        (["a/1.png", "b/2.png"], "has only one image per class, so none can validate"),
    ],
)
def test_other_layouts_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    picture(tmp_path, *names)
    with pytest.raises(DataError, match=message):
        read_splits(tmp_path)


def test_rejects_data_with_one_class(tmp_path: Path) -> None:
    picture(tmp_path, "train/a/1.png", "val/a/1.png")
    with pytest.raises(DataError, match="only one class"):
        read_splits(tmp_path)


def test_rejects_a_class_without_training_images(tmp_path: Path) -> None:
    picture(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png", "val/c/1.png")
    with pytest.raises(DataError, match="val does not fit: the folder 'c' is not one of"):
        read_splits(tmp_path)


def test_val_may_spell_the_classes_of_train_in_another_way(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"  # macOS decomposes names
    picture(tmp_path, f"Train/{composed}/1.png", "Train/b c/1.png", "Train/a/1.png")
    picture(tmp_path, f"Val/{decomposed}/1.png", "Val/B C /1.png")
    splits = read_splits(tmp_path)
    assert splits.val.classes == splits.train.classes == ("a", "b c", composed)
    assert set(zip((path.parent.name for path in paths(splits.val)), splits.val.labels)) == {
        (decomposed, 2), ("B C ", 1)
    }  # fmt: skip


def test_the_order_of_val_is_never_a_guess(tmp_path: Path) -> None:
    picture(tmp_path, "train/a/1.png", "train/b/1.png", "val/c/1.png", "val/d/1.png")
    with pytest.raises(DataError, match="'c' is not one of the 2 classes"):
        read_splits(tmp_path)


def test_accepts_a_class_without_validation_images(tmp_path: Path) -> None:
    picture(tmp_path, "train/a/1.png", "train/b/1.png", "val/b/1.png")
    assert read_splits(tmp_path).val.labels == (1,)


# Randomness


def test_the_same_seed_and_epoch_give_the_same_pixels(
    train_images: LabelledImages[ImageFile],
) -> None:
    torch.testing.assert_close(
        pixels(epoch_batches(train_images)), pixels(epoch_batches(train_images)), rtol=0, atol=0
    )


def test_the_pixels_do_not_depend_on_the_workers(train_images: LabelledImages[ImageFile]) -> None:
    alone, together = epoch_batches(train_images), epoch_batches(train_images, workers=2)
    torch.testing.assert_close(pixels(alone), pixels(together), rtol=0, atol=0)
    assert [b.labels.tolist() for b in alone] == [b.labels.tolist() for b in together]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_epochs_follow_each_other(
    train_images: LabelledImages[ImageFile], workers: int
) -> None:
    epochs = [
        EpochImages(train_images, PREPROCESSING, STRONG, seed=0, epoch=epoch) for epoch in range(3)
    ]
    run = list(
        load_batches(epochs, BatchPlan(batch_size=8, shuffle=True, start=5, workers=workers))
    )
    expected = (
        epoch_batches(train_images)[5:]
        + epoch_batches(train_images, epoch=1)
        + epoch_batches(train_images, epoch=2)
    )
    torch.testing.assert_close(pixels(run), pixels(expected), rtol=0, atol=0)


@pytest.mark.parametrize("other", [{"epoch": 1}, {"seed": 1}])
def test_other_epochs_and_seeds_give_other_pixels(
    train_images: LabelledImages[ImageFile], other: dict[str, int]
) -> None:
    assert not torch.equal(
        pixels(epoch_batches(train_images)), pixels(epoch_batches(train_images, **other))
    )


@pytest.mark.parametrize(
    ("images", "batch", "least", "sizes"),
    [
        (64, 8, 2, [8] * 8),
        (60, 8, 2, [8] * 7 + [4]),
        (160, 64, 2, [64, 64, 32]),
        (65, 64, 2, [33, 32]),  # a batch of one image has no variance
        (9, 4, 2, [4, 3, 2]),
        (5, 4, 4, [5]),  # two processes with two images each
        (6, 4, 4, [6]),
        (3, 64, 2, [3]),
    ],
)
def test_a_training_epoch_uses_every_image_once_in_steps_of_similar_size(
    images: int, batch: int, least: int, sizes: list[int]
) -> None:
    plan = BatchPlan(batch_size=batch, shuffle=True, least=least)
    assert plan.step_sizes(images) == sizes
    files = tuple(Path(f"{index}") for index in range(images))
    epoch = EpochImages(LabelledImages(classes=("a",), files=files, labels=(0,) * images),
                        PREPROCESSING)  # fmt: skip
    steps = plan.batches(epoch)
    assert [len(step) for step in steps] == sizes
    assert sorted(position for step in steps for position in step) == list(range(images))
    parts = [replace(plan, start=1, rank=rank, processes=2).batches(epoch) for rank in (0, 1)]
    assert [len(a) + len(b) for a, b in zip(*parts)] == sizes[1:]


def test_a_validation_epoch_keeps_the_order(train_images: LabelledImages[ImageFile]) -> None:
    plain = EpochImages(train_images, PREPROCESSING)
    everything = list(load_batches([plain], BatchPlan(batch_size=8, shuffle=False)))
    assert [len(batch.labels) for batch in everything] == [8] * 7 + [4]
    assert torch.cat([batch.labels for batch in everything]).tolist() == list(train_images.labels)


def test_fewer_images_than_a_batch_give_one_batch(train_images: LabelledImages[ImageFile]) -> None:
    dataset = EpochImages(train_images, PREPROCESSING)
    assert [
        len(b.labels) for b in load_batches([dataset], BatchPlan(batch_size=100, shuffle=True))
    ] == [60]


def test_validation_images_have_the_pixels_of_inference(
    train_images: LabelledImages[ImageFile],
) -> None:
    (first, *_) = load_batches(
        [EpochImages(train_images, PREPROCESSING)], BatchPlan(batch_size=1, shuffle=False)
    )
    with Image.open(paths(train_images)[0]) as image:
        np.testing.assert_array_equal(first.images[0].numpy(), np.array(image))


def test_a_damaged_file_is_skipped_and_reported(
    tmp_path: Path, train_images: LabelledImages[ImageFile]
) -> None:
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(paths(train_images)[0].read_bytes()[:80])
    images = LabelledImages(
        classes=CLASSES, files=(damaged, *train_images.files[:3]), labels=(2, 0, 0, 0)
    )
    (batch,) = load_batches(
        [EpochImages(images, PREPROCESSING)], BatchPlan(batch_size=8, shuffle=False)
    )
    assert batch.labels.tolist() == [0, 0, 0]
    assert list(batch.unreadable) == [0]
    assert "decoded" in batch.unreadable[0]


def test_a_batch_of_damaged_files_is_empty(tmp_path: Path) -> None:
    images = LabelledImages(classes=("a",), files=(tmp_path / "none.png",) * 2, labels=(0, 0))
    (batch,) = load_batches(
        [EpochImages(images, PREPROCESSING)], BatchPlan(batch_size=8, shuffle=False)
    )
    assert (len(batch.images), len(batch.labels), [*batch.unreadable]) == (0, 0, [0, 1])


# Digits


def test_digits_equal_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    splits = read_splits(digits_folder())
    assert splits.train.classes == tuple("0123456789")
    assert len(splits.train.files) + len(splits.val.files) == 1797
    values, labels = map(np.asarray, load_digits(return_X_y=True))
    for images in (splits.train, splits.val):
        for path, label in list(zip(paths(images), images.labels))[::100]:
            index = int(path.stem)
            with Image.open(path) as image:
                stored = np.array(image)
            assert labels[index] == label
            np.testing.assert_array_equal(stored, np.rint(values[index] * 255 / 16).reshape(8, 8))


def test_no_digit_is_in_both_splits() -> None:
    splits = read_splits(digits_folder())
    names = [{path.name for path in paths(images)} for images in (splits.train, splits.val)]
    assert not names[0] & names[1]


def test_the_split_of_digits_is_fixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = {path.relative_to(digits_folder()) for path in digits_folder().rglob("*.png")}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder().is_relative_to(tmp_path)
    assert {path.relative_to(digits_folder()) for path in digits_folder().rglob("*.png")} == first
