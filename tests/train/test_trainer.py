"""Tests of the trainer on a small network: learning, resuming, errors and single steps."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.utils.class_weight import compute_class_weight
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from resdeploy.bundle.bundle import open_bundle
from resdeploy.cli.options.console import terminable
from resdeploy.cli.train import training_text
from resdeploy.errors import DataError, Interrupted, OutputError, TrainingError, end_command
from resdeploy.export.pipeline import ExportConfig, export
from resdeploy.images.class_folders import LabelledImages
from resdeploy.progress import Advance, Progress
from resdeploy.runtime.verification.verify import verify
from resdeploy.train import trainer
from resdeploy.train.checkpoint.load import load_checkpoint
from resdeploy.train.config import TrainingConfig, learning_rate
from resdeploy.train.evaluation import Evaluation, evaluate
from resdeploy.train.initialization import (
    balanced_weights,
    initial_network,
    make_optimizer,
)
from resdeploy.train.model.architecture import Architecture, Shortcut
from resdeploy.train.run import folder as run_folder
from resdeploy.train.run import progress_table
from resdeploy.train.run.failures import explained_failures
from resdeploy.train.run.folder import RunPosition, default_folder
from resdeploy.train.trainer import resume, train
from tests.samples import CLASSES, SIZE, TINY
from tests.train.learners import make_batch, make_learner


@pytest.fixture(autouse=True)
def _ctrl_c() -> Iterator[None]:
    """Let SIGINT interrupt, although a shell starts commands in the background without it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def config(image_data: Path, tiny_checkpoint: Path) -> TrainingConfig:
    """Return the settings of three short epochs of the small network."""
    return TrainingConfig(
        data=str(image_data), init=str(tiny_checkpoint), image_size=SIZE, epochs=3, batch_size=8
    )


class Interruption(Exception):
    pass


@contextmanager
def interrupted_in_epoch_2(what: str, total: int) -> Iterator[Advance]:
    def advance(done: int) -> None:
        if what == "epoch 2":
            raise Interruption

    yield advance


def test_training_learns_and_writes_a_run_folder(config: TrainingConfig) -> None:
    result = train(config, Path("runs/one"))
    # With three classes, guessing gives 33 %.
    assert result.accuracy > 90
    assert result.images_per_second > 0
    assert sorted(path.name for path in result.run.iterdir()) == [
        "metrics.jsonl", "model.json", "model.safetensors", "report.html",
        "state.json", "state.safetensors",
    ]  # fmt: skip
    assert run_folder.LATEST.resolve() == result.run.resolve()
    description = json.loads((result.run / "model.json").read_text())
    assert description["labels"] == list(CLASSES)
    assert description["training"]["seed"] == 0
    assert description["metrics"]["accuracy"] == result.accuracy
    assert description["provenance"]["versions"]["torch"]
    lines = run_folder.load_metrics(result.run, 3)
    assert [line.epoch for line in lines] == [1, 2, 3]
    assert lines[-1].loss < lines[0].loss
    assert load_checkpoint(run_folder.LATEST).architecture == TINY


@pytest.mark.parametrize(
    "settings",
    [{}, {"ema": 0.9, "mixup": 0.2, "cutmix": 1.0, "randaugment": 9, "class_weights": True}],
    ids=["plain", "everything"],
)
def test_a_resumed_run_gives_identical_weights(
    config: TrainingConfig, settings: dict[str, Any]
) -> None:
    config = dataclasses.replace(config, **settings)
    train(config, Path("whole"))
    with pytest.raises(Interruption):
        train(config, Path("broken"), progress=interrupted_in_epoch_2)
    assert not Path("broken/model.json").exists()
    resume(Path("broken"))
    whole, broken = (load_file(f"{name}/model.safetensors") for name in ("whole", "broken"))
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, broken[name], rtol=0, atol=0)
    assert len(run_folder.load_metrics(Path("broken"), 3)) == 3


def test_resuming_a_finished_run_changes_no_weights(config: TrainingConfig) -> None:
    train(dataclasses.replace(config, epochs=1), Path("one"))
    before = load_file("one/model.safetensors")
    resume(Path("one"))
    for name, tensor in load_file("one/model.safetensors").items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_the_weights_depend_only_on_the_seed(
    config: TrainingConfig,
) -> None:
    short = dataclasses.replace(config, epochs=1)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(dataclasses.replace(short, seed=seed), Path(name))
    a, b, c = (load_file(f"{name}/model.safetensors")["fc.weight"] for name in "abc")
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_the_default_network_is_a_resnet34() -> None:
    with torch.device("meta"):
        network = initial_network(TrainingConfig(), CLASSES).network
    assert network.architecture == Architecture(classes=3)


def test_divergence_is_an_error_with_a_hint(config: TrainingConfig) -> None:
    diverging = dataclasses.replace(config, lr=1e30)
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf)") as caught:
        train(diverging, Path("run"))
    assert "--lr" in str(caught.value.hint)
    assert not Path("run/model.json").exists()
    assert not run_folder.LATEST.exists()


def test_divergence_names_the_step_and_the_last_saved_state(
    config: TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate = learning_rate
    monkeypatch.setattr(
        trainer, "learning_rate", lambda config, done: 1e30 if done >= 1.4 else rate(config, done)
    )
    # An epoch has 8 steps; the weights are infinite after the fifth step of the second epoch.
    with pytest.raises(TrainingError, match=r"in epoch 2, step [56]; .* after 1 epoch and 0 steps"):
        train(config, Path("run"))
    assert run_folder.load_state(Path("run")).position == run_folder.RunPosition(epochs_done=1)


def test_tensorboard_holds_every_epoch_once(config: TrainingConfig) -> None:
    config = dataclasses.replace(config, tensorboard=True, epochs=2)
    with pytest.raises(Interruption):
        train(config, Path("one"), progress=interrupted_in_epoch_2)
    resume(Path("one"))
    events = EventAccumulator(str(Path("one/tensorboard"))).Reload()
    for name in ("loss", "accuracy"):
        found = {event.step: event.value for event in events.Scalars(name)}
        expected = {
            line.epoch: getattr(line, name) for line in run_folder.load_metrics(Path("one"), 2)
        }
        assert found == pytest.approx(expected, rel=1e-6)  # event files hold float32


@pytest.mark.slow
@pytest.mark.slow
def test_names_that_are_not_utf_8_are_written_everywhere(
    config: TrainingConfig, image_data: Path, tmp_path: Path
) -> None:
    name = os.fsdecode("照片".encode("gbk"))
    data = tmp_path / f"data {name}"
    for split in ("train", "val"):
        shutil.copytree(image_data / split / "blue", data / split / name)
        shutil.copytree(image_data / split / "red", data / split / "a\nb")
        for path in sorted((data / split).glob("*/*.png")):
            path.rename(path.with_name(name + path.name))
        (data / split / name / f"{name}.png").write_bytes(b"damaged")
    config = dataclasses.replace(config, data=str(data), epochs=2, tensorboard=True)
    run = default_folder(str(data))
    with pytest.raises(Interruption):
        train(config, run, progress=interrupted_in_epoch_2)
    resume(run)
    assert load_checkpoint(run).labels == (r"a\x0ab", r"\xd5\xd5Ƭ")
    assert (run / "unreadable.txt").read_bytes().count(b"\n") == 2
    assert r"\xd5\xd5Ƭ" in (run / "report.html").read_text()
    output = tmp_path / f"{name}.bundle"
    bundle = open_bundle(export(ExportConfig(source=run, int8=True, output=output)).bundle)
    assert bundle.labels() == (r"a\x0ab", r"\xd5\xd5Ƭ")
    assert verify(bundle, data=data).images == 16


def test_trains_on_unusual_image_formats(config: TrainingConfig, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    pictures = {
        "deep.png": Image.fromarray(generator.integers(0, 65535, (40, 30), dtype=np.uint16)),
        "print.jpg": Image.new("CMYK", (300, 200), (200, 0, 0, 0)),
        "palette.png": Image.new("P", (9, 70)),
        "glass.webp": Image.new("RGBA", (33, 33), (1, 2, 3, 4)),
        "point.bmp": Image.new("RGB", (1, 1)),
        "line.jpg": Image.new("L", (500, 1)),
    }
    for split in ("train", "val"):
        for label in CLASSES:
            (tmp_path / split / label).mkdir(parents=True)
            for name, picture in pictures.items():
                picture.save(tmp_path / split / label / name)
    for crop in ("area", "scale"):
        changed = dataclasses.replace(config, data=str(tmp_path), epochs=1, crop=crop)
        assert train(changed, Path(crop)).unreadable == 0


def test_replacing_a_run_needs_force(config: TrainingConfig) -> None:
    short = dataclasses.replace(config, epochs=1)
    train(short, Path("one"))
    with pytest.raises(OutputError, match="exists already"):
        train(short, Path("one"))
    train(short, Path("one"), force=True)


def test_the_advice_about_a_slow_epoch_is_a_message_of_its_own(
    config: TrainingConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress_table, "SLOWER", 1e-9)  # the first epoch is slow, too
    with caplog.at_level(logging.INFO, "resdeploy"):
        train(dataclasses.replace(config, epochs=2), Path("one"))
    messages = [record.getMessage() for record in caplog.records]
    assert not any("\n" in message for message in messages)
    assert any(message.startswith("the images of epoch 1 took ") for message in messages)


def test_a_damaged_training_image_is_skipped_and_counted(
    config: TrainingConfig, tmp_path: Path, image_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = shutil.copytree(image_data, tmp_path / "data")
    victim = data / "train" / "red" / "000.png"
    victim.write_bytes(victim.read_bytes()[:100])
    with caplog.at_level(logging.WARNING, "resdeploy"):
        train(dataclasses.replace(config, data=str(data), epochs=2, batch_size=2), Path("one"))
    assert caplog.text.count("red/000.png: it cannot be decoded") == 1
    description = json.loads(Path("one/model.json").read_text())
    assert description["metrics"]["unreadable"] == 1
    assert Path("one/unreadable.txt").read_text() == f"{victim}\n"
    assert "Files that could not be decoded: 1<" in Path("one/report.html").read_text()


def test_other_pictures_are_counted_in_the_run_and_in_the_output(
    config: TrainingConfig, tmp_path: Path, image_data: Path
) -> None:
    data = shutil.copytree(image_data, tmp_path / "data")
    for split, suffix in (("train", ".tif"), ("train", ".gif"), ("val", ".tif")):
        (data / split / "red" / f"more{suffix}").touch()
    result = train(dataclasses.replace(config, data=str(data), epochs=1), Path("one"))
    assert result.passed_over == {".tif": 2, ".gif": 1}
    assert json.loads(Path("one/model.json").read_text())["metrics"]["passed_over"] == {
        ".tif": 2, ".gif": 1,
    }  # fmt: skip
    assert "passed over 3 files (.tif 2, .gif 1)" in training_text(result)


def test_ctrl_c_prints_the_command_to_resume(
    config: TrainingConfig, caplog: pytest.LogCaptureFixture
) -> None:
    @contextmanager
    def interrupted(what: str, total: int) -> Iterator[Advance]:
        raise KeyboardInterrupt
        yield

    with caplog.at_level(logging.INFO, "resdeploy"), pytest.raises(KeyboardInterrupt):
        train(config, Path("runs/one"), progress=interrupted)
    assert (
        "interrupted; saved after 0 epochs and 0 steps (what came later is lost); "
        "to continue: resdeploy train --resume runs/one" in caplog.text
    )
    with pytest.raises(TrainingError, match="no epoch of it has been evaluated"):
        resume(Path("runs/one"), finish=True)
    assert resume(Path("runs/one")).epochs == config.epochs


def signals(epoch: str, *numbers: int) -> Progress:
    """Return a progress that sends signals to this process in the second step of an epoch."""

    @contextmanager
    def progress(what: str, total: int) -> Iterator[Advance]:
        left = [(), numbers]

        def advance(done: int) -> None:
            for number in left.pop(0) if what == epoch and left else ():
                os.kill(os.getpid(), number)

        yield advance

    return progress


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 1, "interrupted"), (signal.SIGTERM, 143, "termin")]
)
def test_a_signal_saves_the_step_and_a_run_can_continue_or_finish(
    quick: TrainingConfig, number: int, code: int, word: str
) -> None:
    config = dataclasses.replace(quick, epochs=2, batch_size=20)
    before = signal.getsignal(number)
    train(config, Path("whole"))
    with pytest.raises(Interrupted, match=f"{word}.*; saved after 1 epoch and 2 steps; ") as caught:
        train(config, Path("run"), progress=signals("epoch 2", number))
    assert caught.value.code == code
    assert str(caught.value).endswith("with the best epoch so far: "
                                      "resdeploy train --resume run --finish")  # fmt: skip
    assert signal.getsignal(number) is before
    shutil.copytree("run", "short")
    result = resume(Path("short"), finish=True)
    assert (result.epochs, result.best_epoch) == (1, 1)
    assert result.stopped == "it was ended with --finish"
    best = run_folder.load_state(Path("run")).best
    for name, tensor in load_file("short/model.safetensors").items():
        assert torch.equal(tensor, best[name])
    resume(Path("run"))
    for name, tensor in load_file("whole/model.safetensors").items():
        assert torch.equal(tensor, load_file("run/model.safetensors")[name])


def test_a_signal_during_the_validation_saves_the_whole_epoch(
    quick: TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: Any) -> Evaluation:
        os.kill(os.getpid(), signal.SIGINT)
        return evaluate(*arguments)

    with monkeypatch.context() as interrupting:
        interrupting.setattr(trainer, "evaluate", interrupt)
        with pytest.raises(Interrupted, match="saved after 0 epochs and 2 steps"):
            train(dataclasses.replace(quick, epochs=1), Path("run"))
    assert resume(Path("run")).epochs == 1


def test_a_second_signal_ends_the_training_at_once(quick: TrainingConfig) -> None:
    with pytest.raises(Interrupted, match=r"saved after 0 epochs and 0 steps .what came later is"):
        train(quick, Path("run"), progress=signals("epoch 1", signal.SIGTERM, signal.SIGINT))


@pytest.mark.parametrize(
    ("count", "lost"), [(1, "steps; to con"), (2, "steps .what came later is")]
)
def test_a_training_saves_although_the_command_handles_sigterm(
    quick: TrainingConfig, monkeypatch: pytest.MonkeyPatch, count: int, lost: str
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with terminable():
        assert signal.getsignal(signal.SIGTERM) is end_command
        with pytest.raises(Interrupted, match=rf"terminated; saved after 0 .*{lost}") as caught:
            train(quick, Path("run"), progress=signals("epoch 1", *(count * [signal.SIGTERM])))
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    monkeypatch.setenv("WORLD_SIZE", "2")
    with terminable():
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_one_of_several_processes_does_not_wait_for_the_others() -> None:
    with explained_failures(Path("run"), RunPosition, print):
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_rejects_data_without_an_intact_training_image(
    config: TrainingConfig, tmp_path: Path, image_data: Path
) -> None:
    data = shutil.copytree(image_data, tmp_path / "data")
    for picture in data.rglob("train/**/*.png"):
        picture.write_bytes(b"")
    with pytest.raises(DataError, match=r"no batch has enough .* is empty"):
        train(dataclasses.replace(config, data=str(data)), Path("one"))


def test_a_damaged_validation_image_is_skipped_and_counted(
    config: TrainingConfig, tmp_path: Path, image_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = shutil.copytree(image_data, tmp_path / "data")
    (data / "val" / "red" / "000.png").write_bytes(b"")
    with caplog.at_level(logging.WARNING, "resdeploy"):
        result = train(dataclasses.replace(config, data=str(data), epochs=1), Path("one"))
    assert "red/000.png: it is empty" in caplog.text
    assert result.unreadable == 1
    assert "skipped 1 image that could not be decoded" in training_text(result)


def test_the_shortcut_must_be_that_of_the_initial_weights(config: TrainingConfig) -> None:
    with pytest.raises(TrainingError, match="is a resnet10"):
        train(dataclasses.replace(config, shortcut=Shortcut.A), Path("one"))
    assert train(dataclasses.replace(config, shortcut=Shortcut.B, epochs=1), Path("two")).epochs


def test_another_number_of_classes_gives_a_new_head(tiny_checkpoint: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    config = TrainingConfig(init=str(tiny_checkpoint))
    network = initial_network(config, tuple("abcdefg")).network
    assert network.architecture.classes == network.fc.out_features == 7
    assert network.architecture.blocks == TINY.blocks
    assert torch.equal(network.conv1.weight, checkpoint.state["conv1.weight"])
    same = initial_network(config, CLASSES).network
    assert torch.equal(same.fc.weight, checkpoint.state["fc.weight"])


def test_default_folders_are_named_after_the_data() -> None:
    assert default_folder("some/where/flowers/").name.startswith("flowers-")
    assert default_folder("digits").parent == run_folder.RUNS


# The best epoch and the end of a run


class Course:
    """Validation results in place of those of the network; the n-th is the accuracy of epoch n."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *accuracies: int) -> None:
        self.left, self.weights = list(accuracies), list[torch.Tensor]()
        monkeypatch.setattr(trainer, "evaluate", self)

    def __call__(self, model: Any, batches: Any, classes: int, process: Any) -> Evaluation:
        """Use up the batches, as an evaluation does."""
        assert sum(len(batch.labels) for batch in batches) == 24
        self.weights.append(model.network.fc.weight.clone())
        right = self.left.pop(0)
        confusion = np.zeros((classes, classes), np.int64)
        confusion[0, :2] = right, 100 - right
        return Evaluation(loss=1.0, confusion=confusion, worst=(), unreadable={})


@pytest.fixture
def quick(image_data: Path, narrow_checkpoint: Path) -> TrainingConfig:
    """Return the settings of nine epochs of two steps of a narrow network."""
    return TrainingConfig(
        data=str(image_data), init=str(narrow_checkpoint), image_size=SIZE, epochs=9,
        batch_size=30, bf16=False,
    )  # fmt: skip


@pytest.mark.parametrize("settings", [{}, {"ema": 0.5}], ids=["plain", "averaged"])
def test_the_best_epoch_is_saved_also_after_an_interruption(
    quick: TrainingConfig, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    quick = dataclasses.replace(quick, epochs=4, save_minutes=0, **settings)

    @contextmanager
    def interrupted_in_epoch_4(what: str, total: int) -> Iterator[Advance]:
        def advance(done: int) -> None:
            left.append(done)
            if what == "epoch 4" and len(left) == 2:  # after the state of the first step was saved
                raise Interruption

        left: list[int] = []
        yield advance

    course = Course(monkeypatch, 50, 70, 60)
    with pytest.raises(Interruption):
        train(quick, Path("run"), progress=interrupted_in_epoch_4)
    assert run_folder.load_state(Path("run")).position.steps_done == 1
    course.left = [40, 70]  # epoch 4, and the saved network once more
    result = resume(Path("run"))
    assert (result.best_epoch, result.epochs, result.accuracy) == (2, 4, 70)
    saved = load_file("run/model.safetensors")["fc.weight"]
    assert torch.equal(saved, course.weights[1])
    assert torch.equal(course.weights[-1], saved)
    assert json.loads(Path("run/model.json").read_text())["metrics"] == {
        "accuracy": 70.0, "epochs": 4, "planned_epochs": 4, "best_epoch": 2, "stopped": None,
        "baseline_accuracy": pytest.approx(100 / 3), "train_images": 60, "val_images": 24,
        "held_out": False, "unreadable": 0, "passed_over": {},
    }  # fmt: skip
    assert "saved network is that of epoch 2, the most accurate one" in training_text(result)


def test_of_equal_epochs_the_last_is_saved(
    quick: TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    course = Course(monkeypatch, 70, 70)
    train(dataclasses.replace(quick, epochs=2), Path("run"))
    assert torch.equal(load_file("run/model.safetensors")["fc.weight"], course.weights[1])


@pytest.mark.parametrize(
    ("settings", "accuracies", "reason"),
    [
        ({"target_accuracy": 70.0}, (50, 60, 75), "the target accuracy of 70 % is reached"),
        ({"patience": 2}, (70, 50, 50), "neither top-1 accuracy nor loss has improved in 2 epochs"),
    ],
)
def test_a_run_stops_early_says_so_and_stays_stopped(
    quick: TrainingConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    settings: dict[str, Any],
    accuracies: tuple[int, ...],
    reason: str,
) -> None:
    caplog.set_level(logging.INFO, "resdeploy")
    course = Course(monkeypatch, *accuracies)
    result = train(dataclasses.replace(quick, **settings), Path("run"))
    assert (result.epochs, result.planned_epochs, result.stopped) == (3, 9, reason)
    assert reason not in caplog.text  # it is said once, with the result
    assert f"stopped before epoch 9: {reason}" in training_text(result)
    course.left = [max(accuracies)]
    again = resume(Path("run"))
    assert (again.epochs, again.stopped, again.accuracy) == (3, reason, result.accuracy)


def test_the_progress_of_an_epoch_ends_at_all_its_images(quick: TrainingConfig) -> None:
    done: dict[str, list[int]] = {}

    @contextmanager
    def record(what: str, total: int) -> Iterator[Advance]:
        done[what] = [total]
        yield done[what].append

    train(dataclasses.replace(quick, epochs=2, batch_size=28), Path("run"), progress=record)
    assert done == {
        "epoch 1": [60, 28, 16, 16], "epoch 2": [60, 28, 16, 16], "validating": [1, 1]
    }  # fmt: skip


def test_the_baseline_and_doubts_are_logged(
    quick: TrainingConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "resdeploy")
    Course(monkeypatch, 33, 33)
    notes = iter(["the stem is small"])
    monkeypatch.setattr("resdeploy.train.defaults.notes_on", lambda *_: notes)
    result = train(dataclasses.replace(quick, epochs=1), Path("run"))
    assert "next: resdeploy export" not in training_text(result)
    assert "always predicting 'blue' has an accuracy of 33.33 %" in caplog.text
    assert "training has only 2 steps" in caplog.text
    assert "no better than always predicting one class" in caplog.text
    report = Path("run/report.html").read_text()
    assert "no better than always predicting one class" in report
    assert "<li>The stem is small.</li>" in report


def test_the_held_out_images_are_recorded_and_used_again(
    quick: TrainingConfig, image_data: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(image_data / "train", tmp_path / "photos")
    with pytest.raises(Interruption):
        train(dataclasses.replace(quick, data=str(data), epochs=2), Path("run"),
              progress=interrupted_in_epoch_2)  # fmt: skip
    assert run_folder.load_state(Path("run")).position.epochs_done == 1
    result = resume(Path("run"))
    assert (result.held_out, result.train_images, result.val_images) == (True, 48, 12)
    assert "measured on 12 validation images" in training_text(result)
    document = Path("run/state.json")
    document.write_text(document.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(DataError, match="has files with other names or classes in train"):
        resume(Path("run"))


def test_a_run_among_the_images_is_refused(quick: TrainingConfig, image_data: Path) -> None:
    with pytest.raises(OutputError, match="is among the images"):
        train(quick, image_data / "train" / "runs" / "x")


# Fine-tuning


def test_a_frozen_network_trains_only_its_head(config: TrainingConfig) -> None:
    before = load_checkpoint(Path(str(config.init))).state
    train(dataclasses.replace(config, freeze=True, epochs=1), Path("frozen"))
    after = load_file("frozen/model.safetensors")
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {"fc.weight", "fc.bias"}  # batch-norm statistics are frozen, too


def test_class_weights_equal_those_of_scikit_learn() -> None:
    labels = (0,) * 10 + (1,) * 5 + (2,)
    images = LabelledImages(
        classes=("a", "b", "c"), files=tuple(Path(f"{i}") for i in range(16)), labels=labels
    )
    independent = compute_class_weight("balanced", classes=np.arange(3), y=np.array(labels))
    # Quotients of small integers in float32 and float64 differ by one rounding, 2^-24.
    np.testing.assert_allclose(balanced_weights(images).numpy(), independent, rtol=2**-23)


def test_the_average_of_the_weights_is_evaluated_and_saved(config: TrainingConfig) -> None:
    """Check with a decay near 1, which keeps the average at the weights of the first step."""
    train(dataclasses.replace(config, ema=0.999999, epochs=1), Path("averaged"))
    train(dataclasses.replace(config, epochs=1), Path("last"))
    start = load_checkpoint(Path(str(config.init))).state["fc.weight"]
    averaged, last = (
        load_file(f"{name}/model.safetensors")["fc.weight"] for name in ("averaged", "last")
    )
    assert 0 <= (averaged - start).norm() < 0.5 * (last - start).norm()


def test_decay_all_includes_biases_and_norms() -> None:
    config = TrainingConfig(weight_decay=0.1)
    network = initial_network(config, CLASSES).network
    for decay_all, expected in ((False, {0.1, 0.0}), (True, {0.1})):
        optimizer = make_optimizer(network, dataclasses.replace(config, decay_all=decay_all))
        assert {group["weight_decay"] for group in optimizer.param_groups} == expected
        counted = sum(len(group["params"]) for group in optimizer.param_groups)
        assert counted == len(list(network.parameters()))


# Steps


def test_the_fused_optimiser_gives_the_weights_of_the_plain_one(config: TrainingConfig) -> None:
    """Check the memory layout, which the fused optimiser requires to be that of the weights."""
    config = dataclasses.replace(config, bf16=False)
    fused, plain = make_learner(config), make_learner(config)
    for group in plain.optimizer.param_groups:
        group["fused"], group["foreach"] = False, False
    for step in range(3):
        for learner in (fused, plain):
            learner.step(make_batch(8, step), 0.05, np.random.default_rng(0))
    for name, tensor in plain.network.state_dict().items():
        # The same few products and sums in float32, whose last bits each step amplifies slightly.
        torch.testing.assert_close(fused.network.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)


def test_accumulated_parts_give_the_gradient_of_the_whole_batch(config: TrainingConfig) -> None:
    """Freeze batch norm, whose statistics would be those of a part."""
    config = dataclasses.replace(config, bf16=False, class_weights=True)
    results = []
    for parts in (1, 3):
        learner = make_learner(dataclasses.replace(config, accumulate=parts))
        learner.network.eval()
        loss, images = learner.step(make_batch(8), 0.05, np.random.default_rng(0)).tolist()
        assert images == 8
        results.append((loss, learner.network.fc.weight.detach()))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)  # float32 sums of 8 losses
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-4, atol=1e-6)


def test_rejects_or_skips_a_batch_too_small_for_its_parts(config: TrainingConfig) -> None:
    with pytest.raises(TrainingError, match="is too small for 1 processes") as caught:
        make_learner(dataclasses.replace(config, batch_size=6, accumulate=4))
    assert "--batch-size 8" in str(caught.value.hint)
    learner = make_learner(dataclasses.replace(config, accumulate=4))
    before = learner.network.fc.weight.detach().clone()
    assert learner.step(make_batch(1), 0.05, np.random.default_rng(0)).tolist() == [0, 0]
    assert torch.equal(learner.network.fc.weight, before)
    # A smaller batch, such as the last one of an epoch, has fewer parts.
    assert learner.step(make_batch(7), 0.05, np.random.default_rng(0)).tolist()[1] == 7
