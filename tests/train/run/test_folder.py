"""Tests of the files in a run folder."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from resdeploy.errors import OutputError, TrainingError
from resdeploy.filesystem import sha256
from resdeploy.train.config import TrainingConfig
from resdeploy.train.model.resnet import ResNet
from resdeploy.train.run import folder
from resdeploy.train.run.folder import (
    LATEST,
    RESULTS,
    TEACHER_FILE,
    EpochMetrics,
    RunPosition,
    TrainingState,
    begin_run,
    load_metrics,
    load_state,
    load_teacher,
    pack_weights,
    save_metrics,
    save_state,
    update_latest_link,
)
from resdeploy.train.run.record import DataIdentity, RunRecord, load_record
from tests.samples import CLASSES, TINY


def metrics(epoch: int) -> EpochMetrics:
    return EpochMetrics(
        epoch=epoch, loss=1 / epoch, val_loss=2 / epoch, accuracy=50.0, lr=0.1,
        images_per_second=10.0, seconds=1.0, waiting=0.1,
    )  # fmt: skip


POSITION = RunPosition(
    epochs_done=3, steps_done=7, loss=0.1 + 0.2, images=56, seconds=1 / 3, waiting_seconds=0.0
)


STATE = TrainingState(
    run="1a", position=POSITION, model={"w": torch.arange(6.0)}, momentum={}, average={}
)
RECORD = RunRecord(
    id="1a",
    command="resdeploy train",
    config=TrainingConfig(seed=7),
    data=DataIdentity(classes=CLASSES, images={}, sha256={}),
    architecture=TINY,
    labels=CLASSES,
    outputs=(0, 1, 2),
    teacher_sha256=None,
)


def test_state_round_trip(tmp_path: Path) -> None:
    # Weights in the channels_last layout must keep their values.
    weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    state = TrainingState(
        run="1a",
        position=POSITION,
        model={"w": weight},
        momentum={"w": weight + 1},
        average={"w": weight / 2},
        best={"w": weight / 3},
    )
    save_state(tmp_path, state)
    loaded = load_state(tmp_path)
    assert loaded.position == POSITION
    torch.testing.assert_close(loaded.model["w"], weight, rtol=0, atol=0)
    torch.testing.assert_close(loaded.momentum["w"], weight + 1, rtol=0, atol=0)
    torch.testing.assert_close(loaded.average["w"], weight / 2, rtol=0, atol=0)
    torch.testing.assert_close(loaded.best["w"], weight / 3, rtol=0, atol=0)


@pytest.mark.parametrize("data", [b"", b"garbage", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_damaged_state_is_a_training_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "state.safetensors").write_bytes(data)
    with pytest.raises(TrainingError, match="damaged"):
        load_state(tmp_path)


def test_one_changed_bit_of_a_weight_is_noticed(tmp_path: Path) -> None:
    save_state(tmp_path, STATE)
    path = tmp_path / "state.safetensors"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1  # in the last weight
    path.write_bytes(content)
    with pytest.raises(TrainingError, match="is damaged: its checksum is wrong"):
        load_state(tmp_path)


def test_a_state_of_another_run_or_format_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path, dataclasses.replace(STATE, run="2b"))
    with pytest.raises(TrainingError, match="belongs to another run"):
        load_state(tmp_path, RECORD)
    path = tmp_path / "state.safetensors"
    for format, found in ((None, 1), ("2", 2)):
        path.write_bytes(save({"model.w": torch.ones(1)}, {"format": format} if format else {}))
        with pytest.raises(TrainingError, match=f"has format {found}, and this version"):
            load_state(tmp_path)


def test_a_missing_state_is_a_training_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="to resume from"):
        load_state(tmp_path)


def test_metrics_are_a_line_per_epoch(tmp_path: Path) -> None:
    assert load_metrics(tmp_path, 0) == []
    save_metrics(tmp_path, [metrics(1), metrics(2)])
    assert load_metrics(tmp_path, 2) == [metrics(1), metrics(2)]
    assert load_metrics(tmp_path, 1) == [metrics(1)]  # the state of the second was not saved
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]


@pytest.mark.parametrize("text", ["{", '{"epoch": 1}', "[]", "", "\udcff"])
def test_damaged_or_missing_metrics_are_a_training_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(TrainingError, match="damaged"):
        load_metrics(tmp_path, 1)


def test_a_new_run_deletes_the_results_and_remains_of_the_old_one(tmp_path: Path) -> None:
    for name in (*RESULTS, ".state.safetensors.tmp-1234"):
        (tmp_path / name).write_bytes(b"old")
    begin_run(tmp_path, RECORD, teacher=b"new")
    assert sorted(os.listdir(tmp_path)) == ["state.json", TEACHER_FILE]
    assert (tmp_path / TEACHER_FILE).read_bytes() == b"new"


def test_an_interrupted_replacement_leaves_no_old_state_with_the_new_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_run(tmp_path, RECORD)
    save_state(tmp_path, STATE)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(folder, "save_record", interrupt)
    with pytest.raises(KeyboardInterrupt):
        begin_run(tmp_path, dataclasses.replace(RECORD, id="other"))
    assert load_record(tmp_path) == RECORD
    with pytest.raises(TrainingError, match=r"no state\.safetensors to resume from"):
        load_state(tmp_path, RECORD)


def test_the_teacher_must_be_that_of_the_run(tmp_path: Path) -> None:
    network = ResNet(TINY)
    packed = pack_weights(network)
    record = dataclasses.replace(RECORD, teacher_sha256=sha256(packed))
    with pytest.raises(TrainingError, match=r"teacher.safetensors is missing"):
        load_teacher(tmp_path, record)
    begin_run(tmp_path, record, packed)
    loaded = load_teacher(tmp_path, record).state_dict()
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded[name], tensor)
    (tmp_path / TEACHER_FILE).write_bytes(pack_weights(ResNet(TINY)))
    with pytest.raises(TrainingError, match="is not the teacher of this run"):
        load_teacher(tmp_path, record)


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
