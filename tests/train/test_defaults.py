"""Tests of the settings that depend on the pictures and on the files of this machine."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from resdeploy.errors import DataError
from resdeploy.images.preprocessing import Preprocessing
from resdeploy.images.preprocessing_settings import PreprocessingSettings
from resdeploy.train.config import SettingError, TrainingConfig, learning_rate
from resdeploy.train.data.dataset import read_splits
from resdeploy.train.defaults import (
    choose_run,
    find_weights,
    fitting_schedule,
    notes_on,
    shorter_sides,
)
from resdeploy.train.run.folder import save_model
from resdeploy.train.run.record import identify_data
from tests.samples import CLASSES, make_classifier


def photos(folder: Path, *sizes: tuple[int, int]) -> Path:
    """Write each picture ten times in two classes, beside a damaged and an empty one."""
    for label in "ab":
        (folder / label).mkdir(parents=True)
        for index, size in enumerate(sizes * 10):
            Image.new("RGB", size).save(folder / label / f"{index}.jpg")
        (folder / label / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


@pytest.mark.parametrize(
    ("size", "expected"),
    [((500, 300), 224), ((300, 224), 224), ((223, 500), 192), ((32, 32), 32), ((8, 9), 32)],
)
def test_the_input_has_224_pixels_unless_the_pictures_are_smaller(
    tmp_path: Path, size: tuple[int, int], expected: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "resdeploy")
    data = photos(tmp_path / "photos", size)
    config, _, splits = choose_run(None, {"data": str(data), "epochs": 2})
    assert (config.image_size, config.epochs) == (expected, 2)
    assert len(splits.train.files) + len(splits.val.files) == 22
    assert (
        f"input has {expected} pixels; the median shorter side of the pictures is {min(size)}"
        in caplog.text
    )


@pytest.mark.parametrize(
    ("recipe", "options", "expected"),
    [
        (None, {"image_size": (64, 96)}, (64, 96)),
        ("quick", {}, 32),
        ("paper", {}, 224),
    ],
)
def test_a_recipe_and_options_come_before_the_pictures(
    tmp_path: Path, recipe: str | None, options: dict[str, Any], expected: object
) -> None:
    data = photos(tmp_path / "photos", (160, 160))
    config, *_ = choose_run(recipe, {"data": str(data), **options})
    assert config.image_size == expected


@pytest.mark.parametrize(
    ("side", "recipe", "options", "said"),
    [
        (
            32,
            None,
            {"image_size": 224},
            "an epoch computes 49 times as much as with --image-size 32",
        ),
        (32, "modern", {}, "an epoch computes 25 times as much as with --image-size 32"),
        (40, None, {"image_size": 64}, ""),  # 4 times as much: weights of large pictures gain
        (300, None, {"image_size": 64}, ""),
    ],
)
def test_pictures_that_are_enlarged_far_are_a_warning(
    tmp_path: Path, side: int, recipe: str | None, options: dict[str, Any], said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    data = photos(tmp_path / "photos", (side, side))
    choose_run(recipe, {"data": str(data), **options})
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == bool(said)
    assert all(said in text for text in warnings)


@pytest.mark.parametrize(
    ("side", "options", "hinted"),
    [
        (32, {}, True),
        (64, {}, True),
        (96, {}, False),
        (8, {}, False),
        (32, {"stem": "cifar"}, False),
    ],
)
def test_a_new_network_for_small_pictures_names_the_other_stem(
    tmp_path: Path, side: int, options: dict[str, Any], hinted: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO, "resdeploy")
    data = str(photos(tmp_path / "photos", (side, side)))
    config, _, splits = choose_run(None, {"data": data, **options})
    assert ("--stem cifar" in caplog.text) == hinted
    first, *others = notes_on(config, splits)  # of the report
    assert "began with a new network; --init FILE" in first
    assert ["--stem cifar" in note for note in others] == [True] * hinted


def test_the_preprocessing_has_the_size_of_the_pictures(tmp_path: Path) -> None:
    data = photos(tmp_path / "photos", (70, 70))
    stated = PreprocessingSettings(mean=(0.5,))
    config, *_ = choose_run(None, {"data": str(data)}, stated)
    assert config.preprocessing is not None
    assert (config.preprocessing.image_size, config.preprocessing.mean) == (64, (0.5,) * 3)


@pytest.mark.parametrize(
    ("images", "init", "expected"),
    [
        (2, None, (16, 0.2, 60)),
        (160, None, (16, 0.2, 60)),
        (2000, None, (32, 0.1, 20)),
        (50_000, None, (64, 0.05, 13)),
        (160, "a.pth", (16, 0.04, 20)),
        (50_000, "a.pth", (64, 0.01, 20)),
    ],
)
def test_few_images_have_small_batches_and_more_epochs(
    images: int, init: str | None, expected: tuple[int, float, int]
) -> None:
    config = TrainingConfig.from_recipe(init=init)
    found = TrainingConfig.from_recipe(init=init, **fitting_schedule(images, config))
    assert (found.batch_size, found.lr, found.epochs) == expected
    # The size of a step stays that of the recipe.
    assert learning_rate(found, 1) == pytest.approx(learning_rate(config, 1))


def test_a_chosen_batch_keeps_the_learning_rate_of_the_recipe(tmp_path: Path) -> None:
    data = photos(tmp_path / "photos", (70, 70))
    config, *_ = choose_run(None, {"data": str(data), "batch_size": 64})
    assert (config.batch_size, config.lr, config.epochs) == (64, 0.05, 60)


def test_only_pictures_that_can_be_read_are_measured(tmp_path: Path) -> None:
    data = photos(tmp_path / "photos", (70, 90), (50, 40))
    files = [*sorted(data.rglob("*")), tmp_path / "missing.jpg"]
    assert set(shorter_sides([file for file in files if not file.is_dir()])) == {70, 40}


@pytest.mark.parametrize(
    ("variable", "place"),
    [
        (None, "resnet34-b627a593.pth"),
        ("TORCH_HOME", "hub/checkpoints/resnet34-b627a593.pth"),
        ("XDG_CACHE_HOME", "torch/hub/checkpoints/resnet34-b627a593.pth"),
        ("HF_HUB_CACHE", "models--timm--resnet34.a1_in1k/snapshots/12/model.safetensors"),
        ("HF_HOME", "hub/models--timm--resnet34.a1_in1k/snapshots/12/model.safetensors"),
        (
            "XDG_CACHE_HOME",
            "huggingface/hub/models--timm--resnet34.x/snapshots/1/model.safetensors",
        ),
    ],
)
def test_weights_are_found_in_the_usual_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    variable: str | None, place: str,
) -> None:  # fmt: skip
    for name in ("TORCH_HOME", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path if variable is None else tmp_path / "cache"
    if variable:
        monkeypatch.setenv(variable, str(folder))
    with caplog.at_level(logging.DEBUG, "resdeploy"):
        found, sentence = find_weights("resnet34")
    assert found is None
    assert sentence == (
        "training a new network: there is no resnet34-*.pth in this folder and no resnet34 in the "
        "caches of torchvision and timm (-v lists them). In an environment with torchvision, "
        "python -c 'import torchvision; torchvision.models.resnet34(weights=\"DEFAULT\")' "
        "fills its cache; --init FILE starts from other weights"
    )
    assert str(Path("resnet34-*.pth").absolute()) in caplog.text
    assert str(Path("hub", "checkpoints", "resnet34-*.pth")) in caplog.text
    assert "models--timm--resnet34.*" in caplog.text
    assert "~" not in caplog.text
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    (folder / place).touch()
    found, sentence = find_weights("resnet34")
    assert found is not None
    assert found.resolve() == folder / place
    assert str(found) in sentence
    assert "--init none" in sentence
    assert find_weights("resnet50")[0] is None
    assert "models.wide_resnet50_2(weights" in find_weights("wide-resnet50-2")[1]


@pytest.mark.parametrize(
    ("recipe", "options", "starts"),
    [
        (None, {}, True),
        (None, {"arch": "resnet34", "freeze": True}, True),
        (None, {"init": "none"}, False),
        (None, {"stem": "cifar"}, False),
        (None, {"arch": "resnet18"}, False),
        ("quick", {}, False),
    ],
)
def test_training_starts_from_weights_that_this_machine_has(
    tmp_path: Path,
    tiny_checkpoint: Path,
    recipe: str | None,
    options: dict[str, Any],
    starts: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "resdeploy")
    data = photos(tmp_path / "photos", (40, 40))
    shutil.copy(tiny_checkpoint, "resnet34-00000000.pth")
    config, initial, _ = choose_run(recipe, {"data": str(data), **options})
    assert (initial is not None) == (config.init is not None) == starts
    assert config.recipe == ("finetune" if starts else "quick")
    assert ("starting from the weights resnet34-00000000.pth" in caplog.text) == starts
    caplog.clear()
    choose_run(recipe, {"data": str(data), "init": "resnet34-00000000.pth"})
    begin = "starting from the weights resnet34-00000000.pth, with the recipe "
    assert begin + (recipe or "finetune") in caplog.text


@pytest.mark.parametrize("name", ["", "model.safetensors"])
def test_the_images_that_the_initial_run_held_out_validate_again(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    data, run = photos(tmp_path / "photos", (40, 40)), tmp_path / "run"
    before = read_splits(data, 7)
    run.mkdir()
    save_model(
        run, make_classifier().network, labels=CLASSES, preprocessing=Preprocessing.standard(32),
        data=str(data), config={}, metrics={}, provenance={},
        held_out=identify_data(data, before, 7).held_out,
    )  # fmt: skip
    options = {"data": str(data), "init": str(run / name)}
    config, _, splits = choose_run(None, options)
    assert (config.seed, splits) == (7, before)
    with caplog.at_level(logging.INFO, "resdeploy"):
        choose_run(None, {**options, "data": str(photos(tmp_path / "others", (70, 70))), "seed": 8})
    assert "the pictures is 70; the weights state 32 pixels" in caplog.text
    assert "learned" not in caplog.text
    config, *_ = choose_run(None, {**options, "seed": 8})
    assert config.seed == 8
    assert "may have learned some of the images that now validate" in caplog.text


def test_errors_come_before_the_images_are_read() -> None:
    with pytest.raises(SettingError, match="--lr is inf"):
        choose_run(None, {"data": "missing", "lr": float("inf")})
    with pytest.raises(DataError, match="there is no folder missing"):
        choose_run(None, {"data": "missing"})
