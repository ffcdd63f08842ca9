"""The description of a network without its weights; this module does not import torch.

Source: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", arXiv:1512.03385:
table 1 (layers), section 3.3 (plain network, shortcut options), section 4.1 (options A, B, C).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from resdeploy.json_documents import jsonable, parse

MAX_BLOCKS = 1000
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
    width: int = 64
    """Number of channels of the stem; a stage's blocks have twice those of the stage before."""
    groups: int = 1
    """Groups of the 3x3 convolution of a bottleneck: 32 in ResNeXt-50 32x4d."""
    group_width: int = 64
    """Channels of each group in the first stage (torchvision's `width_per_group`): 4 in
    ResNeXt-50 32x4d, 128 in Wide ResNet-50-2."""
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

    @property
    def layers(self) -> int:
        """Return the paper's number of weighted layers: stem, two per block, and head."""
        return 2 * sum(self.blocks) + 2

    @property
    def name(self) -> str:
        """Return the paper's name of this network, such as `resnet34`, `resnet34-A`, `plain34`."""
        if self.shortcut is Shortcut.PLAIN:
            return f"plain{self.layers}"
        suffix = "" if self.shortcut is Shortcut.B else f"-{self.shortcut.value}"
        return f"resnet{self.layers}{suffix}"

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
