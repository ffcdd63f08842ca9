"""Residual networks, and plain networks, with torchvision's parameter names.

Source: the paper named in `architecture`. Shape letters: N images, C channels, H rows, W columns,
K classes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resdeploy.errors import CheckpointError
from resdeploy.images.preprocessing import Channels, Preprocessing
from resdeploy.tables import plural
from resdeploy.train.model.architecture import Architecture, BlockType, Pooling, Shortcut, Stem
from resdeploy.train.model.padding_skipping_conv import TrimmedConv2d

EXPANSION = 4  # outputs of a bottleneck, as a multiple of its stage's width
# Weights of R, G and B in a grey pixel, times 65536: ITU-R BT.601, rounded as in Pillow's
# convert("L") (src/libImaging/Convert.c).
LUMA = (19595, 38470, 7471)


class Block(nn.Module):
    """A block of convolutions beside a shortcut: (N, C_in, H, W) -> (N, C_out, H', W').

    Batch norm and a ReLU follow each convolution; the shortcut is added before the last ReLU.
    """

    def __init__(self, convolutions: Sequence[nn.Conv2d], stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.convolutions = len(convolutions)
        for index, convolution in enumerate(convolutions, start=1):
            self.add_module(f"conv{index}", convolution)
            self.add_module(f"bn{index}", nn.BatchNorm2d(convolution.out_channels))
            self.add_module(f"relu{index}", nn.ReLU(inplace=True))
        inputs, outputs = convolutions[0].in_channels, convolutions[-1].out_channels
        self.downsample: nn.Module | None = None
        self.residual = shortcut is not Shortcut.PLAIN
        reshapes = stride != 1 or inputs != outputs
        if shortcut is Shortcut.C or (shortcut is Shortcut.B and reshapes):
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        elif shortcut is Shortcut.A and reshapes:
            self.downsample = ZeroPadShortcut(stride, outputs - inputs)

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for index in range(1, self.convolutions + 1):
            out = getattr(self, f"bn{index}")(getattr(self, f"conv{index}")(out))
            if index == self.convolutions and self.residual:
                out = out + (x if self.downsample is None else self.downsample(x))
            out = getattr(self, f"relu{index}")(out)
        return out


def block_convolutions(
    architecture: Architecture, stage: int, inputs: int, stride: int
) -> list[nn.Conv2d]:
    """Return the convolutions of a block with as many input channels; the first stage is 0."""
    outputs = architecture.width << stage
    if architecture.block is BlockType.BASIC:
        return [
            TrimmedConv2d(inputs, outputs, 3, stride, 1, bias=False),
            TrimmedConv2d(outputs, outputs, 3, 1, 1, bias=False),
        ]
    width = architecture.bottleneck_width(stage)
    strides = (stride, 1) if architecture.stride_in_1x1 else (1, stride)
    return [
        nn.Conv2d(inputs, width, 1, strides[0], bias=False),
        TrimmedConv2d(width, width, 3, strides[1], 1, groups=architecture.groups, bias=False),
        nn.Conv2d(width, EXPANSION * outputs, 1, bias=False),
    ]


class ZeroPadShortcut(nn.Module):
    """The shortcut of option A: every `stride`-th pixel, and `extra` new channels of zeros."""

    def __init__(self, stride: int, extra: int) -> None:
        super().__init__()
        self.stride = stride
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            # Pooling single pixels is the same as slicing, but every engine can run it in INT8.
            x = F.max_pool2d(x, kernel_size=1, stride=self.stride)
        return F.pad(x, (0, 0, 0, 0, 0, self.extra))  # pairs for W, H and C


class GlobalAveragePool(nn.Module):
    """A layer that returns the mean of each channel: (N, C, H, W) -> (N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class GlobalMaxPool(nn.Module):
    """A layer that returns the maximum of each channel: (N, C, H, W) -> (N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.amax((2, 3))


class MaxAndAveragePool(nn.Module):
    """A layer that returns both global poolings, the maxima first: (N, C, H, W) -> (N, 2 C)."""

    def __init__(self) -> None:
        super().__init__()
        self.max = GlobalMaxPool()
        self.average = GlobalAveragePool()

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.max(x), self.average(x)], 1)


class ResNet(nn.Module):
    """A network for normalised images: float (N, input_channels, H, W) -> logits (N, K).

    For 224x224, the maps of ResNet-34 are 112x112x64 (stem), 56x56x64, 28x28x128, 14x14x256 and
    7x7x512. Bottleneck blocks return four times as many channels.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        inputs = architecture.width
        kernel, stride, padding = (7, 2, 3) if architecture.stem is Stem.IMAGENET else (3, 1, 1)
        self.conv1 = nn.Conv2d(
            architecture.input_channels, inputs, kernel, stride, padding, bias=False
        )
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = (
            nn.MaxPool2d(3, 2, 1) if architecture.stem is Stem.IMAGENET else nn.Identity()
        )
        for stage, count in enumerate(architecture.blocks):
            blocks = []
            for index in range(count):
                stride = 2 if index == 0 and stage > 0 else 1
                convolutions = block_convolutions(architecture, stage, inputs, stride)
                blocks.append(Block(convolutions, stride, architecture.shortcut))
                inputs = convolutions[-1].out_channels
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.avgpool: nn.Module = GlobalAveragePool()
        if architecture.pooling is Pooling.MAX_AND_AVERAGE:
            self.avgpool = MaxAndAveragePool()
            inputs *= 2
        layers: list[nn.Module] = []
        for outputs in architecture.hidden:
            layers += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True)]
            inputs = outputs
        last = nn.Linear(inputs, architecture.classes)
        self.fc: Any = nn.Sequential(*layers, last) if layers else last
        for module in self.modules():
            # Initialising a meta tensor would import PyTorch's compiler, which takes seconds.
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                # He et al. 2015b, arXiv:1502.01852
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def stages(self) -> Sequence[nn.Module]:
        """Return the stages in order."""
        return [getattr(self, f"layer{n}") for n in range(1, len(self.architecture.blocks) + 1)]

    @property
    def last_layer(self) -> nn.Linear:
        """Return the linear layer that computes the logits."""
        last = self.fc[-1] if isinstance(self.fc, nn.Sequential) else self.fc
        assert isinstance(last, nn.Linear)
        return last

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.fc(self.avgpool(x))  # (N, K)
        return logits


def normed_convolutions(
    module: nn.Module,
) -> Iterator[tuple[str, nn.Conv2d, str, nn.BatchNorm2d]]:
    """Yield name and module of each convolution, and of the batch norm that follows it."""
    for parent_name, parent in module.named_modules():
        prefix = f"{parent_name}." if parent_name else ""
        for (name, convolution), (norm_name, norm) in pairwise(parent.named_children()):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                yield prefix + name, convolution, prefix + norm_name, norm


class Normalize(nn.Module):
    """The channels of the network, (values - mean) / std: uint8 RGB (N, H, W, 3) -> (N, C, H, W).

    The values are the pixels, divided by 255 if `value_range` is 1.
    """

    scale: Tensor
    shift: Tensor
    luma: Tensor
    rounding: Tensor
    unit: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.channels = preprocessing.channels
        mean, std = (
            torch.tensor(x, dtype=torch.float64) for x in (preprocessing.mean, preprocessing.std)
        )
        # One multiplication and one addition, whose constants are rounded to float32 only once.
        scale, shift = 1 / (255 // preprocessing.value_range * std), -mean / std
        self.register_buffer("scale", scale.float().view(1, -1, 1, 1))
        self.register_buffer("shift", shift.float().view(1, -1, 1, 1))
        if self.channels is Channels.GRAY:
            # The sum of the products has the unit 1/65536; adding the half rounds to the nearest.
            for name, numbers in (("luma", LUMA), ("rounding", (1 << 15,)), ("unit", (1 << 16,))):
                constant = torch.tensor(numbers, dtype=torch.int32).view(1, -1, 1, 1)
                self.register_buffer(name, constant)

    def forward(self, images: Tensor, *, contiguous: bool = True) -> Tensor:
        if self.channels is Channels.GRAY:
            # In integers, because engines may compute floats with fewer bits than the sum has.
            weighted = images.int().permute(0, 3, 1, 2) * self.luma
            total = weighted.sum(1, keepdim=True, dtype=torch.int32) + self.rounding
            pixels = torch.div(total, self.unit, rounding_mode="trunc").float()
        else:
            images = images.flip(3) if self.channels is Channels.BGR else images
            pixels = images.float().permute(0, 3, 1, 2)
        # Without contiguous(), PyTorch's convolutions take 1.6 times as long on CPUs.
        pixels = pixels.contiguous() if contiguous else pixels
        return pixels * self.scale + self.shift


class Classifier(nn.Module):
    """A network with its normalisation: uint8 RGB (N, H, W, 3) -> float32 logits (N, K).

    The normalisation is part of the model, so that it is the same in training and deployment.
    """

    def __init__(self, network: ResNet, preprocessing: Preprocessing) -> None:
        """Combine both.

        Raises:
            CheckpointError: They have different numbers of channels.
        """
        super().__init__()
        taken, given = network.architecture.input_channels, len(preprocessing.mean)
        if taken != given:
            raise CheckpointError(
                f"the network takes images of {plural(taken, 'channel')}, but the "
                f"pre-processing gives {given}: {preprocessing.channels.value}",
                f"set --channels {'gray' if taken == 1 else 'rgb'}",
            )
        self.normalize = Normalize(preprocessing)
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(self.normalize(images))
        return logits


def with_rgb_weights(classifier: Classifier) -> Classifier:
    """Return `classifier`, or a copy for BGR whose first convolution takes the channels as RGB."""
    if classifier.normalize.channels is not Channels.BGR:
        return classifier
    swapped = copy.deepcopy(classifier)
    swapped.normalize = rgb_normalisation(swapped.normalize)
    weight = first_convolution(swapped.network).weight
    weight.data = weight.data.flip(1).contiguous()
    return swapped


def rgb_normalisation(normalize: Normalize) -> Normalize:
    """Return `normalize`, or for BGR a copy that gives the same channels in the order of RGB."""
    if normalize.channels is not Channels.BGR:
        return normalize
    swapped = copy.deepcopy(normalize)
    swapped.channels = Channels.RGB
    for buffer in swapped.buffers():
        buffer.copy_(buffer.flip(1))
    return swapped


def first_convolution(network: nn.Module) -> nn.Conv2d:
    return next(module for module in network.modules() if isinstance(module, nn.Conv2d))
