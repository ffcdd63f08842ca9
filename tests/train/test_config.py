"""Tests of the settings of a run and of the learning rate."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resdeploy.errors import DataError
from resdeploy.images.preprocessing import Channels, Interpolation, Preprocessing, ResizeMode
from resdeploy.images.preprocessing_settings import PreprocessingSettings
from resdeploy.json_documents import jsonable
from resdeploy.train.config import SettingError, TrainingConfig, learning_rate
from resdeploy.train.initialization import prepare
from resdeploy.train.model.architecture import Shortcut
from resdeploy.train.recipes import RECIPES


def test_json_round_trip() -> None:
    config = TrainingConfig(shortcut=Shortcut.PLAIN, epochs=3, flip=False, init="a.pth")
    assert TrainingConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_json_round_trip_of_the_preprocessing() -> None:
    stated = PreprocessingSettings(interpolation=Interpolation.BICUBIC, pad_colour=(1, 2, 3))
    config = prepare(TrainingConfig(image_size=(64, 96)), stated)[0]
    assert TrainingConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    ("size", "stated", "expected"),
    [
        (None, {"mean": (0.5,)}, {"image_size": 32, "resize": 32, "mean": (0.5,) * 3}),
        (224, {"std": (0.5,)}, {"image_size": 224, "resize": 256, "std": (0.5,) * 3}),
        (None, {"crop_fraction": 0.8}, {"image_size": 32, "resize": 40}),
        (
            (64, 96),
            {"resize_mode": ResizeMode.SQUASH},
            {"image_size": (64, 96), "resize": (64, 96), "resize_mode": ResizeMode.SQUASH},
        ),
        (
            None,
            {"channels": Channels.GRAY},
            {"image_size": 32, "resize": 32, "channels": Channels.GRAY, "mean": (0.449,),
             "std": (0.226,)},
        ),
    ],
)  # fmt: skip
def test_options_change_the_standard_preprocessing(
    size: Any, stated: dict[str, Any], expected: dict[str, Any]
) -> None:
    settings = PreprocessingSettings(**stated)
    recipe = TrainingConfig.from_recipe(image_size=size)
    config, _ = prepare(recipe, dataclasses.replace(settings, image_size=size))
    assert config.preprocessing == Preprocessing(**expected, reducing_gap=2.0)
    assert config.image_size == expected["image_size"]


def test_a_file_comes_after_options_and_before_the_recipe(tmp_path: Path) -> None:
    own = Preprocessing(image_size=48, resize=60, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    file = tmp_path / "model.json"
    file.write_text(json.dumps({"preprocessing": jsonable(own)}))
    config = prepare(TrainingConfig(), file=file)[0]
    assert config.preprocessing == dataclasses.replace(own, reducing_gap=2.0)
    config = prepare(TrainingConfig(image_size=96), PreprocessingSettings(image_size=96), file)[0]
    assert config.preprocessing is not None
    assert (config.preprocessing.resize, config.preprocessing.mean) == (120, (0.1, 0.2, 0.3))
    with pytest.raises(DataError, match="is above the largest pixel value"):
        prepare(TrainingConfig(), PreprocessingSettings(mean=(123.7, 116.3, 103.5)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch_size": 1},
        {"lr": 0.0},
        {"lr": -1.0},
        {"lr": math.nan},
        {"lr": math.inf},
        {"ema": 1.0},
        {"momentum": -0.1},
        {"randaugment": 31},
        {"mixup": -1.0},
        {"schedule": "steep"},
        {"crop": "circle"},
        {"recipe": "secret"},
        {"arch": "resnet51"},
        {"stem": "tall"},
        {"freeze": True},
        {"weight_decay": math.nan},
        {"weight_decay": math.inf},
        {"mixup": math.nan},
        {"cutmix": math.inf},
        {"save_minutes": math.nan},
        {"warmup_epochs": -1.0},
        {"warmup_epochs": math.nan},
        {"min_area": 0.0},
        {"min_area": math.nan},
        {"image_size": 0},
        {"workers": -1},
        {"patience": -1},
        {"target_accuracy": 0.0},
        {"target_accuracy": 100.1},
        {"target_accuracy": math.nan},
        {"seed": -1},
    ],
)
def test_rejects_impossible_settings(wrong: dict[str, Any]) -> None:
    """Check that the message names the option as the command line does, and that it has a hint."""
    with pytest.raises(SettingError, match="--" + next(iter(wrong)).replace("_", "-")) as caught:
        TrainingConfig(**wrong)
    assert isinstance(caught.value, ValueError)
    assert "--" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ({"freeze": True}, "--freeze needs a trained network", "add --init"),
        ({"qat": True}, "--qat needs a trained network", "add --init"),
        ({"qat": True, "init": "x", "ema": 0.9}, "--qat cannot .* --ema", "remove --ema"),
        ({"qat": True, "init": "x", "bf16": True}, "--qat cannot .* --bf16", "remove --bf16"),
        ({"distillation": 1.5, "qat": True, "init": "x"}, "--distillation is 1.5", "leave"),
        ({"arch": "resnet50", "init": "x"}, "--arch .* --init has its own", "remove --arch or"),
        ({"stem": "cifar", "init": "x"}, "--stem .* --init has its own", "remove --stem or"),
        ({"distillation": 0.5}, "--distillation is only possible with --qat", "add --qat"),
    ],
)
def test_settings_that_need_or_exclude_others_name_both(
    settings: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        TrainingConfig(**settings)
    assert hint in str(caught.value.hint)


def test_pinned_settings_do_not_depend_on_folder_or_place_of_the_data() -> None:
    pinned = TrainingConfig(data="photos", init="a.pth").pinned()
    assert (pinned.data, pinned.init) == (str(Path.cwd() / "photos"), str(Path.cwd() / "a.pth"))
    assert (pinned.flip, pinned.min_area) == (True, 0.35)
    assert pinned.pinned() == pinned
    digits = TrainingConfig().pinned()
    assert (digits.data, digits.init, digits.flip, digits.min_area) == ("digits", None, False, 0.85)
    moved = dataclasses.replace(digits, data="copy/of/the/digits").pinned()
    assert (moved.flip, moved.min_area) == (False, 0.85)
    chosen = TrainingConfig(flip=False, min_area=0.5).pinned()
    assert (chosen.flip, chosen.min_area) == (False, 0.5)


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    config = TrainingConfig(epochs=10, lr=0.4, batch_size=256, warmup_epochs=2)
    assert learning_rate(config, 0) == 0
    assert learning_rate(config, 1) == pytest.approx(0.2)
    assert learning_rate(config, 2) == pytest.approx(0.4)
    assert learning_rate(config, 6) == pytest.approx(0.2)  # half of the cosine
    assert learning_rate(config, 10) == pytest.approx(0)


def test_the_step_schedule_divides_by_ten_twice() -> None:
    config = TrainingConfig(epochs=8, lr=1.0, batch_size=256, warmup_epochs=0, schedule="step")
    rates = [learning_rate(config, epoch) for epoch in (0, 3.9, 4, 5.9, 6, 7.9)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_recipe_is_valid(name: str) -> None:
    config = TrainingConfig.from_recipe(name, init="runs/x")  # `qat` starts from weights
    assert config.recipe == name
    assert TrainingConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_settings_override_the_recipe() -> None:
    config = TrainingConfig.from_recipe("modern", epochs=3, mixup=0.0, flip=None, shortcut="A")
    assert (config.epochs, config.mixup, config.shortcut) == (3, 0.0, Shortcut.A)
    assert config.cutmix == RECIPES["modern"]["cutmix"]


def test_the_default_recipe_depends_on_init() -> None:
    assert TrainingConfig.from_recipe().recipe == "quick"
    assert TrainingConfig.from_recipe(init="a.pth").recipe == "finetune"
    assert TrainingConfig.from_recipe("paper", init="a.pth").lr == 0.1


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(SettingError, match="no recipe 'unknown'") as caught:
        TrainingConfig.from_recipe("unknown")
    assert "choose from quick, paper, modern, finetune" in str(caught.value.hint)


def test_the_learning_rate_is_proportional_to_the_batch_size() -> None:
    rates = [
        learning_rate(TrainingConfig(batch_size=size, lr=0.1), 1.0) for size in (64, 256, 1024)
    ]
    assert rates == pytest.approx([0.025, 0.1, 0.4])


@given(st.integers(1, 50), st.floats(0, 10), st.floats(0, 1))
def test_the_learning_rate_stays_between_zero_and_its_maximum(
    epochs: int, warmup: float, done: float
) -> None:
    config = TrainingConfig(epochs=epochs, warmup_epochs=warmup, batch_size=256)
    assert 0 <= learning_rate(config, done * epochs) <= config.lr * (1 + 1e-12)


def test_the_documentation_shows_the_recipes_as_they_are() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text()
    lines = page.split("## Recipes\n")[1].split("\n## ")[0].splitlines()
    cells = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    table = {row[0]: dict(zip(cells[0][1:], row[1:])) for row in cells[2:]}
    for name in RECIPES:
        config = TrainingConfig.from_recipe(name, init="runs/x")  # `qat` starts from weights
        shown = {setting: values[name] for setting, values in table.items()}
        assert shown["epochs"] == str(config.epochs)
        assert shown["image size"] == str(config.image_size)
        assert shown["batch size"] == str(config.batch_size)
        assert float(shown["learning rate for a batch of 256"]) == config.lr
        assert shown["schedule"] == config.schedule
        assert float(shown["warm-up epochs"]) == config.warmup_epochs
        assert float(shown["weight decay"].split(",")[0]) == config.weight_decay
        assert ("all parameters" in shown["weight decay"]) is config.decay_all
        assert float(shown["label smoothing"]) == config.label_smoothing
        assert shown["crop"].split(",")[0] == config.crop
        mixed = [config.randaugment, config.mixup, config.cutmix]
        assert shown["RandAugment, mixup, CutMix"] == (
            ", ".join(map(str, mixed)) if any(mixed) else ""
        )
        assert shown["decay of the average of the weights"] == (
            str(config.ema) if config.ema else ""
        )
