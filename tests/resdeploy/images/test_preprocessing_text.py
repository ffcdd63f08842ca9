"""Every setting of the pre-processing appears in the texts about it."""

from __future__ import annotations

from typing import Any

import pytest

from resdeploy.images.preprocessing import (
    Channels,
    CropOffset,
    Interpolation,
    Preprocessing,
    ResizeMode,
)
from resdeploy.images.preprocessing_text import (
    normalisation_text,
    preprocessing_facts,
    resize_text,
)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"image_size": 224, "resize": 256},
            "shorter side to 256 pixels (bilinear), then the central 224 x 224 pixels",
        ),
        (
            {"image_size": (192, 224), "crop_offset": CropOffset.DOWN},
            "scaled until it covers 192 x 224 pixels (bilinear), then the central 192 x 224 pixels"
            ", offset rounded down",
        ),
        (
            {"image_size": 224, "resize_mode": ResizeMode.SQUASH, "antialias": False},
            "squashed to 224 x 224 pixels (bilinear without antialiasing)",
        ),
        (
            {
                "image_size": 224, "resize": 235, "resize_mode": ResizeMode.SQUASH,
                "interpolation": Interpolation.BICUBIC,
            },
            "squashed to 235 x 235 pixels (bicubic), then the central 224 x 224 pixels",
        ),
        (
            {"image_size": 224, "resize_mode": ResizeMode.PAD, "pad_colour": (1, 2, 3)},
            "scaled until it fits into 224 x 224 pixels (bilinear), then the central 224 x 224 "
            "pixels, with a border of RGB (1, 2, 3) where the picture is smaller",
        ),
        (
            {"image_size": 224, "resize_mode": ResizeMode.NONE},
            "not scaled, then the central 224 x 224 pixels, with a border of RGB (0, 0, 0) where "
            "the picture is smaller",
        ),
    ],
)  # fmt: skip
def test_resize_text(settings: dict[str, Any], text: str) -> None:
    assert resize_text(Preprocessing(**settings)) == text


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "(pixel / 255 - mean) / std, mean 0.485, 0.456, 0.406, std 0.229, 0.224, 0.225"),
        (
            {
                "channels": Channels.BGR, "value_range": 255, "mean": (103.5, 116.3, 123.7),
                "std": (1.0, 1.0, 1.0),
            },
            "BGR, (pixel - mean) / std, mean 103.5, 116.3, 123.7, std 1, 1, 1",
        ),
        (
            {"channels": Channels.GRAY, "mean": (0.5,), "std": (0.25,)},
            "grey, (pixel / 255 - mean) / std, mean 0.5, std 0.25",
        ),
    ],
)  # fmt: skip
def test_normalisation_text(settings: dict[str, Any], text: str) -> None:
    assert normalisation_text(Preprocessing(image_size=32, **settings)) == text


@pytest.mark.parametrize(("gap", "words"), [(None, "whole"), (2.0, "2 times the size")])
def test_the_facts_name_the_decoding(gap: float | None, words: str) -> None:
    facts = dict(preprocessing_facts(Preprocessing(image_size=32, reducing_gap=gap)))
    assert words in facts["decoding"]
    assert list(facts) == ["resize and crop", "decoding", "normalisation, in the graph"]
