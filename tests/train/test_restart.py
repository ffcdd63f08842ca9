"""Tests of resuming after a kill and after a full disk."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from resdeploy.train.config import TrainingConfig
from resdeploy.train.run import folder as run_folder
from resdeploy.train.run.record import STATE_JSON
from resdeploy.train.trainer import resume, train
from tests.forked import COMMAND, FULL_DISK, Forked
from tests.samples import SIZE

# The process kills itself, so that the moment does not depend on the load of the machine: before
# the state is replaced for the n-th time, or a while after it.
KILLED = """
import os, signal, sys, threading
from resdeploy.train.run.folder import STATE_FILE
left, seconds, replace = int(sys.argv.pop(1)), float(sys.argv.pop(1)), os.replace
def replace_and_count(source, target):
    global left
    left -= os.path.basename(target) == STATE_FILE
    if left == 0 and not seconds:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
    if left == 0:
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
os.replace = replace_and_count
"""
KILLS = ((4, 0), (6, 0.03), (4, 0))
"""States, and seconds after the last of them; a step takes about 0.05 s."""


def finish(*arguments: object) -> None:
    process = Forked("train", *arguments)
    _, errors = process.communicate()
    assert process.returncode == 0, errors


@pytest.mark.slow
def test_a_run_that_was_killed_three_times_gives_identical_weights(
    image_data: Path, narrow_checkpoint: Path
) -> None:
    settings = (
        image_data, "--init", narrow_checkpoint, "--epochs", 3, "--batch-size", 8, "--ema", 0.9,
        "--mixup", 0.2, "--randaugment", 5, "--save-minutes", 0,
    )  # fmt: skip
    finish(*settings, "-o", "whole")
    positions = []
    for attempt, kill in enumerate(KILLS):
        arguments = ("--resume", "broken") if attempt else (*settings, "-o", "broken")
        process = Forked(*kill, "train", *arguments, code=KILLED + COMMAND)
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors
        positions.append(run_folder.load_state(Path("broken")).position)
    steps = [
        8 * position.epochs_done + position.steps_done for position in positions
    ]  # 60 images by 8
    assert 0 < steps[0] < steps[1] < steps[2] < 24
    finish("--resume", "broken")
    whole, broken = (load_file(f"{name}/model.safetensors") for name in ("whole", "broken"))
    assert whole.keys() == broken.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, broken[name], rtol=0, atol=0)
    for expected, found in zip(
        *(run_folder.load_metrics(Path(name), 3) for name in ("whole", "broken"))
    ):
        assert (found.loss, found.val_loss) == (expected.loss, expected.val_loss)
    assert not list(Path("broken").glob(".*"))  # temporary files of the killed processes are gone


@pytest.mark.slow
def test_the_last_state_survives_a_full_disk(image_data: Path, narrow_checkpoint: Path) -> None:
    config = TrainingConfig(
        data=str(image_data), init=str(narrow_checkpoint), image_size=SIZE, epochs=1, batch_size=30
    )
    train(config, Path("run"))
    before = (Path("run") / run_folder.STATE_FILE).read_bytes()
    document = Path("run") / STATE_JSON
    document.write_text(document.read_text().replace('"epochs": 1', '"epochs": 2'))
    process = Forked("train", "--resume", "run", code=FULL_DISK + COMMAND)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "error: cannot write run/state.safetensors" in errors
    assert "the state after 1 epoch and 0 steps is kept" in errors
    assert "free some space" in errors
    assert (Path("run") / run_folder.STATE_FILE).read_bytes() == before
    assert not list(Path("run").glob(".*"))
    resume(Path("run"))  # without the limit
    assert len(run_folder.load_metrics(Path("run"), 2)) == 2


def test_killed_workers_are_one_error_with_the_command_to_continue(
    image_data: Path, narrow_checkpoint: Path
) -> None:
    """Kill the workers for training and those for validation at once, as a lack of memory may."""
    settings = ("--epochs", 1000, "--batch-size", 4, "--workers", 2, "-o", "run")
    process = Forked(
        "train", image_data, "--init", narrow_checkpoint, "--image-size", 32, *settings
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while len(workers := children.read_text().split()) < 4:
        assert process.returncode is None
        time.sleep(0.01)
    for worker in workers:
        os.kill(int(worker), signal.SIGKILL)
    output, errors = process.communicate()
    # Before the error are the header of the table, and PyTorch's warning of too many workers.
    lines = iter(errors.splitlines())
    error = next((line for line in lines if line.startswith("error: ")), "")
    # Which of the two PyTorch notices first depends on the moment.
    assert re.match(
        r"error: (process \d+, which|a process that) decoded images,? was killed", error
    )
    assert next(lines) == "hint: to continue with fewer: resdeploy train --resume run --workers 1"
    assert (process.returncode, output, [*lines]) == (1, "", [])
