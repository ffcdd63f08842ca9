"""Settings of the pre-processing: their limits, and their form as JSON."""

from __future__ import annotations

import math

import pytest

from resdeploy.images.preprocessing import Channels, ImageSize, Preprocessing, ResizeMode
from resdeploy.json_documents import jsonable, parse


@pytest.mark.parametrize(
    ("size", "resize"),
    [(224, 256), (32, 32), (64, 64), (128, 146), ((192, 224), (219, 256)), ((64, 224), (64, 224))],
)
def test_standard_margins(size: ImageSize, resize: ImageSize) -> None:
    assert Preprocessing.standard(size).resize == resize


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_size": 0},
        {"image_size": 2000},
        {"image_size": (32, 0)},
        {"resize": 31},
        {"resize": (32, 31)},
        {"image_size": (40, 32)},
        {"resize": 5000},
        {"std": (0.1, 0.0, 0.1)},
        {"std": (0.1, math.nan, 0.1)},
        {"mean": (math.inf, 0.5, 0.5)},
        {"reducing_gap": 0.5},
        {"reducing_gap": math.nan},
        {"channels": Channels.GRAY},
        {"mean": (0.5,), "std": (0.5,)},
        {"value_range": 2},
        {"pad_colour": (0, 0, 256)},
    ],
)
def test_rejects_invalid_settings(wrong: dict[str, object]) -> None:
    good: dict[str, object] = {"image_size": 32, "resize": 32}
    with pytest.raises(ValueError):
        Preprocessing(**(good | wrong))  # type: ignore[arg-type]


def test_padding_may_scale_below_the_input() -> None:
    assert Preprocessing(image_size=32, resize=20, resize_mode=ResizeMode.PAD).resized == (20, 20)


def test_equal_sides_equal_a_single_number() -> None:
    pairs = Preprocessing(image_size=(32, 32), resize=(40, 40))
    assert pairs == Preprocessing(image_size=32, resize=40)


def test_settings_of_another_version_have_todays_meaning() -> None:
    old = {
        "image_size": 32, "resize": 36, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
        "interpolation": "bilinear", "reducing_gap": 2.0,
    }  # fmt: skip
    assert parse(Preprocessing, old) == Preprocessing(
        image_size=32, resize=36, mean=(0.5,) * 3, std=(0.5,) * 3, reducing_gap=2.0
    )


@pytest.mark.parametrize("image_size", [30, (30, 35)])
def test_json_round_trip(image_size: ImageSize) -> None:
    chosen = Preprocessing(
        image_size=image_size, resize=35, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0),
        reducing_gap=1.5,
    )  # fmt: skip
    assert parse(Preprocessing, jsonable(chosen)) == chosen


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"mean": [0.1, 0.2]}, "each must be three finite numbers"),
        ({"mean": "abc"}, "mean is a string, not a list"),
        ({"image_size": None}, "image_size is null, not an integer"),
        ({"image_size": [32]}, "image_size has 1 entries, not 2"),
        ({"channels": "cmyk"}, "channels is 'cmyk', not one of rgb, bgr, gray"),
        ({"std": [0, 0, 0]}, "those of std above 0"),
    ],
)
def test_rejects_damaged_json(damage: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(Preprocessing, jsonable(Preprocessing.standard(32)) | damage)
