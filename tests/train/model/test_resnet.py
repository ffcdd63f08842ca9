"""Tests of the network against the paper and against an independent implementation."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from resdeploy.errors import CheckpointError
from resdeploy.images.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Channels, Preprocessing
from resdeploy.train.model.architecture import (
    ARCHITECTURES,
    Architecture,
    BlockType,
    Shortcut,
)
from resdeploy.train.model.resnet import Normalize, ResNet
from tests.samples import FAMILY, TINY, make_classifier, randomise_batch_norms

RESNET34 = Architecture(classes=1000)


def on_meta(architecture: Architecture) -> ResNet:
    """Return the network without memory for its weights."""
    with torch.device("meta"):
        return ResNet(architecture)


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def weighted_layers(network: nn.Module) -> int:
    """Return the paper's number of layers: convolutions of the main path, and the head."""
    return sum(
        isinstance(module, (nn.Conv2d, nn.Linear)) and "downsample" not in name
        for name, module in network.named_modules()
    )


def shapes(network: ResNet, size: int) -> dict[str, tuple[int, ...]]:
    """Return the output shape of each child of the network, without the batch axis."""
    found: dict[str, tuple[int, ...]] = {}

    def record(name: str) -> Any:
        return lambda module, inputs, output: found.update({name: tuple(output.shape[1:])})

    for name, child in network.named_children():
        child.register_forward_hook(record(name))
    network(torch.empty((2, 3, size, size), device="meta"))
    return found


# Table 1 of the paper


def test_resnet34_has_21797672_parameters() -> None:
    assert parameters(on_meta(RESNET34)) == 21_797_672


@pytest.mark.parametrize(
    ("shortcut", "expected"),
    [
        # The three projections have 64*128 + 128*256 + 256*512 weights, and two batch-norm
        # parameters for each of 128 + 256 + 512 channels.
        (Shortcut.A, 21_797_672 - 172_032 - 1_792),
        (Shortcut.PLAIN, 21_797_672 - 172_032 - 1_792),
        # The other 13 blocks have projections, too: 3, 3, 5 and 2 blocks of widths 64 to 512.
        (
            Shortcut.C,
            21_797_672
            + sum(n * (w * w + 2 * w) for n, w in ((3, 64), (3, 128), (5, 256), (2, 512))),
        ),
    ],
)
def test_parameters_of_the_variants(shortcut: Shortcut, expected: int) -> None:
    assert parameters(on_meta(Architecture(classes=1000, shortcut=shortcut))) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [  # documentation of torchvision.models, num_params of the weights
        ("resnet18", 11_689_512),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
        ("resnext50-32x4d", 25_028_904),
        ("resnext101-32x8d", 88_791_336),
        ("resnext101-64x4d", 83_455_272),
        ("wide-resnet50-2", 68_883_240),
        ("wide-resnet101-2", 126_886_696),
    ],
)
def test_published_numbers_of_parameters(name: str, expected: int) -> None:
    network = on_meta(replace(ARCHITECTURES[name], classes=1000))
    assert parameters(network) == expected
    assert f"{weighted_layers(network)}" in name


@pytest.mark.parametrize("shortcut", list(Shortcut))
def test_thirty_four_weighted_layers(shortcut: Shortcut) -> None:
    architecture = Architecture(classes=10, shortcut=shortcut)
    assert architecture.layers == 34
    assert weighted_layers(on_meta(architecture)) == 34


def test_sixteen_blocks_of_3x3_convolutions() -> None:
    kernels = [m.kernel_size for m in on_meta(RESNET34).modules() if isinstance(m, nn.Conv2d)]
    assert kernels.count((3, 3)) == 32
    assert kernels.count((1, 1)) == 3
    assert kernels[0] == (7, 7)
    assert len(kernels) == 36


@pytest.mark.parametrize("shortcut", list(Shortcut))
def test_shapes_at_224_pixels(shortcut: Shortcut) -> None:
    found = shapes(on_meta(Architecture(classes=1000, shortcut=shortcut)), 224)
    assert found == {
        "conv1": (64, 112, 112), "bn1": (64, 112, 112), "relu": (64, 112, 112),
        "maxpool": (64, 56, 56), "layer1": (64, 56, 56), "layer2": (128, 28, 28),
        "layer3": (256, 14, 14), "layer4": (512, 7, 7), "avgpool": (512,), "fc": (1000,),
    }  # fmt: skip


@pytest.mark.parametrize("size", [8, 31, 32, 33, 100, 225])
def test_accepts_any_image_size(size: int) -> None:
    assert shapes(on_meta(RESNET34), size)["fc"] == (1000,)


@pytest.mark.parametrize(
    ("blocks", "shortcut", "name"),
    [
        ((3, 4, 6, 3), Shortcut.B, "resnet34"),
        ((2, 2, 2, 2), Shortcut.B, "resnet18"),
        ((3, 4, 6, 3), Shortcut.A, "resnet34-A"),
        ((3, 4, 6, 3), Shortcut.PLAIN, "plain34"),
    ],
)
def test_names_are_those_of_the_paper(
    blocks: tuple[int, ...], shortcut: Shortcut, name: str
) -> None:
    architecture = Architecture(classes=5, blocks=blocks, shortcut=shortcut)
    assert architecture.name == name
    assert Architecture.from_json(architecture.to_json()) == architecture


@pytest.mark.parametrize(
    ("member", "name"),
    [
        ("bottleneck", "resnet11-width16"),
        ("v1-a-cifar", "resnet11-width16-A-v1-cifar"),
        ("grouped-concat", "resnext11-8x16d-width32-C"),
        ("wide-plain", "plain11-2-width16"),
        ("gray-five-stages", "resnet14-width8-gray"),
    ],
)
def test_names_of_the_family(member: str, name: str) -> None:
    assert FAMILY[member].name == name
    assert Architecture.from_json(FAMILY[member].to_json()) == FAMILY[member]


@pytest.mark.parametrize("blocks", [(), (1,) * 6, (0, 1, 1, 1), (1, 1, 1, 9999)])
def test_rejects_impossible_numbers_of_blocks(blocks: tuple[int, ...]) -> None:
    with pytest.raises(ValueError):
        Architecture(classes=10, blocks=blocks)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"classes": 0}, "classes is 0"),
        ({"width": 0}, "from 1 to 65536"),
        ({"hidden": (1 << 17,)}, "from 1 to 65536"),
        ({"block": BlockType.BOTTLENECK, "groups": 1 << 16}, "from 1 to 65536"),
        ({"input_channels": 4}, "must be 1 or 3"),
        ({"groups": 32}, "need bottleneck blocks"),
        ({"stride_in_1x1": True}, "need bottleneck blocks"),
        ({"block": BlockType.BOTTLENECK, "width": 8, "group_width": 4}, "from 1 to 65536"),
    ],
)
def test_rejects_impossible_networks(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Architecture(**{"classes": 10, **fields})


# Comparison with an independent implementation


def test_keys_are_torchvisions() -> None:
    expected = OrderedDict[str, None]()

    def norm(name: str) -> None:
        for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            expected[f"{name}.{part}"] = None

    expected["conv1.weight"] = None
    norm("bn1")
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            prefix = f"layer{stage}.{block}"
            for index in (1, 2):
                expected[f"{prefix}.conv{index}.weight"] = None
                norm(f"{prefix}.bn{index}")
            if stage > 1 and block == 0:
                expected[f"{prefix}.downsample.0.weight"] = None
                norm(f"{prefix}.downsample.1")
    expected["fc.weight"] = expected["fc.bias"] = None
    assert list(on_meta(RESNET34).state_dict()) == list(expected)


def functional_resnet(
    state: dict[str, Tensor],
    x: Tensor,
    blocks: tuple[int, ...],
    *,
    stride_in_1x1: bool = False,
    residual: bool = True,
) -> Tensor:
    """Compute a network of the paper's table 1 from a state dict with torchvision's names.

    The shapes of the weights give kernels, groups, stem, pooling and head.
    """

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        groups = x.shape[1] // weight.shape[1]
        return F.conv2d(x, weight, None, stride, weight.shape[2] // 2, 1, groups)

    def norm(name: str, x: Tensor) -> Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        scale = state[f"{name}.weight"] / (var + 1e-5).sqrt()
        shift = state[f"{name}.bias"] - mean * scale
        return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)

    imagenet = state["conv1.weight"].shape[2] == 7
    x = norm("bn1", conv("conv1", x, 2 if imagenet else 1)).clamp(min=0)
    if imagenet:
        x = F.max_pool2d(x, 3, 2, 1)
    for stage, count in enumerate(blocks, start=1):
        for block in range(count):
            prefix = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            last = 3 if f"{prefix}.conv3.weight" in state else 2
            strided = 1 if last == 2 or stride_in_1x1 else 2
            y = x
            for index in range(1, last + 1):
                y = conv(f"{prefix}.conv{index}", y, stride if index == strided else 1)
                y = norm(f"{prefix}.bn{index}", y)
                y = y if index == last else y.clamp(min=0)
            if f"{prefix}.downsample.0.weight" in state:
                x = norm(f"{prefix}.downsample.1", conv(f"{prefix}.downsample.0", x, stride))
            elif residual:  # option A; nothing changes if the shapes are equal
                x = F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, 0, y.shape[1] - x.shape[1]))
            x = (x + y if residual else y).clamp(min=0)
    heads = sorted(name for name in state if name.startswith("fc.") and name.endswith("weight"))
    features = x.mean((2, 3))
    if state[heads[0]].shape[1] == 2 * x.shape[1]:  # fastai's AdaptiveConcatPool2d
        features = torch.cat([x.flatten(2).max(2).values, features], 1)
    for name in heads:
        features = features @ state[name].T + state[name.replace("weight", "bias")]
        features = features if name == heads[-1] else features.clamp(min=0)
    return features


@pytest.mark.parametrize("member", [None, *FAMILY])
@torch.inference_mode()
def test_the_network_computes_the_function_of_the_paper(member: str | None) -> None:
    architecture = FAMILY[member] if member else Architecture(classes=10)
    torch.manual_seed(0)
    network = randomise_batch_norms(ResNet(architecture)).double()
    images = torch.randn(2, architecture.input_channels, 40, 56, dtype=torch.float64)
    expected = functional_resnet(
        network.state_dict(), images, architecture.blocks,
        stride_in_1x1=architecture.stride_in_1x1,
        residual=architecture.shortcut is not Shortcut.PLAIN,
    )  # fmt: skip
    # Another order of summation in float64 gives a relative error of about 1e-14.
    torch.testing.assert_close(
        network(images), expected, rtol=1e-10, atol=1e-10 * expected.abs().max().item()
    )


def test_keys_of_bottlenecks_and_hidden_layers_are_torchvisions() -> None:
    keys = set(on_meta(FAMILY["grouped-concat"]).state_dict())
    assert {"layer1.0.conv3.weight", "layer1.0.bn3.bias", "layer1.0.downsample.1.bias"} <= keys
    assert not any(".3." in key or "conv4" in key for key in keys)
    head = on_meta(FAMILY["grouped-concat"]).fc.state_dict()
    assert list(head) == [f"{i}.{part}" for i in (0, 2, 4) for part in ("weight", "bias")]
    assert head["0.weight"].shape == (24, 2 * 4 * 64)


# Shortcuts


@pytest.mark.parametrize("shortcut", list(Shortcut))
def test_the_projections_of_each_option(shortcut: Shortcut) -> None:
    network = on_meta(Architecture(classes=10, shortcut=shortcut))
    blocks = [block for stage in network.stages for block in stage.children()]
    projected = sum(isinstance(block.downsample, nn.Sequential) for block in blocks)
    assert projected == {Shortcut.A: 0, Shortcut.B: 3, Shortcut.C: 16, Shortcut.PLAIN: 0}[shortcut]
    assert {block.residual for block in blocks} == {shortcut is not Shortcut.PLAIN}


@torch.inference_mode()
def test_option_a_keeps_every_second_pixel_and_adds_zeros() -> None:
    network = ResNet(Architecture(classes=2, blocks=(1, 1, 1, 1), shortcut=Shortcut.A))
    downsample = network.stages[1][0].downsample  # type: ignore[index]
    x = torch.randn(1, 64, 5, 6)
    y = downsample(x)
    assert y.shape == (1, 128, 3, 3)
    torch.testing.assert_close(y[:, :64], x[:, :, ::2, ::2], rtol=0, atol=0)
    assert not y[:, 64:].any()


@torch.inference_mode()
def test_an_identity_shortcut_passes_through_a_block_of_zeros() -> None:
    for shortcut in (Shortcut.A, Shortcut.B, Shortcut.PLAIN):
        network = ResNet(Architecture(classes=2, blocks=(1, 1, 1, 1), shortcut=shortcut)).eval()
        block = network.stages[0][0]  # type: ignore[index]
        nn.init.zeros_(block.conv2.weight)
        x = torch.rand(1, 64, 4, 4)
        expected = torch.zeros_like(x) if shortcut is Shortcut.PLAIN else x
        torch.testing.assert_close(block(x), expected, rtol=0, atol=0)


# Normalisation


def test_normalisation_equals_that_of_torchvision() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    mean, std = (
        torch.tensor(x, dtype=torch.float64).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD)
    )
    exact = (images.permute(0, 3, 1, 2).double() / 255 - mean) / std
    ours = Normalize(Preprocessing(image_size=16))(images)
    # Two roundings of numbers below 3 give an error of a few times 2^-24.
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=1e-6)
    assert ours.dtype == torch.float32
    assert ours.is_contiguous()


def test_bgr_of_0_to_255_equals_opencvs_usual_normalisation() -> None:
    images = torch.randint(0, 256, (2, 5, 6, 3), dtype=torch.uint8)
    prep = Preprocessing(
        image_size=(5, 6), channels=Channels.BGR, value_range=255, mean=(103.5, 116.3, 123.7),
        std=(57.4, 57.1, 58.4),
    )  # fmt: skip
    bgr = images.numpy()[..., ::-1].astype(np.float64)
    expected = ((bgr - prep.mean) / prep.std).transpose(0, 3, 1, 2)
    # Two roundings of numbers below 5 give an error of a few times 2^-23.
    np.testing.assert_allclose(Normalize(prep)(images).numpy(), expected, rtol=0, atol=2e-6)


def test_grey_is_that_of_pillow_before_the_normalisation() -> None:
    images = torch.randint(0, 256, (2, 50, 60, 3), dtype=torch.uint8)
    prep = Preprocessing(image_size=(50, 60), channels=Channels.GRAY, mean=(0.4,), std=(0.2,))
    grey = np.stack([np.array(Image.fromarray(image.numpy()).convert("L")) for image in images])
    expected = (grey[:, np.newaxis].astype(np.float64) / 255 - 0.4) / 0.2
    # Two roundings of numbers below 5 give an error of a few times 2^-23.
    np.testing.assert_allclose(Normalize(prep)(images).numpy(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("channels", "taken", "hint"), [("gray", 3, "--channels rgb"), ("rgb", 1, "--channels gray")]
)
def test_refuses_another_number_of_channels(channels: str, taken: int, hint: str) -> None:
    given = 1 if channels == "gray" else 3
    prep = Preprocessing(
        image_size=32, channels=Channels(channels), mean=(0.5,) * given, std=(0.5,) * given
    )
    with pytest.raises(CheckpointError, match=f"takes images of {taken} channel") as caught:
        make_classifier(dataclasses.replace(TINY, input_channels=taken), preprocessing=prep)
    assert hint in str(caught.value.hint)


@torch.inference_mode()
def test_the_classifier_takes_pixels() -> None:
    classifier = make_classifier()
    assert classifier(torch.zeros((2, 32, 32, 3), dtype=torch.uint8)).shape == (2, 3)
