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
from resdeploy.images.preprocessing_choice import REPORTED
from resdeploy.images.preprocessing_text import other_setting_facts, setting_texts

IMAGENET = "RGB, values 0 to 1, mean 0.485,0.456,0.406, std 0.229,0.224,0.225"


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"resize": 256}, f"224 pixels, shorter side 256, bilinear with antialiasing, {IMAGENET}"),
        (
            {"image_size": (192, 224), "resize": (219, 256)},
            f"192x224 pixels, covers 219x256, bilinear with antialiasing, {IMAGENET}",
        ),
        (
            {"resize_mode": ResizeMode.SQUASH, "antialias": False},
            f"224 pixels, squashed to 224, bilinear without antialiasing, {IMAGENET}",
        ),
        (
            {"resize_mode": ResizeMode.PAD, "interpolation": Interpolation.BICUBIC},
            f"224 pixels, padded to 224, bicubic with antialiasing, {IMAGENET}",
        ),
        ({"resize_mode": ResizeMode.NONE}, f"224 pixels, not resized, {IMAGENET}"),
        (
            {
                "channels": Channels.BGR, "value_range": 255, "mean": (103.5, 116.3, 123.7),
                "std": (1.0, 1.0, 1.0),
            },
            "224 pixels, shorter side 224, bilinear with antialiasing, BGR, values 0 to 255, "
            "mean 103.5,116.3,123.7, std 1,1,1",
        ),
        (
            {"channels": Channels.GRAY, "mean": (0.5,), "std": (0.25,)},
            "224 pixels, shorter side 224, bilinear with antialiasing, GRAY, values 0 to 1, "
            "mean 0.5, std 0.25",
        ),
    ],
)  # fmt: skip
def test_each_reported_setting_has_one_text(settings: dict[str, Any], text: str) -> None:
    texts = setting_texts(Preprocessing(**{"image_size": 224, **settings}))
    assert ", ".join(texts.values()) == text
    assert set(texts) <= set(REPORTED)


def test_the_facts_name_every_other_setting_that_has_an_effect() -> None:
    usual = Preprocessing(image_size=32)
    assert other_setting_facts(usual) == (("decoding", "whole"),)
    unusual = Preprocessing(
        image_size=32, resize_mode=ResizeMode.PAD, reducing_gap=2.0, pad_colour=(1, 2, 3),
        crop_offset=CropOffset.DOWN,
    )  # fmt: skip
    facts = dict(other_setting_facts(unusual))
    assert "2 times the size" in facts["decoding"]
    assert facts["offset of the crop"] == "rounded down"
    assert facts["border of small pictures"] == "RGB 1,2,3"
