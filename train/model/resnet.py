"""Residual networks of basic blocks, and plain networks, with torchvision's parameter names.

Source: the paper named in `architecture`. Shape letters: N images, C channels, H rows, W columns,
K classes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resdeploy.errors import CheckpointError
from resdeploy.images.preprocessing import Channels, Preprocessing
from resdeploy.tables import plural
from resdeploy.train.model.architecture import Architecture, Shortcut
from resdeploy.train.model.padding_skipping_conv import TrimmedConv2d

WIDTHS = (64, 128, 256, 512)
# Weights of R, G and B in a grey pixel, times 65536: ITU-R BT.601, rounded as in Pillow's
# convert("L") (src/libImaging/Convert.c).
LUMA = (19595, 38470, 7471)


class BasicBlock(nn.Module):
    """A block of two 3x3 convolutions: (N, C_in, H, W) -> (N, C_out, H/stride, W/stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = TrimmedConv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = TrimmedConv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU(inplace=True)
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
        out: Tensor = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.residual:
            out = out + (x if self.downsample is None else self.downsample(x))
        activated: Tensor = self.relu2(out)
        return activated


class ZeroPadShortcut(nn.Module):
    """The shortcut of option A: every `stride`-th pixel, and `extra` new channels of zeros."""

    def __init__(self, stride: int, extra: int) -> None:
        super().__init__()
        self.stride = stride
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        # Pooling single pixels is the same as slicing, but every engine can run it in INT8.
        x = F.max_pool2d(x, kernel_size=1, stride=self.stride)
        return F.pad(x, (0, 0, 0, 0, 0, self.extra))  # pairs for W, H and C


class GlobalAveragePool(nn.Module):
    """A layer that returns the mean of each channel: (N, C, H, W) -> (N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class ResNet(nn.Module):
    """A network for normalised images: float (N, 3, H, W) -> logits (N, K).

    For 224x224 the maps are 112x112x64 (stem), 56x56x64, 28x28x128, 14x14x256 and 7x7x512.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.conv1 = nn.Conv2d(architecture.input_channels, WIDTHS[0], 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = WIDTHS[0]
        for stage, (outputs, count) in enumerate(zip(WIDTHS, architecture.blocks), start=1):
            blocks = []
            for index in range(count):
                stride = 2 if index == 0 and stage > 1 else 1
                blocks.append(BasicBlock(inputs, outputs, stride, architecture.shortcut))
                inputs = outputs
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.avgpool = GlobalAveragePool()
        self.fc = nn.Linear(inputs, architecture.classes)
        for module in self.modules():
            # Initialising a meta tensor would import PyTorch's compiler, which takes seconds.
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                # He et al. 2015b, arXiv:1502.01852
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def stages(self) -> Sequence[nn.Module]:
        """Return the four stages in order."""
        return [getattr(self, f"layer{stage}") for stage in range(1, len(WIDTHS) + 1)]

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))  # (N, 64, H/4, W/4)
        for stage in self.stages:
            x = stage(x)  # the last one: (N, 512, H/32, W/32)
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
    swapped.normalize.channels = Channels.RGB
    for buffer in swapped.normalize.buffers():
        buffer.copy_(buffer.flip(1))
    weight = first_convolution(swapped.network).weight
    weight.data = weight.data.flip(1).contiguous()
    return swapped


def first_convolution(network: nn.Module) -> nn.Conv2d:
    return next(module for module in network.modules() if isinstance(module, nn.Conv2d))
