"""Tests of loading checkpoints, including damaged and malicious files."""

from __future__ import annotations

import json
import pickle
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from resdeploy.errors import CheckpointError
from resdeploy.images.preprocessing import Preprocessing
from resdeploy.train.checkpoint import load as checkpoints
from resdeploy.train.checkpoint.load import load_checkpoint
from resdeploy.train.model.architecture import Architecture, Shortcut
from resdeploy.train.model.resnet import ResNet
from resdeploy.train.run.folder import save_model
from tests.samples import CLASSES
from tests.train.checkpoint.states import assert_equal_states, make_state

State = dict[str, Tensor]
TINY = Architecture(classes=3, blocks=(1, 1, 1, 1), width=8)


@pytest.fixture
def state() -> State:
    return make_state(TINY)


def save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def assert_rejected(path: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


# Accepted files


def test_a_torchvision_style_state_dict(tmp_path: Path, state: State) -> None:
    loaded = load_checkpoint(save(tmp_path / "a.pth", state))
    assert loaded.architecture == TINY
    assert loaded.labels is None
    for name, tensor in loaded.network().state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=0)


@pytest.mark.parametrize("blocks", [(3, 4, 6, 3), (2, 2, 2, 2)])
def test_recognises_resnet34_and_resnet18(tmp_path: Path, blocks: tuple[int, ...]) -> None:
    network = ResNet(Architecture(classes=4, blocks=blocks, width=8))
    loaded = load_checkpoint(save(tmp_path / "a.pt", network.state_dict()))
    assert loaded.architecture.blocks == blocks
    assert loaded.architecture.classes == 4


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_reads_nested_weights(tmp_path: Path, state: State, key: str) -> None:
    assert load_checkpoint(save(tmp_path / "a.pth", {key: state, "epoch": 3})).architecture == TINY


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_removes_prefixes_of_wrappers(tmp_path: Path, state: State, prefix: str) -> None:
    wrapped = {prefix + name: tensor for name, tensor in state.items()}
    assert set(load_checkpoint(save(tmp_path / "a.pth", wrapped)).state) == set(state)


def test_float16_weights_become_float32(tmp_path: Path, state: State) -> None:
    halves = {name: t.half() if t.is_floating_point() else t for name, t in state.items()}
    loaded = load_checkpoint(save(tmp_path / "a.pth", halves))
    assert loaded.state["conv1.weight"].dtype == torch.float32


def test_reads_old_files_without_step_counters(tmp_path: Path, state: State) -> None:
    old = {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}
    loaded = load_checkpoint(save(tmp_path / "a.pth", old))
    assert loaded.network().bn1.running_mean is not None


@pytest.mark.parametrize("shortcut", list(Shortcut))
def test_reads_model_safetensors_without_its_run_folder(tmp_path: Path, shortcut: Shortcut) -> None:
    network = ResNet(replace(TINY, shortcut=shortcut))
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


def test_reads_labels_from_safetensors_metadata(tmp_path: Path, state: State) -> None:
    save_file(state, tmp_path / "a.safetensors", {"classes": "one two three"})
    assert load_checkpoint(tmp_path / "a.safetensors").labels == ("one", "two", "three")


# Weights in several files


def sharded(folder: Path, state: State) -> Path:
    """Write the tensors in two files, and the index and configuration of Hugging Face."""
    names = list(state)
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[:9], names[9:]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    (folder / "config.json").write_text("{}")
    return index


def test_reads_a_network_in_several_files(tmp_path: Path, state: State) -> None:
    index = sharded(tmp_path, state)
    loaded = load_checkpoint(tmp_path)
    assert_equal_states(loaded.state, state)
    assert load_checkpoint(index).sha256 == loaded.sha256
    state["fc.bias"] += 1
    sharded(tmp_path, state)
    assert load_checkpoint(tmp_path).sha256 != loaded.sha256


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("[]", "is not an index of weights"),
        ("{", "is not an index of weights"),
        ('{"weight_map": {"a": 3}}', "lists '3', which is no file of weights"),
        ('{"weight_map": {}}', "lists 0 files"),
        ('{"weight_map": {"a": "../b.bin"}}', r"lists '../b\.bin', which is no file of weights"),
        ('{"weight_map": {"a": "/etc/b.bin"}}', r"lists '/etc/b\.bin', which is no file"),
        ('{"weight_map": {"a": "b.bin"}}', r"lists b\.bin, which is missing"),
        (
            '{"weight_map": {"a": "copy.bin", "b": "model-00001-of-00002.safetensors"}}',
            "two of the files in .* hold the same tensor",
        ),
    ],
)
def test_rejects_an_index(tmp_path: Path, state: State, document: str, message: str) -> None:
    index = sharded(tmp_path, state)
    (tmp_path / "copy.bin").write_bytes(
        (tmp_path / "model-00001-of-00002.safetensors").read_bytes()
    )
    index.write_text(document)
    assert_rejected(tmp_path, message)


# Rejected files


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda s: {"student": s, "teacher": {n: t + 1 for n, t in s.items()}}, "a file of its ow"),
        (lambda s: s | {"bn1.running_var": -s["bn1.running_var"]}, "before the training diverged"),
        (lambda s: s | {"conv1.weight": s["conv1.weight"].char()}, "before the quantisation"),
        (lambda s: {n: t for n, t in s.items() if n[:2] != "fc"}, "the whole classifier"),
        (lambda s: s | {"fc2.weight": torch.zeros(2, 3)}, "into one nn.Sequential"),
    ],
)
def test_the_hint_names_the_remedy(
    tmp_path: Path, state: State, change: Callable[[State], Any], hint: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(save(tmp_path / "a.pth", change(state)))
    assert hint in str(caught.value.hint)


class Malicious:
    """An object that would create the file `hacked` when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("hacked"),)


@pytest.mark.parametrize("wrap", [lambda content: content, lambda content: {"state_dict": content}])
def test_a_pickle_with_code_is_never_executed(
    tmp_path: Path, wrap: Callable[[Malicious], object]
) -> None:
    with (tmp_path / "plain.pth").open("wb") as stream:
        pickle.dump(wrap(Malicious()), stream)
    for path in (tmp_path / "plain.pth", save(tmp_path / "zipped.pth", wrap(Malicious()))):
        assert_rejected(path, "no code in it was executed")
    assert not Path("hacked").exists()
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("data", [b"", b"garbage", b"PK\x03\x04", b"\x80\x04.", bytes(1000)])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_rejects_damaged_files(tmp_path: Path, data: bytes, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    assert_rejected(
        path, "is empty|not a checkpoint: .|not an intact (file of torch.save|safetensors file): ."
    )


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_rejects_truncated_files(tmp_path: Path, state: State, kept: float) -> None:
    save_file(state, tmp_path / "a.safetensors")
    for path in (save(tmp_path / "a.pth", state), tmp_path / "a.safetensors"):
        data = path.read_bytes()
        path.write_bytes(data[: int(kept * len(data))])
        assert_rejected(path, "not an intact (file of torch.save|safetensors file): .")


def test_rejects_missing_and_huge_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: State
) -> None:
    assert_rejected(tmp_path / "none.pth", "there is no checkpoint")
    monkeypatch.setattr(checkpoints, "MAX_CHECKPOINT_BYTES", 1000)
    assert_rejected(save(tmp_path / "a.pth", state), "bytes, more than")


@pytest.mark.parametrize("content", [[1, 2], {}, 7, torch.zeros(3), {"state_dict": {}}])
def test_rejects_files_without_a_state_dict(tmp_path: Path, content: object) -> None:
    assert_rejected(
        save(tmp_path / "a.pth", content), "holds no network|does not hold a residual network"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("layer2.0.bn1.weight"), r"lacks layer2\.0\.bn1\.weight"),
        (lambda s: s.pop("fc.weight"), r"unknown tensor fc\.bias"),
        (lambda s: s.update({"extra.weight": torch.zeros(1)}), r"unknown tensor extra\.weight"),
        (lambda s: s.update({"fc.weight": torch.zeros(5, 64)}), r"wrong shape for fc\.bias"),
        (lambda s: s["conv1.weight"].fill_(torch.nan), r"NaN or infinite values in conv1\.weight"),
        (lambda s: s["bn1.running_var"].fill_(torch.inf), "NaN or infinite"),
        (lambda s: s["bn1.running_var"][3].fill_(-1e-9), r"negative variances in bn1\.running_var"),
        (
            lambda s: s.update({"conv1.weight": s["conv1.weight"].double() * 1e300}),
            r"NaN or infinite values in conv1\.weight",
        ),
        (lambda s: s.update({"fc.bias": "text"}), r"'fc\.bias' of type str"),
        (lambda s: s.update({"fc.bias": torch.zeros(3).to_sparse()}), "not a dense tensor"),
        (lambda s: s.update({"fc.weight": torch.tensor(1.0)}), r"unknown tensor fc\.weight"),
        (
            lambda s: s.update({"layer1.0.conv3.weight": torch.zeros(1)}),
            r"lacks layer1\.0\.bn3",
        ),
    ],
)
def test_rejects_weights_of_another_network(
    tmp_path: Path, state: State, change: Callable[[Any], object], message: str
) -> None:
    change(state)
    assert_rejected(save(tmp_path / "a.pth", state), message)


def test_rejects_a_small_file_with_a_huge_tensor(tmp_path: Path, state: State) -> None:
    # Strides of zero repeat one stored number, so the file is small but a copy would be huge.
    state["conv1.weight"] = torch.zeros(1).half().expand(1 << 20, 1 << 20)
    assert_rejected(save(tmp_path / "a.pth", state), "not a dense tensor")


def test_rejects_weights_with_ambiguous_shortcuts(tmp_path: Path) -> None:
    for shortcut in (Shortcut.A, Shortcut.PLAIN):
        network = ResNet(replace(TINY, shortcut=shortcut))
        assert_rejected(save(tmp_path / "a.pth", network.state_dict()), "no projections")


# Run folders


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    save_model(
        folder, ResNet(TINY), labels=CLASSES,
        preprocessing=Preprocessing.standard(32), data="digits", config={}, metrics={},
        provenance={},
    )  # fmt: skip
    return folder


def test_rejects_unfinished_runs_and_other_folders(tmp_path: Path) -> None:
    assert_rejected(tmp_path, "not a run folder")
    (tmp_path / "state.safetensors").touch()
    assert_rejected(tmp_path, "an unfinished run")


@pytest.mark.parametrize("field", ["classes", "blocks", "shortcut"])
def test_an_architecture_without_a_field_is_not_taken_for_a_resnet34(run: Path, field: str) -> None:
    document = json.loads((run / "model.json").read_text())
    del document["architecture"][field]
    (run / "model.json").write_text(json.dumps(document))
    assert_rejected(run, f"no {field}")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"architecture": 3}', "null"])
def test_rejects_a_damaged_model_json(run: Path, text: str) -> None:
    (run / "model.json").write_text(text)
    assert_rejected(run, r"model\.json is (damaged|empty)")


def test_rejects_a_run_without_weights(run: Path) -> None:
    (run / "model.safetensors").unlink()
    assert_rejected(run, r"model\.safetensors cannot be read: No such file")


@pytest.mark.parametrize("name", ["model.json", "model.safetensors", "alone.pth"])
def test_the_reason_of_the_system_is_not_replaced_by_damage(
    run: Path, name: str, refuse_to_open: Callable[[Path], None]
) -> None:
    (run / "alone.pth").write_bytes(b"weights")
    refuse_to_open(run / name)
    path = run / name if name.startswith("alone") else run
    assert_rejected(path, f"{name} cannot be read: Permission denied")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert "check the permissions" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "only a pointer of Git LFS",
        ),
        (b"\n<!DOCTYPE html>\n<html>", "is an HTML page"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_names_a_file_that_stands_for_another(
    tmp_path: Path, suffix: str, data: bytes, cause: str
) -> None:
    (tmp_path / f"a{suffix}").write_bytes(data)
    assert_rejected(tmp_path / f"a{suffix}", cause)


@pytest.mark.parametrize("wrap", [lambda network: network, lambda network: {"model": network}])
def test_reads_the_weights_of_a_whole_network(
    tmp_path: Path, wrap: Callable[[nn.Module], object]
) -> None:
    network = ResNet(TINY)
    loaded = load_checkpoint(save(tmp_path / "a.pth", wrap(network)))
    torch.testing.assert_close(loaded.state, dict(network.state_dict()), rtol=0, atol=0)
    assert loaded.notes == ()


def test_names_the_class_of_an_object_without_weights(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", Namespace(lr=0.1))
    assert_rejected(path, r"holds no network but argparse\.Namespace; no code")


def test_a_bundle_is_not_a_run(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").touch()
    assert_rejected(tmp_path, "is a bundle, which holds graphs")


def test_rejects_a_run_whose_description_does_not_fit(run: Path) -> None:
    document = json.loads((run / "model.json").read_text())
    document["architecture"]["blocks"] = [3, 4, 6, 3]
    (run / "model.json").write_text(json.dumps(document))
    assert_rejected(run, "is not a resnet34")


def test_rejects_a_run_with_too_few_labels(run: Path) -> None:
    document = json.loads((run / "model.json").read_text())
    document["labels"] = ["one"]
    (run / "model.json").write_text(json.dumps(document))
    assert_rejected(run, "1 labels for 3 classes")
