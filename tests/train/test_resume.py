"""Tests of resuming a run elsewhere, with other data, and after errors."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from resdeploy.errors import DataError, OutputError
from resdeploy.progress import Advance
from resdeploy.train.config import TrainingConfig
from resdeploy.train.run import folder as run_folder
from resdeploy.train.run import results
from resdeploy.train.trainer import resume, train
from tests.samples import CLASSES, SIZE


@pytest.fixture
def config(image_data: Path, narrow_checkpoint: Path) -> TrainingConfig:
    """Return the settings of one epoch on a copy of the data, with relative paths."""
    shutil.copytree(image_data, "data")
    shutil.copy(narrow_checkpoint, "init.pth")
    return TrainingConfig(
        data="data", init="init.pth", image_size=SIZE, epochs=1, batch_size=30, bf16=False
    )


@contextmanager
def interrupted(what: str, total: int) -> Iterator[Advance]:
    raise KeyboardInterrupt
    yield


def begin(config: TrainingConfig, folder: str = "run") -> Path:
    """Interrupt a run before its first step."""
    with pytest.raises(KeyboardInterrupt):
        train(config, Path(folder), progress=interrupted)
    return Path(folder).absolute()


@pytest.mark.parametrize("settings", [{}, {"freeze": True, "ema": 0.5}], ids=["plain", "frozen"])
def test_a_run_continues_elsewhere_and_without_the_initial_weights(
    config: TrainingConfig, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    config = dataclasses.replace(config, **settings)
    whole = train(config, Path("whole")).run.absolute()
    run = begin(config)
    Path("init.pth").unlink()
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    with pytest.raises(KeyboardInterrupt):  # a second interruption
        resume(run, progress=interrupted)
    resume(run)
    weights = load_file(run / "model.safetensors")
    for name, tensor in load_file(whole / "model.safetensors").items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=0)


def test_two_trainings_do_not_write_one_folder(config: TrainingConfig) -> None:
    refused = []

    @contextmanager
    def start_others(what: str, total: int) -> Iterator[Advance]:
        message = "another training writes to run"
        with pytest.raises(OutputError, match=message) as caught:
            train(config, Path("run"), force=True)
        refused.append(caught.value.hint)
        with pytest.raises(OutputError, match=message) as caught:
            resume(Path("run"))
        refused.append(caught.value.hint)
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        train(config, Path("run"), progress=start_others)
    assert refused == [
        "wait until it ends, or choose another folder with -o",
        "wait until it ends, or stop it with Ctrl-C first",  # `--resume` has no -o
    ]
    assert resume(Path("run")).epochs == 1


def test_another_place_of_the_data_can_be_named(config: TrainingConfig) -> None:
    run = begin(config)
    Path("data").rename("moved")
    with pytest.raises(DataError, match="there is no folder") as caught:
        resume(run)
    assert f"resdeploy train DATA --resume {run}" in str(caught.value.hint)
    with pytest.raises(KeyboardInterrupt):
        resume(run, "moved", progress=interrupted)
    resume(run)  # the new place is stored
    assert json.loads((run / "model.json").read_text())["data"] == str(Path("moved").absolute())


def test_renamed_classes_are_refused(config: TrainingConfig) -> None:
    run = begin(config)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    for split in ("train", "val"):
        Path("data", split, "blue").rename(Path("data", split, "zebra"))
    with pytest.raises(DataError, match=r"lacks the class 'blue' and has .* class 'zebra'"):
        resume(run)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_the_number_of_workers_can_be_changed(config: TrainingConfig) -> None:
    run = begin(dataclasses.replace(config, workers=1))
    resume(run, workers=0)
    assert json.loads((run / "model.json").read_text())["training"]["workers"] == 0


def test_a_run_that_cannot_be_written_is_not_touched(
    config: TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin(config)
    (run / ".state.safetensors.tmp-12").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match=r"cannot write .*state.json: "):
        resume(run)
    assert (run / ".state.safetensors.tmp-12").exists()


# Before the first epoch


def test_too_little_space_is_an_error_before_the_first_epoch(
    config: TrainingConfig, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check that the estimate covers the files of the run, but is not much larger."""
    # The message has whole MB, which are less than a tenth of the files of the larger network.
    config = dataclasses.replace(config, init=str(tiny_checkpoint))
    usage = shutil.disk_usage(".")._replace(free=10**6)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(OutputError, match=r"needs \d+ MB .* 1 MB are free") as caught:
            train(dataclasses.replace(config, ema=0.5), Path("run"))
    assert not Path("run").exists()
    needed = int(str(caught.value).split("needs ")[1].split()[0])
    train(dataclasses.replace(config, ema=0.5), Path("run"))
    sizes = {path.name: path.stat().st_size for path in Path("run").iterdir()}
    # The old state and the new one; a later one may hold the best weights, too.
    written = sum(sizes.values()) + 2 * sizes["model.safetensors"] + sizes["state.safetensors"]
    assert written < needed * 1e6 < 1.1 * written


# At the end


def test_a_full_disk_keeps_the_last_state_and_says_so(
    config: TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = run_folder.save_state, []

    def fill_disk(folder: Path, state: run_folder.TrainingState) -> None:
        calls.append(state.position)
        if len(calls) == 3:
            raise OutputError("cannot write run/state.safetensors: No space left on device", "-")
        save(folder, state)

    monkeypatch.setattr(run_folder, "save_state", fill_disk)
    with pytest.raises(OutputError, match="No space left on device; the state after 1 epoch and 0 "
                       "steps is kept") as caught:  # fmt: skip
        train(dataclasses.replace(config, epochs=2), Path("run"))
    assert str(caught.value.hint).endswith("then continue: resdeploy train --resume run")
    assert run_folder.load_state(Path("run")).position.epochs_done == 1


def test_a_report_that_fails_is_a_warning_after_the_weights_were_written(
    config: TrainingConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        assert Path("run/model.json").exists()
        raise ZeroDivisionError("an error of the report")

    run_folder.LATEST.mkdir(parents=True)  # a folder, which is not replaced
    with monkeypatch.context() as broken, caplog.at_level(logging.WARNING, "resdeploy"):
        broken.setattr(results, "training_page", fail)
        assert train(config, Path("run")).epochs == 1
    assert "run/report.html was not written, but run is complete: an error of" in caplog.text
    assert "runs/latest was not written, but run is complete: runs/latest is not" in caplog.text
    resume(Path("run"))
    assert Path("run/report.html").exists()


def test_file_names_that_are_not_utf8_do_not_lose_the_run(config: TrainingConfig) -> None:
    for split in ("train", "val"):
        for label in CLASSES:
            folder = f"data/{split}/{label}".encode()
            with open(folder + b"/bad\xff.png", "wb") as file:
                file.write(b"no image")
            for name in os.listdir(folder):  # any of them may be among the worst mistakes
                if b"bad" not in name:
                    os.rename(folder + b"/" + name, folder + b"/\xfe" + name)
    assert train(config, Path("run")).unreadable == 6
    assert Path("run/unreadable.txt").read_bytes().count(b"/bad\xff.png\n") == 6
    assert Path("run/report.html").exists()
