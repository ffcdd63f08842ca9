"""Tests of an export's pre-processing: ranks of its sources, and what is said about them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from resdeploy.bundle.bundle import open_bundle
from resdeploy.cli.export import export_text
from resdeploy.errors import CheckpointError, DataError
from resdeploy.export.inputs import Source, read_source
from resdeploy.export.pipeline import ExportConfig, export
from resdeploy.export.source_preprocessing import preprocessing_warnings
from resdeploy.images.preprocessing import (
    Channels,
    CropOffset,
    Interpolation,
    Preprocessing,
    ResizeMode,
)
from resdeploy.images.preprocessing_settings import PreprocessingSettings
from resdeploy.report.contents import BundleContents, bundle_sections
from resdeploy.train.run.folder import save_model
from tests.samples import CLASSES, SIZE, make_classifier
from tests.train.checkpoint.states import BY_NAME, make_state, renamed

TIMM = {
    "pretrained_cfg": {
        "input_size": [3, 64, 64], "crop_pct": 0.9, "interpolation": "bicubic", "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
}  # fmt: skip


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Return a file of weights, which also states a mean and an image size."""
    path = tmp_path / "weights.pth"
    content = {"state_dict": make_classifier().network.state_dict(), "img_size": 40}
    torch.save(content | {"mean": [0.1, 0.2, 0.3]}, path)
    return path


def beside(weights: Path, document: Any = TIMM, name: str = "config.json") -> None:
    (weights.parent / name).write_text(json.dumps(document))


def source_of(path: Path, file: Path | None = None, **stated: Any) -> Source:
    return read_source(path, stated=PreprocessingSettings(**stated), preprocessing_file=file)


def test_the_checkpoint_itself_states_some_settings(weights: Path) -> None:
    choice = source_of(weights).choice
    assert (choice.preprocessing.image_size, choice.preprocessing.mean) == (40, (0.1, 0.2, 0.3))
    assert choice.assumed == (
        "resize_mode", "resize", "interpolation", "channels", "value_range", "std",
    )  # fmt: skip


def test_a_file_beside_the_weights_comes_before_the_checkpoint(weights: Path) -> None:
    beside(weights)
    source = source_of(weights)
    choice = source.choice
    assert choice.preprocessing == Preprocessing(
        image_size=64, resize=71, interpolation=Interpolation.BICUBIC, mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )  # fmt: skip
    assert set(choice.origins.values()) == {"config.json beside the weights"}
    assert preprocessing_warnings(source.network, choice) == []


@pytest.mark.parametrize(
    ("scheme", "offset"), [("torchvision", CropOffset.EVEN), ("Hugging Face", CropOffset.DOWN)]
)
def test_the_offset_of_the_crop_is_that_of_the_library(
    tmp_path: Path, scheme: str, offset: CropOffset
) -> None:
    state = renamed(make_state(), BY_NAME[scheme], "classifier.1")
    torch.save(state, tmp_path / "weights.pth")
    assert source_of(tmp_path / "weights.pth").preprocessing.crop_offset is offset
    beside(tmp_path / "weights.pth")  # of timm
    assert source_of(tmp_path / "weights.pth").preprocessing.crop_offset is CropOffset.EVEN


def test_a_file_comes_before_the_one_beside_the_weights_and_an_option_before_both(
    weights: Path, tmp_path: Path
) -> None:
    beside(weights)
    file = tmp_path / "own.json"
    document = {"image_mean": [0.2, 0.3, 0.4], "image_std": [0.6, 0.7, 0.8]}
    file.write_text(json.dumps(document))
    choice = source_of(weights, file, std=(0.9, 0.9, 0.9)).choice
    found = choice.preprocessing
    assert (found.image_size, found.mean, found.std) == (64, (0.2, 0.3, 0.4), (0.9,) * 3)
    assert choice.origins["mean"] == "own.json"
    assert choice.origins["std"] == "an option"
    assert choice.origins["image_size"] == "config.json beside the weights"


def test_an_option_or_a_file_that_contradicts_the_checkpoint_is_a_warning(
    weights: Path, tmp_path: Path
) -> None:
    beside(weights)
    file = tmp_path / "own.json"
    file.write_text(json.dumps({"image_mean": [0.2] * 3, "image_std": [0.5] * 3}))
    source = source_of(weights, file, resize_mode=ResizeMode.SQUASH)
    (warning,) = preprocessing_warnings(source.network, source.choice)
    assert warning.message == (
        "the pre-processing is not the checkpoint's: squashed to 64 (from an option) instead of "
        "shorter side 71 (from config.json beside the weights), mean 0.2,0.2,0.2 (from own.json) "
        "instead of mean 0.5,0.5,0.5 (from config.json beside the weights)"
    )


def test_the_size_of_a_run_changes_alone(tmp_path: Path) -> None:
    run = Preprocessing(image_size=SIZE, mean=(0.5,) * 3, std=(0.25,) * 3)
    save_model(
        tmp_path / "run", make_classifier().network, labels=CLASSES, preprocessing=run, data="gone",
        config={}, metrics={}, provenance={},
    )  # fmt: skip
    source = read_source(tmp_path / "run", image_size=36)
    choice = source.choice
    expected = Preprocessing(image_size=36, resize=36, mean=(0.5,) * 3, std=(0.25,) * 3)
    assert choice.preprocessing == expected
    assert choice.origins["mean"] == "the run"
    assert preprocessing_warnings(source.network, choice) == []
    # The weights of a run, given as a file, have the run's settings beside them.
    choice = source_of(tmp_path / "run" / "model.safetensors").choice
    assert choice.preprocessing == replace(expected, image_size=SIZE, resize=SIZE)
    assert choice.origins["mean"] == "model.json beside the weights"


def test_what_cannot_be_followed_beside_the_weights_is_refused(weights: Path) -> None:
    beside(weights, {"do_normalize": True, "do_rescale": True, "rescale_factor": 1 / 127.5})
    with pytest.raises(DataError, match=r"config\.json, beside the weights, cannot be followed"):
        source_of(weights)


def test_channels_that_the_network_does_not_have_are_refused(weights: Path, tmp_path: Path) -> None:
    config = ExportConfig(
        source=weights, output=tmp_path / "x.bundle",
        stated=PreprocessingSettings(channels=Channels.GRAY, mean=(0.5,), std=(0.5,)),
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="takes images of 3 channels"):
        export(config)


def test_the_bundle_its_report_and_the_output_say_where_settings_come_from(
    weights: Path, tmp_path: Path
) -> None:
    stated = PreprocessingSettings(
        resize_mode=ResizeMode.SQUASH, channels=Channels.BGR, std=(0.25, 0.5, 0.75)
    )
    result = export(
        ExportConfig(source=weights, output=tmp_path / "x.bundle", image_size=SIZE, stated=stated)
    )
    manifest = open_bundle(result.bundle).manifest
    found = manifest.preprocessing
    assert (found.resize_mode, found.channels) == (ResizeMode.SQUASH, Channels.BGR)
    assert (found.image_size, found.std) == (SIZE, (0.25, 0.5, 0.75))
    assert manifest.preprocessing_origins["channels"] == "an option"
    assert manifest.preprocessing_origins["interpolation"] == "assumed"
    line = "32 pixels, squashed to 32, BGR, std 0.25,0.5,0.75 (from an option)"
    assumed = "bilinear with antialiasing, values 0 to 1 (assumed)"
    text = export_text(result)
    page = str(bundle_sections([BundleContents("x", manifest, None)]))
    for shown in (text, page):
        assert line in shown
        assert assumed in shown
    assert "assumed: bilinear with antialiasing, values 0 to 1" in manifest.warnings[0].message
    assert "resdeploy preprocess" in manifest.warnings[0].hint
