"""Tests of files that state a pre-processing: what the libraries' own transforms do with them.

The expected values are written out after timm 1.0.31 and transformers 5.24.0, whose transforms gave
the same pixels on photographs for 300 and 689 drawn configurations.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from resdeploy.errors import DataError
from resdeploy.images.preprocessing import (
    Channels,
    CropOffset,
    Interpolation,
    Preprocessing,
    ResizeMode,
)
from resdeploy.images.preprocessing_choice import StatedSettings, choose_preprocessing
from resdeploy.images.preprocessing_files import read_preprocessing_file, settings_beside
from resdeploy.json_documents import jsonable

# As published with microsoft/resnet-34: the processor of ConvNext, from before it had its new name.
MICROSOFT_RESNET_34 = {
    "crop_pct": 0.875, "do_normalize": True, "do_resize": True,
    "feature_extractor_type": "ConvNextFeatureExtractor", "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225], "resample": 3, "size": 224,
}  # fmt: skip
# As published with timm/resnet34.a1_in1k, without the entries about the network.
TIMM_RESNET34_A1 = {
    "architecture": "resnet34", "num_classes": 1000, "num_features": 512,
    "pretrained_cfg": {
        "tag": "a1_in1k", "custom_load": False, "input_size": [3, 224, 224],
        "test_input_size": [3, 288, 288], "fixed_input_size": False, "interpolation": "bicubic",
        "crop_pct": 0.95, "test_crop_pct": 1.0, "crop_mode": "center",
        "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "num_classes": 1000,
        "pool_size": [7, 7], "first_conv": "conv1", "classifier": "fc",
    },
}  # fmt: skip
VIT = {
    "image_processor_type": "ViTImageProcessor", "do_normalize": True, "do_rescale": True,
    "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2,
    "rescale_factor": 0.00392156862745098, "size": {"height": 224, "width": 224},
}  # fmt: skip
BIT = VIT | {
    "image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256},
    "crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "do_convert_rgb": True,
    "resample": 3,
}  # fmt: skip
CONVNEXT = {"image_processor_type": "ConvNextImageProcessor"}
HALF: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


def write(folder: Path, document: Any, name: str = "settings.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(document))
    return path


def read(folder: Path, document: Any) -> Preprocessing:
    """Return the complete pre-processing of a document, with nothing else stated."""
    settings = read_preprocessing_file(write(folder, document))
    source = StatedSettings(settings=settings, place="the file")
    return choose_preprocessing([source]).preprocessing


def hugging_face(**values: Any) -> Preprocessing:
    return Preprocessing(crop_offset=CropOffset.DOWN, **values)


BICUBIC = Interpolation.BICUBIC
SQUASH, SHORTER = ResizeMode.SQUASH, ResizeMode.SHORTER


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (TIMM_RESNET34_A1, Preprocessing(image_size=224, resize=235, interpolation=BICUBIC)),
        # A flat configuration, with timm's own values for what it does not state.
        (
            {"input_size": [3, 160, 224], "mean": [0.5] * 3, "std": [0.5] * 3},
            Preprocessing(image_size=(160, 224), resize=(182, 256), interpolation=BICUBIC, **HALF),
        ),
        (
            {"pretrained_cfg": {"crop_mode": "squash", "crop_pct": 1.0, "input_size": None}},
            Preprocessing(image_size=224, resize_mode=SQUASH, resize=224, interpolation=BICUBIC),
        ),
        (
            {"default_cfg": {"crop_mode": "border", "crop_pct": 0.9, "interpolation": "bilinear"}},
            Preprocessing(
                image_size=224, resize_mode=ResizeMode.PAD, resize=248, pad_colour=(124, 116, 104)
            ),
        ),
        (
            {"pretrained_cfg": {"input_size": [1, 224, 224], "mean": [0.5], "std": [0.25]}},
            Preprocessing(
                image_size=224, resize=256, interpolation=BICUBIC, channels=Channels.GRAY,
                mean=(0.5,), std=(0.25,),
            ),
        ),
        (MICROSOFT_RESNET_34, hugging_face(image_size=224, resize=256, interpolation=BICUBIC)),
        (VIT, hugging_face(image_size=224, resize=224, resize_mode=SQUASH, **HALF)),
        (BIT, hugging_face(image_size=224, resize=256, interpolation=BICUBIC, **HALF)),
        # From 384 pixels on, ConvNext's processor squashes; it does so without any other value.
        (
            CONVNEXT | {"size": {"shortest_edge": 384}, "crop_pct": 0.95},
            hugging_face(
                image_size=384, resize=384, resize_mode=SQUASH, interpolation=BICUBIC, **HALF
            ),
        ),
        (
            CONVNEXT | {"size": {"shortest_edge": 288}, "crop_pct": 0.9},
            hugging_face(image_size=288, resize=320, interpolation=BICUBIC, **HALF),
        ),
        (
            {"feature_extractor_type": "DeiTFeatureExtractor", "size": 256, "crop_size": 224},
            hugging_face(
                image_size=224, resize=256, resize_mode=SQUASH, interpolation=BICUBIC, **HALF
            ),
        ),
        (
            BIT | {"do_resize": False},
            hugging_face(image_size=224, resize=224, resize_mode=ResizeMode.NONE, **HALF),
        ),
        (
            VIT | {"do_rescale": False, "do_normalize": None},  # the library takes null for false
            hugging_face(
                image_size=224, resize=224, resize_mode=SQUASH, value_range=255, mean=(0.0,) * 3,
                std=(1.0,) * 3,
            ),
        ),
    ],
)  # fmt: skip
def test_a_file_gives_the_pixels_of_its_library(
    document: Any, expected: Preprocessing, tmp_path: Path
) -> None:
    assert read(tmp_path, document) == expected


def test_our_own_files_are_read_completely(tmp_path: Path) -> None:
    own = Preprocessing(
        image_size=(64, 96), resize=(80, 120), resize_mode=ResizeMode.PAD, interpolation=BICUBIC,
        antialias=False, pad_colour=(1, 2, 3), crop_offset=CropOffset.DOWN, channels=Channels.BGR,
        value_range=255, mean=(103.5, 116.3, 123.7), std=(57.0, 58.0, 59.0), reducing_gap=2.0,
    )  # fmt: skip
    assert read(tmp_path, {"preprocessing": jsonable(own), "labels": []}) == own


def test_a_file_without_a_processor_states_only_what_it_names(tmp_path: Path) -> None:
    document = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    settings = read_preprocessing_file(write(tmp_path, document))
    assert (settings.mean, settings.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (settings.image_size, settings.resize_mode, settings.interpolation) == (None,) * 3


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (VIT | {"rescale_factor": 1 / 127.5}, "rescale_factor is 0.00784314; only 1/255"),
        (VIT | {"rescale_factor": None}, "rescale_factor is None"),
        (VIT | {"resample": 5}, "resample is 5; 0 to 3 are supported"),
        (VIT | {"size": {"longest_edge": 224}}, "size has longest_edge, not height and width"),
        (VIT | {"size": 224.5}, "not in whole pixels"),
        (VIT | {"do_pad": True}, "do_pad is true, which is not supported"),
        (VIT | {"do_resize": "no"}, "do_resize is 'no', not true or false"),
        (VIT | {"do_resize": False}, "neither resized nor cropped"),
        (VIT | {"image_mean": [0.5, 0.5]}, r"image_mean is \[0.5, 0.5\], not 1 or 3 numbers"),
        (VIT | {"image_mean": None}, "image_mean is None"),
        (VIT | {"image_processor_type": "LevitImageProcessor"}, "supported are those of ConvNext"),
        (BIT | {"do_center_crop": False}, "resized by its shorter side but not cropped"),
        (CONVNEXT | {"size": {"height": 64, "width": 64}}, "needs size.shortest_edge"),
        (CONVNEXT | {"do_center_crop": True, "crop_size": 32}, "a crop of its own"),
        ({"image_mean": [0.5] * 3, "size": 224}, "no image_processor_type"),
        ({"pretrained_cfg": {"crop_mode": "corner"}}, "crop_mode is 'corner'"),
        ({"pretrained_cfg": {"interpolation": "random"}}, "interpolation is 'random'"),
        ({"pretrained_cfg": {"input_size": [4, 224, 224]}}, "input_size has 4 channels"),
        ({"pretrained_cfg": {"input_size": 224}}, "input_size is 224, not 3 numbers"),
        ({"pretrained_cfg": {"crop_pct": "0.9"}}, "crop_pct is '0.9', not 1 numbers"),
        ({"preprocessing": {"image_size": 32, "resize_mode": "warp"}}, "not one of shorter"),
        ({"preprocessing": {"image_size": 0}}, "image_size is 0"),
        ({"architectures": ["ResNetForImageClassification"]}, "states no pre-processing"),
        ([1, 2], "states no pre-processing"),
    ],
)
def test_what_cannot_be_followed_is_refused(document: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=reason):
        read_preprocessing_file(write(tmp_path, document))


@pytest.mark.parametrize("content", [b"", b"{", b"\x80\x02}q", b"[" * 100_000, None])
def test_what_is_not_json_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError):
        read_preprocessing_file(path)


def test_a_file_beside_the_weights_is_found(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    assert settings_beside(weights) is None
    write(tmp_path, {"model_type": "resnet"}, "config.json")  # of the network only
    assert settings_beside(weights) is None
    write(tmp_path, MICROSOFT_RESNET_34, "preprocessor_config.json")
    for place in (weights, tmp_path):
        found = settings_beside(place)
        assert found is not None
        assert found[0] == read_preprocessing_file(tmp_path / "preprocessor_config.json")
        assert found[1] == "preprocessor_config.json"


def test_a_file_beside_the_weights_that_cannot_be_followed_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"pretrained_cfg": {"crop_mode": "corner"}}, "config.json")
    with pytest.raises(DataError, match="beside the weights, cannot be followed"):
        settings_beside(tmp_path / "model.safetensors")
