"""The training loop on a small network: it learns, it can be interrupted, it says what is wrong."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
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

from resdeploy.cli.train import training_text
from resdeploy.errors import DataError, OutputError, TrainingError
from resdeploy.images.folder import LabelledImages
from resdeploy.progress import Advance
from resdeploy.train.config import TrainingConfig, learning_rate
from resdeploy.train.initialization import (
    balanced_weights,
    initial_network,
    make_optimizer,
    network_from_checkpoint,
)
from resdeploy.train.model.architecture import Architecture, Shortcut
from resdeploy.train.model.checkpoint import load_checkpoint
from resdeploy.train.run import folder as run_folder
from resdeploy.train.trainer import default_folder, resume, train
from tests.samples import CLASSES, SIZE, TINY
from tests.train.learners import batch_of, learner


@pytest.fixture
def config(image_data: Path, tiny_checkpoint: Path) -> TrainingConfig:
    """Three short epochs of the small network."""
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


def test_it_learns_and_leaves_a_run(config: TrainingConfig) -> None:
    result = train(config, Path("runs/one"))
    # Three colours: chance is 33 %, and a network that learns at all tells them apart.
    assert result.accuracy > 90
    assert result.images_per_second > 0
    assert sorted(path.name for path in result.run.iterdir()) == [
        "curves.png", "metrics.jsonl", "model.json", "model.safetensors", "report.html",
        "state.json", "state.safetensors",
    ]  # fmt: skip
    assert run_folder.LATEST.resolve() == result.run.resolve()
    description = json.loads((result.run / "model.json").read_text())
    assert description["labels"] == list(CLASSES)
    assert description["training"]["seed"] == 0
    assert description["metrics"]["accuracy"] == result.accuracy
    assert description["provenance"]["versions"]["torch"]
    lines = run_folder.load_metrics(result.run)
    assert [line.epoch for line in lines] == [1, 2, 3]
    assert lines[-1].loss < lines[0].loss
    assert load_checkpoint(run_folder.LATEST).architecture == TINY


@pytest.mark.parametrize(
    "settings",
    [{}, {"ema": 0.9, "mixup": 0.2, "cutmix": 1.0, "randaugment": 9, "class_weights": True}],
    ids=["plain", "everything"],
)
def test_an_interrupted_run_goes_on_bit_for_bit(
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
    assert len(run_folder.load_metrics(Path("broken"))) == 3


def test_a_run_interrupted_in_its_first_epoch_starts_again(config: TrainingConfig) -> None:
    run_folder.begin_run(Path("begun"), config.to_json())
    assert resume(Path("begun")).epochs == 3


def test_resuming_a_finished_run_changes_no_weights(config: TrainingConfig) -> None:
    train(dataclasses.replace(config, epochs=1), Path("one"))
    before = load_file("one/model.safetensors")
    resume(Path("one"))
    for name, tensor in load_file("one/model.safetensors").items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_the_same_seed_gives_the_same_network_and_another_one_another(
    config: TrainingConfig,
) -> None:
    short = dataclasses.replace(config, epochs=1)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(dataclasses.replace(short, seed=seed), Path(name))
    a, b, c = (load_file(f"{name}/model.safetensors")["fc.weight"] for name in "abc")
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_no_weights_to_start_from_gives_a_resnet34(config: TrainingConfig) -> None:
    fresh = dataclasses.replace(config, init=None, epochs=1, batch_size=30)
    train(fresh, Path("fresh"))
    assert load_checkpoint(Path("fresh")).architecture == Architecture(classes=3)


def test_a_wild_learning_rate_is_an_error_with_a_hint(config: TrainingConfig) -> None:
    wild = dataclasses.replace(config, lr=1e30)
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf)") as caught:
        train(wild, Path("wild"))
    assert "--lr" in str(caught.value.hint)
    assert not Path("wild/model.json").exists()
    assert not run_folder.LATEST.exists()


def test_a_loss_that_is_no_number_names_step_and_last_good_state(
    config: TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate = learning_rate
    monkeypatch.setattr(
        loop, "learning_rate", lambda config, done: 1e30 if done >= 1.4 else rate(config, done)
    )
    # Epochs have 7 steps; from the fourth of the second on, weights are infinite.
    with pytest.raises(
        TrainingError, match=r"in epoch 2, step [45]; .* after 1 epochs and 0 steps"
    ):
        train(config, Path("wild"))
    assert run_folder.load_state(Path("wild")).position == run_folder.RunPosition(epochs_done=1)


def test_metrics_can_be_seen_in_tensorboard(config: TrainingConfig) -> None:
    config = dataclasses.replace(config, tensorboard=True, epochs=2)
    with pytest.raises(Interruption):
        train(config, Path("one"), progress=interrupted_in_epoch_2)
    resume(Path("one"))
    events = EventAccumulator(str(Path("one/tensorboard"))).Reload()
    for name in ("loss", "accuracy"):
        found = {event.step: event.value for event in events.Scalars(name)}
        expected = {
            line.epoch: getattr(line, name) for line in run_folder.load_metrics(Path("one"))
        }
        assert found == pytest.approx(expected, rel=1e-6)  # event files hold float32


def test_odd_photographs_can_be_trained_on(config: TrainingConfig, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    odd = {
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
            for name, picture in odd.items():
                picture.save(tmp_path / split / label / name)
    for crop in ("area", "scale"):
        changed = dataclasses.replace(config, data=str(tmp_path), epochs=1, crop=crop)
        assert train(changed, Path(crop)).unreadable == 0


def test_an_existing_run_needs_force(config: TrainingConfig) -> None:
    short = dataclasses.replace(config, epochs=1)
    train(short, Path("one"))
    with pytest.raises(OutputError, match="exists already"):
        train(short, Path("one"))
    train(short, Path("one"), force=True)


def test_a_damaged_picture_is_skipped_with_a_count(
    config: TrainingConfig, tmp_path: Path, image_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = shutil.copytree(image_data, tmp_path / "data")
    victim = data / "train" / "red" / "000.png"
    victim.write_bytes(victim.read_bytes()[:100])
    with caplog.at_level(logging.WARNING, "resdeploy"):
        train(dataclasses.replace(config, data=str(data), epochs=2, batch_size=2), Path("one"))
    assert caplog.text.count("red/000.png cannot be decoded") == 1
    description = json.loads(Path("one/model.json").read_text())
    assert description["metrics"]["unreadable_images"] == 1
    assert Path("one/unreadable.txt").read_text() == f"{victim}\n"
    assert "1 files that could not be decoded" in Path("one/report.html").read_text()


def test_ctrl_c_says_how_to_go_on(config: TrainingConfig, caplog: pytest.LogCaptureFixture) -> None:
    @contextmanager
    def interrupted(what: str, total: int) -> Iterator[Advance]:
        raise KeyboardInterrupt
        yield

    with caplog.at_level(logging.INFO, "resdeploy"), pytest.raises(KeyboardInterrupt):
        train(config, Path("runs/one"), progress=interrupted)
    assert "interrupted; resdeploy train --resume runs/one goes on" in caplog.text
    assert resume(Path("runs/one")).epochs == config.epochs


def test_only_damaged_pictures_are_an_error(
    config: TrainingConfig, tmp_path: Path, image_data: Path
) -> None:
    data = shutil.copytree(image_data, tmp_path / "data")
    for picture in data.rglob("train/**/*.png"):
        picture.write_bytes(b"")
    with pytest.raises(DataError, match="not one batch"):
        train(dataclasses.replace(config, data=str(data)), Path("one"))


def test_a_damaged_validation_picture_is_named_and_counted(
    config: TrainingConfig, tmp_path: Path, image_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = shutil.copytree(image_data, tmp_path / "data")
    (data / "val" / "red" / "000.png").write_bytes(b"")
    with caplog.at_level(logging.WARNING, "resdeploy"):
        result = train(dataclasses.replace(config, data=str(data), epochs=1), Path("one"))
    assert "red/000.png cannot be decoded" in caplog.text
    assert result.unreadable == 1
    assert "1 images could not be decoded" in training_text(result)


def test_the_shortcut_is_that_of_the_weights_to_start_from(config: TrainingConfig) -> None:
    with pytest.raises(TrainingError, match="is a resnet10"):
        train(dataclasses.replace(config, shortcut=Shortcut.A), Path("one"))
    assert train(dataclasses.replace(config, shortcut=Shortcut.B, epochs=1), Path("two")).epochs


def test_damaged_settings_are_an_error(tmp_path: Path) -> None:
    for content in ('{"epochs": 3}', '{"shortcut": "Z"}', '{"shortcut": "B", "colour": 1}'):
        (tmp_path / "state.json").write_text(content)
        with pytest.raises(TrainingError, match="is damaged"):
            resume(tmp_path)


def test_a_new_head_for_another_number_of_classes(tiny_checkpoint: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    network = network_from_checkpoint(checkpoint, 7)
    assert network.architecture.classes == network.fc.out_features == 7
    assert network.architecture.blocks == TINY.blocks
    assert torch.equal(network.conv1.weight, checkpoint.state["conv1.weight"])
    assert torch.equal(
        network_from_checkpoint(checkpoint, 3).fc.weight, checkpoint.state["fc.weight"]
    )


def test_default_folders_are_named_after_the_data() -> None:
    assert default_folder("some/where/flowers/").name.startswith("flowers-")
    assert default_folder("digits").parent == run_folder.RUNS


# Fine-tuning


def test_a_frozen_network_trains_its_head_alone(config: TrainingConfig) -> None:
    before = load_checkpoint(Path(str(config.init))).state
    train(dataclasses.replace(config, freeze=True, epochs=1), Path("frozen"))
    after = load_file("frozen/model.safetensors")
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {"fc.weight", "fc.bias"}  # the norms' statistics stay, too


def test_rare_classes_count_alike() -> None:
    labels = (0,) * 10 + (1,) * 5 + (2,)
    images = LabelledImages(
        classes=("a", "b", "c"), files=tuple(Path(f"{i}") for i in range(16)), labels=labels
    )
    independent = compute_class_weight("balanced", classes=np.arange(3), y=np.array(labels))
    # A quotient of small integers in float32 and in float64: a rounding of 2^-24 apart.
    np.testing.assert_allclose(balanced_weights(images).numpy(), independent, rtol=2**-23)


def test_the_average_is_what_is_measured_and_kept(config: TrainingConfig) -> None:
    """With nearly all of it kept at each step, the average stays at the first step's weights."""
    train(dataclasses.replace(config, ema=0.999999, epochs=1), Path("averaged"))
    train(dataclasses.replace(config, epochs=1), Path("last"))
    start = load_checkpoint(Path(str(config.init))).state["fc.weight"]
    kept, last = (
        load_file(f"{name}/model.safetensors")["fc.weight"] for name in ("averaged", "last")
    )
    assert 0 <= (kept - start).norm() < 0.5 * (last - start).norm()


def test_the_paper_decays_biases_and_norms_too() -> None:
    config = TrainingConfig(weight_decay=0.1)
    network = initial_network(config, 3)
    for decay_all, expected in ((False, {0.1, 0.0}), (True, {0.1})):
        optimizer = make_optimizer(network, dataclasses.replace(config, decay_all=decay_all))
        assert {group["weight_decay"] for group in optimizer.param_groups} == expected
        counted = sum(len(group["params"]) for group in optimizer.param_groups)
        assert counted == len(list(network.parameters()))


# Steps


def test_the_fused_optimiser_is_the_plain_one(config: TrainingConfig) -> None:
    """It walks over weights as they lie in memory, which is where it could go wrong."""
    config = dataclasses.replace(config, bf16=False)
    fused, plain = learner(config), learner(config)
    for group in plain.optimizer.param_groups:
        group["fused"], group["foreach"] = False, False
    for step in range(3):
        for each in (fused, plain):
            each.step(batch_of(8, step), 0.05, np.random.default_rng(0))
    for name, tensor in plain.network.state_dict().items():
        # The same few products and sums in float32; a step magnifies their last bits a little.
        torch.testing.assert_close(fused.network.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)


def test_parts_of_a_batch_add_up(config: TrainingConfig) -> None:
    """With the norms frozen, which see a part only, the gradient is that of the whole batch."""
    config = dataclasses.replace(config, bf16=False, class_weights=True)
    results = []
    for parts in (1, 3):
        each = learner(dataclasses.replace(config, accumulate=parts))
        each.network.eval()
        loss, images = each.step(batch_of(8), 0.05, np.random.default_rng(0)).tolist()
        assert images == 8
        results.append((loss, each.network.fc.weight.detach()))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)  # float32 sums of 8 losses
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-4, atol=1e-6)


def test_a_batch_too_small_for_its_parts_is_refused_or_left_out(config: TrainingConfig) -> None:
    with pytest.raises(TrainingError, match="cannot be divided") as caught:
        learner(dataclasses.replace(config, batch_size=6, accumulate=4))
    assert "--batch-size 8" in str(caught.value.hint)
    each = learner(dataclasses.replace(config, accumulate=4))
    before = each.network.fc.weight.detach().clone()
    assert each.step(batch_of(7), 0.05, np.random.default_rng(0)).tolist() == [0, 0]
    assert torch.equal(each.network.fc.weight, before)
