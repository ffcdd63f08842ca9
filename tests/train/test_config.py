"""Tests of the settings of a run and of the learning rate."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resdeploy.train.config import TrainingConfig, learning_rate
from resdeploy.train.model.architecture import Shortcut
from resdeploy.train.recipes import RECIPES


def test_json_round_trip() -> None:
    config = TrainingConfig(shortcut=Shortcut.PLAIN, epochs=3, flip=False, init="a.pth")
    assert TrainingConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


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
        {"freeze": True},
    ],
)
def test_rejects_impossible_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        TrainingConfig(**wrong)


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
    with pytest.raises(ValueError, match="choose from quick, paper, modern, finetune"):
        TrainingConfig.from_recipe("unknown")


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
