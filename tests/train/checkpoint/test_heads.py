"""Tests of heads, against the forward pass of the modules that they come from."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from resdeploy.train.checkpoint.heads import (
    drop_training_tensors,
    read_head,
    with_second_logit,
)

FEATURES, CLASSES = 8, 3


def randomised(layers: list[nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    for layer in layers:
        if isinstance(layer, nn.BatchNorm1d):
            for tensor in layer.state_dict().values():
                if tensor.is_floating_point():
                    tensor.uniform_(0.5, 1.5)
    return nn.Sequential(*layers).eval()


def run_head(layers: list[tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    for index, (weight, bias) in enumerate(layers):
        x = nn.functional.linear(x.relu() if index else x, weight.float(), bias.float())
    return x


@pytest.mark.parametrize(
    ("layers", "hidden"),
    [
        ([nn.Dropout(), nn.Linear(8, 3)], 0),
        ([nn.Linear(8, 3, bias=False)], 0),
        ([nn.Linear(8, 5), nn.ReLU(), nn.Dropout(), nn.Linear(5, 3)], 1),
        ([nn.Linear(8, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)], 1),
        ([nn.Linear(8, 5), nn.ReLU(), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 3)], 1),
        ([nn.BatchNorm1d(8), nn.Linear(8, 3)], 0),
        ([nn.Linear(8, 5), nn.Linear(5, 3)], 0),
        ([nn.Linear(8, 3), nn.BatchNorm1d(3)], 0),
        ([nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)], 2),
        (  # fastai/vision/learner.py, create_head
            [nn.BatchNorm1d(16), nn.Dropout(), nn.Linear(16, 5, bias=False), nn.ReLU(),
             nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 3, bias=False)],
            1,
        ),
    ],
)  # fmt: skip
def test_a_head_computes_what_its_modules_compute(layers: list[nn.Module], hidden: int) -> None:
    module = randomised(layers)
    state = {f"head.{name}": tensor for name, tensor in module.state_dict().items()}
    state = {name: tensor for name, tensor in state.items() if "batches" not in name}
    head = read_head(state, FEATURES)
    assert len(head.layers) == hidden + 1
    x = torch.rand(4, 16 if head.concatenated else 8)
    # Folding in float64 leaves the rounding of a few float32 operations on values near 1.
    torch.testing.assert_close(run_head(head.layers, x), module(x), rtol=1e-5, atol=1e-5)


def test_assumptions_are_noted() -> None:
    state = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3, bias=False)).state_dict()
    notes = read_head(state, FEATURES).notes
    assert notes == ["a ReLU is assumed after 0", "2 has no bias, so zeros are taken"]


def test_a_1x1_convolution_is_a_linear_layer() -> None:
    convolution = nn.Conv2d(8, 3, 1)
    [(weight, bias)] = read_head(convolution.state_dict(), FEATURES).layers
    torch.testing.assert_close(weight, convolution.weight.detach()[:, :, 0, 0], rtol=0, atol=0)
    torch.testing.assert_close(bias, convolution.bias, rtol=0, atol=0)


def linear(name: str, inputs: int, outputs: int) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.zeros(outputs, inputs), f"{name}.bias": torch.zeros(outputs)}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "no linear layer"),
        (linear("fc1", 8, 5) | linear("fc2", 5, 3), "has fc1 beside fc2; the order of layers"),
        (linear("fc", 8, 3) | linear("auxiliary", 8, 2), "has fc beside auxiliary"),
        (linear("fc", 25088, 3), "a head for 25088 features, but the blocks return 8"),
        (linear("fc.0", 8, 5) | linear("fc.2", 6, 3), "a layer for 6 features after one of 5"),
        (linear("fc", 8, 3) | {"neck.weight": torch.ones(8)}, r"unknown tensor neck\.weight"),
        (
            linear("fc.0", 8, 3)
            | {f"fc.2.{leaf}": torch.ones(3) for leaf in ("running_mean", "running_var")},
            "batch norm after an activation",
        ),
        (linear("fc", 8, 3) | {"fc.bias": torch.zeros(2)}, r"wrong shape for fc\.bias"),
    ],
)
def test_other_heads_are_refused(tensors: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_head(tensors, FEATURES)


def test_weights_of_a_loss_do_not_belong_to_the_head() -> None:
    head = linear("fc", 8, 3)
    kept, dropped = drop_training_tensors({**head, "criterion.weight": torch.ones(3)}, {})
    assert kept.keys() == head.keys()
    assert dropped == ["criterion.weight"]


def test_a_second_logit_of_zero_turns_softmax_into_the_sigmoid() -> None:
    state = with_second_logit(
        linear("fc.0", 8, 5) | {"fc.2.weight": torch.rand(1, 5), "fc.2.bias": torch.rand(1)}
    )
    x = torch.rand(4, 5)
    logits = nn.functional.linear(x, state["fc.2.weight"], state["fc.2.bias"])
    torch.testing.assert_close(logits.softmax(1)[:, 1], logits[:, 1].sigmoid())
    assert state["fc.0.weight"].shape == (5, 8)
