"""Tests of crops, distortions, mixing and the average of the weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from resdeploy.images.decode import read_rgb
from resdeploy.images.preprocessing import ImageSize, Preprocessing
from resdeploy.train.data.augment import SCALES, Augmentation, augment
from resdeploy.train.data.mixing import mix_batch
from resdeploy.train.data.randaugment import DISTORTIONS, distort
from resdeploy.train.ema import WeightAverage
from tests.samples import encoded, make_classifier


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def size(image_size: ImageSize) -> Preprocessing:
    return Preprocessing(image_size=image_size)


def extent_of_crop(picture: Image.Image, crop: str, seed: int) -> tuple[float, float]:
    """Return the fractions of the width and height in a crop, from pixels that encode them."""
    width, height = picture.size
    columns = np.linspace(0, 255, width)[np.newaxis, :] * np.ones((height, 1))
    rows = np.linspace(0, 255, height)[:, np.newaxis] * np.ones((1, width))
    gradient = Image.fromarray(np.stack([columns, rows, columns], axis=2).astype(np.uint8))
    settings = Augmentation(flip=False, min_area=0.1, crop=crop)
    pixels = augment(encoded(gradient), size(64), settings, np.random.default_rng(seed)).astype(
        float
    )
    across, down = (float(np.ptp(pixels[..., axis])) / 255 for axis in (0, 1))
    return across, down


@pytest.mark.parametrize("seed", range(10))
def test_the_scale_crop_is_a_square(seed: int) -> None:
    across, down = extent_of_crop(Image.new("RGB", (600, 300)), "scale", seed)
    # The crop has the same number of pixels in both directions. The tolerance is needed because
    # the edges of a crop are averages over a few columns.
    assert 1 / SCALES[1] - 0.03 < down < 1 / SCALES[0] + 0.03
    assert across == pytest.approx(down / 2, abs=0.03)


@pytest.mark.parametrize("crop", ["area", "scale"])
@given(st.integers(1, 80), st.integers(1, 80), st.integers(0, 2**32))
def test_any_image_gives_the_requested_size(crop: str, width: int, height: int, seed: int) -> None:
    settings = Augmentation(flip=True, min_area=0.08, crop=crop, randaugment=15)
    pixels = augment(
        encoded(photograph(width, height)), size(24), settings, np.random.default_rng(seed)
    )
    assert pixels.shape == (24, 24, 3)
    assert pixels.dtype == np.uint8


@given(
    st.integers(1, 60), st.integers(1, 60), st.floats(0.05, 1), st.integers(0, 2**31), st.booleans()
)
def test_crops_stay_inside_the_image(
    width: int, height: int, min_area: float, seed: int, flip: bool
) -> None:
    image = encoded(Image.new("RGB", (width, height), (9, 99, 199)))
    result = augment(
        image, size(16), Augmentation(flip=flip, min_area=min_area), np.random.default_rng(seed)
    )
    assert result.shape == (16, 16, 3)
    assert result.dtype == np.uint8
    assert (result == (9, 99, 199)).all()  # a pixel outside of the image would differ
    assert result.flags.c_contiguous


def test_a_crop_of_the_whole_area_is_the_image() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8))
    same = augment(
        encoded(image), size(16), Augmentation(flip=False, min_area=1.0), np.random.default_rng(0)
    )
    np.testing.assert_array_equal(same, np.array(image))


@pytest.mark.parametrize("crop", ["area", "scale"])
def test_a_rectangle_keeps_the_proportions_on_average(crop: str) -> None:
    rows, columns = np.mgrid[0:200, 0:400]
    picture = encoded(Image.fromarray(np.stack([rows, columns // 2, rows], 2).astype(np.uint8)))
    settings = Augmentation(flip=False, min_area=0.3, crop=crop)
    ratios = []
    for seed in range(40):
        pixels = augment(picture, size((30, 60)), settings, np.random.default_rng(seed))
        assert pixels.shape == (30, 60, 3)
        down, across = np.ptp(pixels[..., 0].astype(float)), np.ptp(pixels[..., 1].astype(float))
        ratios.append(np.log(across / down))
    # Both gradients have 200 steps. 40 log-ratios of up to log(4/3) have a standard error of 0.03.
    assert abs(np.mean(ratios)) < 0.1


@pytest.mark.parametrize("area", [0.0, -1.0, 1.5])
def test_rejects_an_impossible_area(area: float) -> None:
    with pytest.raises(ValueError):
        Augmentation(flip=True, min_area=area)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("crop", ["area", "scale"])
@pytest.mark.parametrize("seed", range(3))
def test_a_jpeg_decoded_at_a_lower_resolution_looks_the_same(
    crop: str, seed: int, orientation: int
) -> None:
    rows, columns = np.mgrid[0:600, 0:800]
    smooth = np.stack([rows * 255 / 600, columns * 255 / 800, 0 * rows + 90], 2).astype(np.uint8)
    image = Image.fromarray(smooth)
    exif = Image.Exif()
    exif[0x0112] = orientation  # 6 means a rotation by 90 degrees
    settings = Augmentation(flip=False, min_area=0.3, crop=crop)
    small, whole = (
        augment(
            encoded(image, format, exif=exif, **options),
            size(48),
            settings,
            np.random.default_rng(seed),
        ).astype(int)
        for format, options in (("JPEG", {"quality": 95, "subsampling": 0}), ("PNG", {}))
    )
    # JPEG's rounding at this quality and half a pixel of the smaller image explain 4 of 255.
    assert np.abs(small - whole).max() <= 4


@given(st.integers(1, 700), st.integers(1, 700), st.floats(0.5, 20))
def test_the_decoded_resolution_is_sufficient(width: int, height: int, factor: float) -> None:
    image = encoded(Image.new("RGB", (width, height)), "JPEG", quality=10)
    decoded = read_rgb(image, lambda *_: factor)
    assert decoded.width >= width / max(1, factor)
    assert decoded.height >= height / max(1, factor)
    if factor >= 8 and min(width, height) >= 64:
        assert decoded.width <= math.ceil(width / 4)  # the resolution was reduced


# RandAugment


def test_there_are_fourteen_distortions() -> None:
    assert len(DISTORTIONS) == 14


@pytest.mark.parametrize("name", sorted(set(DISTORTIONS) - {"autocontrast", "equalize"}))
def test_strength_zero_changes_nothing(name: str) -> None:
    picture = photograph(20, 30)
    for sign in (-1.0, 1.0):
        np.testing.assert_array_equal(DISTORTIONS[name](picture, 0.0, sign), picture)


@pytest.mark.parametrize("name", sorted(set(DISTORTIONS) - {"identity"}))
def test_every_distortion_changes_and_keeps_the_size(name: str) -> None:
    # Low contrast, so that every distortion has an effect.
    dull = Image.fromarray(64 + np.asarray(photograph(20, 30)) // 2)
    changed = DISTORTIONS[name](dull, 0.8, 1.0)
    assert changed.size == dull.size
    assert changed.mode == "RGB"
    assert np.any(np.asarray(changed) != np.asarray(dull))


def test_translation_moves_the_image_and_fills_with_grey() -> None:
    picture = photograph(100, 10)
    moved = np.asarray(DISTORTIONS["translate-x"](picture, 20 / 45, 1.0))  # a fifth of the width
    np.testing.assert_array_equal(moved[:, :80], np.asarray(picture)[:, 20:])
    assert (moved[:, 80:] == (124, 116, 104)).all()


def test_shear_and_rotation_keep_the_centre() -> None:
    picture = Image.new("RGB", (41, 41))
    picture.putpixel((20, 20), (255, 255, 255))
    for name in ("shear-x", "shear-y", "rotate"):
        changed = np.asarray(DISTORTIONS[name](picture, 1.0, 1.0))[..., 0]
        row, column = np.unravel_index(changed.argmax(), changed.shape)
        assert max(abs(row - 20), abs(column - 20)) <= 1, name


def test_distortions_depend_only_on_the_generator() -> None:
    pixels = np.asarray(photograph(16, 16))
    for seed in range(20):
        first, second = (distort(pixels, 20, np.random.default_rng(seed)) for _ in range(2))
        np.testing.assert_array_equal(first, second)


# Mixup and CutMix


def batch(count: int = 6, size: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images that can be told apart by their grey value."""
    greys = torch.arange(count) * 40
    images = greys.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, size, size, 3).contiguous()
    return images, torch.arange(count)


def test_without_mixup_and_cutmix_nothing_changes() -> None:
    images, labels = batch()
    mixed = mix_batch(images, labels, 0.0, 0.0, np.random.default_rng(0))
    assert mixed.share == 1
    assert torch.equal(mixed.images, images)


@given(st.sampled_from([(0.2, 0.0), (0.0, 1.0), (0.5, 0.5)]), st.integers(0, 2**32))
def test_pixels_and_labels_are_mixed_with_the_same_share(
    parameters: tuple[float, float], seed: int
) -> None:
    images, labels = batch()
    before = images.clone()
    mixed = mix_batch(images, labels, *parameters, np.random.default_rng(seed))
    assert 0 <= mixed.share <= 1
    assert torch.equal(mixed.labels, labels)
    assert sorted(mixed.other_labels.tolist()) == labels.tolist()
    expected = 40 * (mixed.share * labels + (1 - mixed.share) * mixed.other_labels)
    # Mixup rounds every pixel to an integer; for CutMix the share is exact.
    mean = mixed.images.float().mean(dim=(1, 2, 3))
    torch.testing.assert_close(mean, expected.float(), rtol=0, atol=0.5001)
    assert torch.equal(images, before)  # the input must not change


def test_cutmix_pastes_one_rectangle() -> None:
    images, labels = batch(2, 32)
    for seed in range(20):
        mixed = mix_batch(images, labels, 0.0, 1.0, np.random.default_rng(seed))
        foreign = (mixed.images[0] != images[0]).all(dim=-1)
        if foreign.any():
            rows, columns = foreign.any(dim=1), foreign.any(dim=0)
            assert int(foreign.sum()) == int(rows.sum()) * int(columns.sum())
            assert set(np.unique(mixed.images[0].numpy())) <= {0, 40}


# The average of the weights


def test_the_moving_average_follows_the_formula() -> None:
    classifier = make_classifier()
    average = WeightAverage(classifier, 0.9)
    weight = classifier.network.fc.weight
    expected = None
    for step in range(4):
        with torch.no_grad():
            weight.fill_(float(step))
        average.update()
        expected = float(step) if expected is None else 0.9 * expected + 0.1 * step
    found = average.classifier.network.fc.weight
    torch.testing.assert_close(found, torch.full_like(found, expected or 0.0))
