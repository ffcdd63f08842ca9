"""`inspect`: the summary of a checkpoint, and refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from resdeploy.errors import CheckpointError
from resdeploy.export.inspection import CheckpointSummary, inspect_network
from resdeploy.images.preprocessing import Preprocessing
from resdeploy.json_documents import jsonable
from resdeploy.train.checkpoint.contents import Weights
from tests.train.checkpoint.states import SMALL, make_state

LABELS = ["cat", "dog", "fish"]


def summarise(path: Path) -> CheckpointSummary:
    summary = inspect_network(path)
    assert isinstance(summary, CheckpointSummary)
    return summary


def test_a_summary_names_network_place_and_type(tmp_path: Path) -> None:
    halved = {f"backbone.{name}": tensor.half() for name, tensor in make_state().items()}
    torch.save({"state_dict": halved}, tmp_path / "net.pth")
    summary = summarise(tmp_path / "net.pth")
    assert (summary.scheme, summary.dtype, summary.weights) == (
        "torchvision", "float16", Weights.RAW,
    )  # fmt: skip
    assert "state_dict" in summary.place
    assert "backbone" in summary.place
    assert summary.architecture == SMALL


@pytest.mark.parametrize("hidden", [(), (6,)])
def test_a_summary_counts_parameters_and_features(tmp_path: Path, hidden: tuple[int, ...]) -> None:
    state = make_state(replace(SMALL, hidden=hidden))
    torch.save(state, tmp_path / "net.pth")
    summary = summarise(tmp_path / "net.pth")
    kept = [n for n in state if "running" not in n and "batches" not in n]
    assert summary.parameters == sum(state[name].numel() for name in kept)
    assert summary.features == SMALL.width << 2


def test_a_summary_tells_stated_from_assumed(tmp_path: Path) -> None:
    content = {"model": make_state(), "img_size": 96, "mean": [0.5] * 3, "std": [0.5] * 3}
    torch.save(content, tmp_path / "net.pth")
    summary = summarise(tmp_path / "net.pth")
    assert summary.preprocessing.image_size == 96
    assert summary.preprocessing.mean == (0.5, 0.5, 0.5)
    assert "net.pth" in summary.origins["mean"]
    assert summary.origins["interpolation"] == "assumed"
    assert summary.missing["interpolation"] == "--interpolation"
    assert summary.missing["resize_mode"] == "--resize"
    assert summary.missing["labels"] == "--labels"
    assert not {"image_size", "mean", "std"} & summary.missing.keys()


def test_a_summary_of_a_file_with_labels_does_not_ask_for_them(tmp_path: Path) -> None:
    torch.save({"model": make_state(), "classes": LABELS}, tmp_path / "net.pth")
    summary = summarise(tmp_path / "net.pth")
    assert summary.labels == tuple(LABELS)
    assert "labels" not in summary.missing


def test_a_run_states_everything(tmp_path: Path) -> None:
    save_file(make_state(), tmp_path / "model.safetensors")
    model = {
        "architecture": SMALL.to_json(), "labels": LABELS, "data": "gone",
        "preprocessing": jsonable(Preprocessing(image_size=32)),
    }  # fmt: skip
    (tmp_path / "model.json").write_text(json.dumps(model))
    summary = summarise(tmp_path)
    assert summary.missing == {}
    assert set(summary.origins.values()) == {"the run"}


def test_a_refusal_names_the_tensors_that_do_not_fit(tmp_path: Path) -> None:
    state = make_state() | {"layer1.0.se.fc1.weight": torch.zeros(2, 8, 1, 1)}
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=r"se\.fc1\.weight.* as in torchvision"):
        inspect_network(tmp_path / "net.pth")
