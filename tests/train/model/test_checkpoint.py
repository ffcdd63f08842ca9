"""Weights from outside: what is accepted, and that nothing of the rest is executed."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from resdeploy.errors import CheckpointError
from resdeploy.images.preprocessing import Preprocessing
from resdeploy.train.model import checkpoint as checkpoints
from resdeploy.train.model.architecture import Architecture, Shortcut
from resdeploy.train.model.checkpoint import load_checkpoint
from resdeploy.train.model.resnet import ResNet
from resdeploy.train.run.folder import save_model
from tests.samples import CLASSES, TINY, make_classifier

State = dict[str, Tensor]


@pytest.fixture
def state() -> State:
    return make_classifier().network.state_dict()


def save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def refused(path: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


# What is accepted


def test_a_torchvision_style_state_dict(tmp_path: Path, state: State) -> None:
    loaded = load_checkpoint(save(tmp_path / "a.pth", state))
    assert loaded.architecture == TINY
    assert loaded.labels is None
    for name, tensor in loaded.network().state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=0)


@pytest.mark.parametrize("blocks", [(3, 4, 6, 3), (2, 2, 2, 2)])
def test_resnet34_and_resnet18_are_told_apart(tmp_path: Path, blocks: tuple[int, ...]) -> None:
    network = ResNet(Architecture(classes=4, blocks=blocks))
    loaded = load_checkpoint(save(tmp_path / "a.pt", network.state_dict()))
    assert loaded.architecture.blocks == blocks
    assert loaded.architecture.classes == 4


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_other_trainers_nest_the_weights(tmp_path: Path, state: State, key: str) -> None:
    assert load_checkpoint(save(tmp_path / "a.pth", {key: state, "epoch": 3})).architecture == TINY


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_wrappers_leave_prefixes(tmp_path: Path, state: State, prefix: str) -> None:
    wrapped = {prefix + name: tensor for name, tensor in state.items()}
    assert set(load_checkpoint(save(tmp_path / "a.pth", wrapped)).state) == set(state)


def test_half_weights_become_float32(tmp_path: Path, state: State) -> None:
    halves = {name: t.half() if t.is_floating_point() else t for name, t in state.items()}
    loaded = load_checkpoint(save(tmp_path / "a.pth", halves))
    assert loaded.state["conv1.weight"].dtype == torch.float32


def test_old_files_lack_the_counters(tmp_path: Path, state: State) -> None:
    old = {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}
    loaded = load_checkpoint(save(tmp_path / "a.pth", old))
    assert loaded.network().bn1.running_mean is not None


@pytest.mark.parametrize("shortcut", list(Shortcut))
def test_our_own_files_travel_alone(tmp_path: Path, shortcut: Shortcut) -> None:
    network = ResNet(Architecture(classes=3, blocks=(1, 1, 1, 1), shortcut=shortcut))
    save_model(
        tmp_path, network, labels=CLASSES, preprocessing=Preprocessing.standard(32), data="digits",
        config={}, metrics={}, provenance={},
    )  # fmt: skip
    alone = load_checkpoint(tmp_path / "model.safetensors")
    assert alone.architecture == network.architecture
    assert alone.labels == CLASSES
    whole = load_checkpoint(tmp_path)
    assert whole.architecture == network.architecture
    assert (whole.labels, whole.data) == (CLASSES, "digits")
    assert whole.preprocessing == Preprocessing.standard(32)
    assert whole.sha256 == alone.sha256


def test_classes_in_safetensors_metadata(tmp_path: Path, state: State) -> None:
    save_file(state, tmp_path / "a.safetensors", {"classes": "one two three"})
    assert load_checkpoint(tmp_path / "a.safetensors").labels == ("one", "two", "three")


# What is refused


class Evil:
    """Unpickling this would create the file `hacked`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("hacked"),)


@pytest.mark.parametrize("wrap", [lambda evil: evil, lambda evil: {"state_dict": evil}])
def test_a_pickle_with_code_is_never_executed(
    tmp_path: Path, wrap: Callable[[Evil], object]
) -> None:
    with (tmp_path / "plain.pth").open("wb") as stream:
        pickle.dump(wrap(Evil()), stream)
    for path in (tmp_path / "plain.pth", save(tmp_path / "zipped.pth", wrap(Evil()))):
        refused(path, "nothing in it was executed")
    assert not Path("hacked").exists()
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("data", [b"", b"garbage", b"PK\x03\x04", b"\x80\x04.", bytes(1000)])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_files(tmp_path: Path, data: bytes, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    refused(path, "not a file of weights|not an intact safetensors")


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_truncated_files(tmp_path: Path, state: State, kept: float) -> None:
    save_file(state, tmp_path / "a.safetensors")
    for path in (save(tmp_path / "a.pth", state), tmp_path / "a.safetensors"):
        data = path.read_bytes()
        path.write_bytes(data[: int(kept * len(data))])
        refused(path, "not a file of weights|not an intact safetensors")


def test_a_missing_file_another_ending_and_a_huge_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: State
) -> None:
    refused(tmp_path / "none.pth", "there is no checkpoint")
    (tmp_path / "model.onnx").touch()
    refused(tmp_path / "model.onnx", r"its ending is \.onnx")
    monkeypatch.setattr(checkpoints, "MAX_FILE_BYTES", 1000)
    refused(save(tmp_path / "a.pth", state), "larger than")


@pytest.mark.parametrize("content", [[1, 2], {}, 7, torch.zeros(3), {"state_dict": {}}])
def test_what_is_no_state_dict(tmp_path: Path, content: object) -> None:
    refused(save(tmp_path / "a.pth", content), "not a state dict|not a residual|plain tensor")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("layer2.0.bn1.weight"), r"lacks layer2\.0\.bn1\.weight"),
        (lambda s: s.pop("fc.weight"), "not a residual network"),
        (lambda s: s.update({"extra.weight": torch.zeros(1)}), r"unknown extra\.weight"),
        (lambda s: s.update({"conv1.weight": torch.zeros(64, 1, 7, 7)}), "wrong shape for conv1"),
        (lambda s: s.update({"fc.weight": torch.zeros(5, 512)}), r"wrong shape for fc\.bias"),
        (lambda s: s["conv1.weight"].fill_(torch.nan), r"conv1\.weight in .* is NaN or infinite"),
        (lambda s: s["bn1.running_var"].fill_(torch.inf), "NaN or infinite"),
        (lambda s: s.update({"fc.bias": "text"}), "holds a str under 'fc.bias'"),
        (lambda s: s.update({"fc.bias": torch.zeros(3).to_sparse()}), "plain tensor"),
        (lambda s: s.update({"fc.weight": torch.tensor(1.0)}), "not a residual network"),
        (lambda s: s.update({"layer1.0.conv3.weight": torch.zeros(1)}), "not a residual network"),
    ],
)
def test_weights_of_another_network(
    tmp_path: Path, state: State, change: Callable[[Any], object], message: str
) -> None:
    change(state)
    refused(save(tmp_path / "a.pth", state), message)


def test_a_shape_that_claims_terabytes_is_not_copied(tmp_path: Path, state: State) -> None:
    # One number, stretched by strides of zero: the file is small, a copy would not be.
    state["conv1.weight"] = torch.zeros(1).half().expand(1 << 20, 1 << 20)
    refused(save(tmp_path / "a.pth", state), "plain tensor")


def test_no_projections_may_mean_identity_or_none(tmp_path: Path) -> None:
    for shortcut in (Shortcut.A, Shortcut.PLAIN):
        network = ResNet(Architecture(classes=3, blocks=(1, 1, 1, 1), shortcut=shortcut))
        refused(save(tmp_path / "a.pth", network.state_dict()), "no projections")


def test_labels_must_fit_the_classes(tmp_path: Path, state: State) -> None:
    save_file(state, tmp_path / "a.safetensors", {"labels": json.dumps(["one"])})
    refused(tmp_path / "a.safetensors", "names 1 classes and has weights for 3")


# Run folders


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    save_model(
        folder, make_classifier().network, labels=CLASSES,
        preprocessing=Preprocessing.standard(32), data="digits", config={}, metrics={},
        provenance={},
    )  # fmt: skip
    return folder


def test_a_folder_that_is_no_run_or_an_unfinished_one(tmp_path: Path) -> None:
    refused(tmp_path, "not a run")
    (tmp_path / "state.safetensors").touch()
    refused(tmp_path, "an unfinished run")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"architecture": 3}', "null"])
def test_a_damaged_description(run: Path, text: str) -> None:
    (run / "model.json").write_text(text)
    refused(run, r"model\.json is damaged")


def test_a_run_without_its_weights(run: Path) -> None:
    (run / "model.safetensors").unlink()
    refused(run, r"has no model\.safetensors")


def test_a_run_whose_description_is_of_another_network(run: Path) -> None:
    document = json.loads((run / "model.json").read_text())
    document["architecture"]["blocks"] = [3, 4, 6, 3]
    (run / "model.json").write_text(json.dumps(document))
    refused(run, "is not a resnet34")


def test_a_run_with_too_few_labels(run: Path) -> None:
    document = json.loads((run / "model.json").read_text())
    document["labels"] = ["one"]
    (run / "model.json").write_text(json.dumps(document))
    refused(run, "1 labels for 3 classes")
