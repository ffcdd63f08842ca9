"""Tests of the architecture that tensors have, and of the check that they fit it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from resdeploy.errors import CheckpointError
from resdeploy.train.checkpoint.load import load_checkpoint
from resdeploy.train.model.architecture import Architecture, Pooling, Shortcut, Stem
from tests.train.checkpoint.states import (
    BY_NAME,
    CIFAR,
    SMALL,
    SMALL_BOTTLENECK,
    assert_equal_states,
    make_state,
    renamed,
)


@pytest.mark.parametrize(
    "architecture",
    [
        SMALL,
        CIFAR,
        replace(SMALL, blocks=(2, 1, 1, 1), width=16, shortcut=Shortcut.C),
        replace(SMALL, input_channels=1, stem=Stem.CIFAR),
        SMALL_BOTTLENECK,
        replace(SMALL_BOTTLENECK, blocks=(1, 1, 1, 1)),
        replace(SMALL_BOTTLENECK, width=64, blocks=(1, 1), groups=32, group_width=4),
        replace(SMALL_BOTTLENECK, width=64, blocks=(1, 1), group_width=128),
        replace(SMALL, hidden=(5,)),
        replace(SMALL, hidden=(5, 4), pooling=Pooling.MAX_AND_AVERAGE),
    ],
    ids=lambda architecture: architecture.name,
)
def test_the_architecture_is_told_by_the_shapes(tmp_path: Path, architecture: Architecture) -> None:
    state = make_state(architecture)
    torch.save(state, tmp_path / "a.pth")
    loaded = load_checkpoint(tmp_path / "a.pth")
    assert loaded.architecture == architecture
    assert_equal_states(loaded.state, state)


def test_an_assumed_stem_is_noted(tmp_path: Path) -> None:
    state = make_state(CIFAR)
    torch.save(state, tmp_path / "a.pth")
    assert "3x3 stem is assumed" in load_checkpoint(tmp_path / "a.pth").notes[0]
    torch.save(renamed(state, BY_NAME["pytorch-cifar"], "linear"), tmp_path / "b.pth")
    assert load_checkpoint(tmp_path / "b.pth").notes == ()


@pytest.mark.parametrize("stride_in_1x1", [False, True])
def test_hugging_face_says_which_convolution_has_the_stride(
    tmp_path: Path, stride_in_1x1: bool
) -> None:
    state = renamed(
        make_state(SMALL_BOTTLENECK), BY_NAME["Hugging Face"], "classifier.1", "resnet."
    )
    save_file(state, tmp_path / "model.safetensors")
    assert "no config.json" in load_checkpoint(tmp_path / "model.safetensors").notes[0]
    (tmp_path / "config.json").write_text(json.dumps({"downsample_in_bottleneck": stride_in_1x1}))
    loaded = load_checkpoint(tmp_path)
    assert loaded.architecture.stride_in_1x1 == stride_in_1x1
    assert loaded.notes == ()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["a.PTH", "pytorch_model.bin", "noending"])
def test_any_float_type_and_any_ending(tmp_path: Path, dtype: torch.dtype, name: str) -> None:
    state = {n: t.to(dtype) if t.is_floating_point() else t for n, t in make_state().items()}
    torch.save(state, tmp_path / name)
    loaded = load_checkpoint(tmp_path / name).state
    for key, tensor in loaded.items():
        torch.testing.assert_close(tensor, state[key].to(tensor.dtype), rtol=0, atol=0)


def test_safetensors_under_any_name(tmp_path: Path) -> None:
    save_file(make_state(), tmp_path / "weights.bin")
    assert load_checkpoint(tmp_path / "weights.bin").architecture == SMALL


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "kind",
    [torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool, torch.complex64,
     torch.float8_e4m3fn, torch.float8_e5m2],
    ids=str,
)  # fmt: skip
def test_a_network_of_other_numbers_is_refused(
    tmp_path: Path, kind: torch.dtype, ending: str
) -> None:
    path = tmp_path / f"a{ending}"
    state = {name: tensor.to(kind) for name, tensor in make_state().items()}
    (save_file if ending == ".safetensors" else torch.save)(state, path)
    with pytest.raises(CheckpointError, match=f"of type {str(kind)[6:]}; weights must be float16"):
        load_checkpoint(path)


def pack(state: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    """Return a state dict whose weights are packed into integers of other names."""
    packed = {name: tensor for name, tensor in state.items() if tensor.ndim < 2}
    for name in state.keys() - packed:
        packed |= {name.replace("weight", n): torch.ones(4, dtype=torch.int32) for n in names}
    return packed


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: pack(s, "qweight", "qzeros", "scales", "g_idx"), "quantised weights, such as"),
        (lambda s: pack(s, "weight_packed", "weight_scale"), "quantised weights, such as"),
        (lambda s: pack(s, "_packed_params._packed_params"), "quantised weights, such as"),
        (lambda s: pack(s, "weight", "weight.absmax", "weight.quant_map"), "of type int32"),
        (lambda s: {n: t.to(torch.int8).float() for n, t in s.items()}, "only whole numbers"),
        (lambda s: s | {"fc.weight": (100 * s["fc.weight"]).round()}, "only whole .*fc.weight"),
    ],
    ids=["GPTQ", "compressed-tensors", "torch.ao", "bitsandbytes", "truncated", "one layer"],
)
def test_quantised_weights_are_refused_with_the_reason(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], reason: str
) -> None:
    torch.save(change(make_state()), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_checkpoint(tmp_path / "a.pth")
    assert "before the quantisation" in str(caught.value.hint)


def test_a_ternary_network_is_accepted_with_a_warning(tmp_path: Path) -> None:
    # The larger half of each convolution's weights becomes -1 or 1, the other half 0.
    state = {
        name: t.sign() * (t.abs() > t.abs().median()) if t.ndim == 4 else t
        for name, t in make_state().items()
    }
    torch.save(state, tmp_path / "a.pth")
    notes = load_checkpoint(tmp_path / "a.pth").notes
    (note,) = (note for note in notes if "ternary" in note)
    assert note.startswith("conv1.weight and 10 more can be weights of a ternary network")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: (
                s | {"fc.weight": torch.quantize_per_tensor(s["fc.weight"], 0.1, 0, torch.qint8)}
            ),
            r"'fc\.weight' of type",
        ),
        (
            lambda s: s | {"fc.bias": s["fc.bias"].to(torch.float8_e5m2)},
            r"fc\.bias of type float8_e5m2; weights must be float16, bfloat16, float32 or float64",
        ),
        (lambda s: s | {"fc.bias": s["fc.bias"] + torch.nan}, r"infinite values in fc\.bias"),
        (
            lambda s: s | {"conv1.weight": s["conv1.weight"] * 1e30},
            r"values up to \de\+\d\d, which no training leaves, in conv1\.weight",
        ),
        (lambda s: s | {"conv1.weight": torch.zeros(8, 3, 16, 16)}, r"shape \(8, 3, 16, 16\)"),
        (lambda s: s | {"conv1.weight": torch.zeros(8, 4, 7, 7)}, "input_channels is 4"),
        (
            lambda s: s | {"layer1.0.bn1.weight": torch.zeros(5)},
            r"shape for layer1\.0\.bn1\.weight",
        ),
        (
            lambda s: {n: t for n, t in s.items() if "downsample" not in n},
            "has no projections",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*quantize")
def test_other_tensors_are_refused(
    tmp_path: Path, change: Callable[[Any], Any], message: str
) -> None:
    torch.save(change(make_state()), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("layer1.0.conv1.weight", 1e6),
        ("layer2.0.downsample.0.weight", 1e-6),
        ("layer2.0.conv2.weight", 0.0),
        ("layer2.0.bn1.running_var", 0.0),
        ("fc.weight", 1e6),
        ("fc.weight", 0.0),
    ],
)
def test_values_that_no_training_leaves_are_noted(tmp_path: Path, name: str, factor: float) -> None:
    state = {key: tensor.clone() for key, tensor in make_state().items()}
    state["bn1.num_batches_tracked"] += 1_000_000
    state["bn1.bias"].zero_()  # as of a new network
    torch.save({f"net.{key}": tensor for key, tensor in state.items()}, tmp_path / "a.pth")
    assert load_checkpoint(tmp_path / "a.pth").notes == ()
    state[name] *= factor
    torch.save({f"net.{key}": tensor for key, tensor in state.items()}, tmp_path / "a.pth")
    (note,) = load_checkpoint(tmp_path / "a.pth").notes
    named = name.replace("bn1.running_var", "conv1.weight")
    assert note.startswith(f"the values of net.{named} are zero, or far too large or too small")
