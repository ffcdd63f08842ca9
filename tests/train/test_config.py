"""Settings of a run, and the course of the learning rate."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resdeploy.train.architecture import Shortcut
from resdeploy.train.config import TrainingConfig, learning_rate


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
    ],
)
def test_nonsense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        TrainingConfig(**wrong)  # type: ignore[arg-type]


def test_the_rate_rises_to_its_highest_and_falls_to_zero() -> None:
    config = TrainingConfig(epochs=10, lr=0.4, batch_size=256, warmup_epochs=2)
    assert learning_rate(config, 0) == 0
    assert learning_rate(config, 1) == pytest.approx(0.2)
    assert learning_rate(config, 2) == pytest.approx(0.4)
    assert learning_rate(config, 6) == pytest.approx(0.2)  # half of the cosine
    assert learning_rate(config, 10) == pytest.approx(0)


def test_the_rate_is_in_proportion_to_the_batch() -> None:
    rates = [
        learning_rate(TrainingConfig(batch_size=size, lr=0.1), 1.0) for size in (64, 256, 1024)
    ]
    assert rates == pytest.approx([0.025, 0.1, 0.4])


@given(st.integers(1, 50), st.floats(0, 10), st.floats(0, 1))
def test_the_rate_is_never_negative_nor_above_its_highest(
    epochs: int, warmup: float, done: float
) -> None:
    config = TrainingConfig(epochs=epochs, warmup_epochs=warmup, batch_size=256)
    assert 0 <= learning_rate(config, done * epochs) <= config.lr * (1 + 1e-12)
