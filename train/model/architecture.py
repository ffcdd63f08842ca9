"""The description of a network without its weights; this module does not import torch.

Source: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", arXiv:1512.03385:
table 1 (layers), section 3.3 (plain network, shortcut options), section 4.1 (options A, B, C).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from resdeploy.json_documents import jsonable, parse

MAX_BLOCKS = 1000
MAX_WIDTH = 1 << 16  # of a number of channels or of linear outputs
STANDARD_WIDTH = 64
REQUIRED = ("classes", "blocks", "shortcut")


class Shortcut(str, Enum):
    """The shortcut options of section 4.1 of the paper."""

    A = "A"  # identity; if the shape changes, every second pixel and new channels of zeros
    B = "B"  # identity; if the shape changes, a 1x1 projection (torchvision's choice)
    C = "C"  # a 1x1 projection in every block
    PLAIN = "plain"  # no shortcut: the plain network of the paper's figure 4


class BlockType(str, Enum):
    """The residual blocks of the paper's figure 5."""

    BASIC = "basic"  # two 3x3 convolutions
    BOTTLENECK = "bottleneck"  # 1x1, 3x3 and 1x1 convolutions; four times as many outputs


class Stem(str, Enum):
    """The layers before the first block."""

    IMAGENET = "imagenet"  # a 7x7 convolution of stride 2, and max pooling of stride 2
    CIFAR = "cifar"  # a 3x3 convolution of stride 1


class Pooling(str, Enum):
    """The pooling before the head."""

    AVERAGE = "average"
    MAX_AND_AVERAGE = "max-and-average"  # both, one after the other: fastai's AdaptiveConcatPool2d


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The architecture of a residual network."""

    classes: int
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    """Number of blocks in each stage; by default those of ResNet-34."""
    shortcut: Shortcut = Shortcut.B
    block: BlockType = BlockType.BASIC
    width: int = STANDARD_WIDTH
    """Number of channels of the stem; a stage's blocks have twice those of the stage before."""
    groups: int = 1
    """Groups of the 3x3 convolution of a bottleneck: 32 in ResNeXt-50 32x4d."""
    group_width: int = STANDARD_WIDTH
    """Channels of each group in the first stage if `width` is 64, otherwise in proportion
    (torchvision's `width_per_group`): 4 in ResNeXt-50 32x4d, 128 in Wide ResNet-50-2."""
    stride_in_1x1: bool = False
    """True if a bottleneck's first 1x1 convolution has the stride, as in the paper; False if the
    3x3 convolution has it, as in torchvision."""
    stem: Stem = Stem.IMAGENET
    input_channels: int = 3
    """3, or 1 for a network on grey images."""
    pooling: Pooling = Pooling.AVERAGE
    hidden: tuple[int, ...] = ()
    """Outputs of the linear layers before the last one, each of which is followed by a ReLU."""

    def __post_init__(self) -> None:
        if self.classes < 1:
            raise ValueError(f"classes is {self.classes}; it must be at least 1")
        if not 1 <= len(self.blocks) <= 5 or not all(1 <= n <= MAX_BLOCKS for n in self.blocks):
            raise ValueError(
                f"blocks is {self.blocks}; it must be one to five counts from 1 to {MAX_BLOCKS}"
            )
        sizes = (self.width, self.groups, self.group_width, self.bottleneck_width(0), *self.hidden)
        if not all(1 <= size <= MAX_WIDTH for size in sizes):
            raise ValueError(
                f"the widths (width, groups, group_width, 3x3 convolution, hidden) are {sizes}; "
                f"each must be from 1 to {MAX_WIDTH}"
            )
        if self.input_channels not in (1, 3):
            raise ValueError(f"input_channels is {self.input_channels}; it must be 1 or 3")
        grouped = (self.groups, self.group_width) != (1, STANDARD_WIDTH)
        if self.block is BlockType.BASIC and (grouped or self.stride_in_1x1):
            raise ValueError("groups, group_width and stride_in_1x1 need bottleneck blocks")

    def bottleneck_width(self, stage: int) -> int:
        """Return the channels of a bottleneck's 3x3 convolution; the first stage is 0."""
        return (self.width << stage) * self.group_width // STANDARD_WIDTH * self.groups

    @property
    def layers(self) -> int:
        """Return the paper's number of weighted layers: stem, two or three per block, and head."""
        per_block = 2 if self.block is BlockType.BASIC else 3
        return per_block * sum(self.blocks) + 2

    @property
    def name(self) -> str:
        """Return the usual name, such as `resnet34`, `plain34`, `resnext50-32x4d`, `resnet50-v1`.

        Suffixes name what differs from torchvision's network: the width, the shortcuts, the stride
        in the 1x1 convolution (v1, as NVIDIA calls it), the stem and grey images.
        """
        kind, variant = "resnet", ""
        if self.groups > 1:
            kind, variant = "resnext", f"-{self.groups}x{self.group_width}d"
        elif self.group_width != STANDARD_WIDTH:
            kind, variant = "wide-resnet", f"-{self.group_width / STANDARD_WIDTH:g}"
        if self.shortcut is Shortcut.PLAIN:
            kind = "plain"
        suffixes = {
            f"-width{self.width}": self.width != STANDARD_WIDTH,
            f"-{self.shortcut.value}": self.shortcut in (Shortcut.A, Shortcut.C),
            "-v1": self.stride_in_1x1,
            "-cifar": self.stem is Stem.CIFAR,
            "-gray": self.input_channels == 1,
        }
        return f"{kind}{self.layers}{variant}" + "".join(s for s, used in suffixes.items() if used)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form of `model.json` and the bundle's manifest."""
        return {"name": self.name, **jsonable(self)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Architecture:
        """Read the form that `to_json` returns.

        Fields without which a damaged file would be taken for a ResNet-34 are required.

        Raises:
            ValueError: `data` does not describe an architecture.
        """
        if missing := [name for name in REQUIRED if name not in data]:
            raise ValueError(f"the architecture has no {missing[0]}")
        return parse(cls, data)


_BOTTLENECKS = {
    layers: Architecture(classes=1, blocks=blocks, block=BlockType.BOTTLENECK)
    for layers, blocks in {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}.items()
}
# The networks of the paper and of torchvision by name, with one class.
ARCHITECTURES = {
    known.name: known
    for known in (
        Architecture(classes=1, blocks=(2, 2, 2, 2)),
        Architecture(classes=1),
        *_BOTTLENECKS.values(),
        # Xie et al. 2017, arXiv:1611.05431; Zagoruyko, Komodakis 2016, arXiv:1605.07146; with the
        # widths of torchvision/models/resnet.py
        replace(_BOTTLENECKS[50], groups=32, group_width=4),
        replace(_BOTTLENECKS[101], groups=32, group_width=8),
        replace(_BOTTLENECKS[101], groups=64, group_width=4),
        replace(_BOTTLENECKS[50], group_width=128),
        replace(_BOTTLENECKS[101], group_width=128),
    )
}
