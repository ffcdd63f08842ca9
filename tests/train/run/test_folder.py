"""Tests of the files in a run folder."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from resdeploy.errors import OutputError, TrainingError
from resdeploy.train.config import TrainingConfig
from resdeploy.train.run.curves import draw_curves
from resdeploy.train.run.folder import (
    LATEST,
    EpochMetrics,
    RunPosition,
    TrainingState,
    begin_run,
    load_config,
    load_metrics,
    load_state,
    save_metrics,
    save_state,
    update_latest_link,
)


def metrics(epoch: int) -> EpochMetrics:
    return EpochMetrics(
        epoch=epoch, loss=1 / epoch, val_loss=2 / epoch, accuracy=50.0, lr=0.1,
        images_per_second=10.0, seconds=1.0, waiting=0.1,
    )  # fmt: skip


POSITION = RunPosition(
    epochs_done=3, steps_done=7, loss=0.1 + 0.2, images=56, seconds=1 / 3, waiting_seconds=0.0
)


def test_state_round_trip(tmp_path: Path) -> None:
    # Weights in the channels_last layout must keep their values.
    weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    state = TrainingState(
        position=POSITION,
        model={"w": weight},
        momentum={"w": weight + 1},
        average={"w": weight / 2},
    )
    save_state(tmp_path, state)
    loaded = load_state(tmp_path)
    assert loaded.position == POSITION
    torch.testing.assert_close(loaded.model["w"], weight, rtol=0, atol=0)
    torch.testing.assert_close(loaded.momentum["w"], weight + 1, rtol=0, atol=0)
    torch.testing.assert_close(loaded.average["w"], weight / 2, rtol=0, atol=0)


@pytest.mark.parametrize("data", [b"", b"garbage", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_damaged_state_is_a_training_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "state.safetensors").write_bytes(data)
    with pytest.raises(TrainingError, match="damaged"):
        load_state(tmp_path)


def test_a_missing_state_is_a_training_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="to resume from"):
        load_state(tmp_path)


def test_metrics_are_a_line_per_epoch(tmp_path: Path) -> None:
    assert load_metrics(tmp_path) == []
    save_metrics(tmp_path, [metrics(1), metrics(2)])
    assert load_metrics(tmp_path) == [metrics(1), metrics(2)]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]


@pytest.mark.parametrize("text", ["{", '{"epoch": 1}', "[]"])
def test_damaged_metrics_are_a_training_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(TrainingError, match="damaged"):
        load_metrics(tmp_path)


def test_settings_round_trip(tmp_path: Path) -> None:
    begin_run(tmp_path, TrainingConfig(seed=7))
    assert load_config(tmp_path) == TrainingConfig(seed=7)
    for text in ("", "{"):
        (tmp_path / "state.json").write_text(text)
        with pytest.raises(TrainingError, match="cannot be resumed"):
            load_config(tmp_path)


def test_latest_is_a_relative_link_to_the_newest_run(tmp_path: Path) -> None:
    for name in ("runs/one", "runs/two", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
        update_latest_link(Path(name))
        assert LATEST.resolve() == (tmp_path / name).resolve()
    assert not Path(os.readlink(LATEST)).is_absolute()
    assert sorted(os.listdir("runs")) == ["latest", "one", "two"]


def test_latest_never_replaces_a_folder() -> None:
    LATEST.mkdir(parents=True)
    with pytest.raises(OutputError, match="is not a link"):
        update_latest_link(Path("runs/one"))


@pytest.mark.parametrize("epochs", [1, 5])
@pytest.mark.parametrize("odd", [1.0, float("nan"), float("inf")])
def test_curves_are_a_png_file(tmp_path: Path, epochs: int, odd: float) -> None:
    lines = [metrics(epoch) for epoch in range(1, epochs + 1)]
    lines[0] = dataclasses.replace(lines[0], val_loss=odd)
    draw_curves(lines, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.format == "PNG"
        assert len(image.convert("L").getcolors(256) or []) > 2  # not one flat colour
