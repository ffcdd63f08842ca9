"""The description of a network without its weights; this module does not import torch.

Source: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", arXiv:1512.03385:
table 1 (layers), section 3.3 (plain network, shortcut options), section 4.1 (options A, B, C).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

from resdeploy.json_documents import jsonable, parse

MAX_BLOCKS = 1000


class Shortcut(str, Enum):
    """The shortcut options of section 4.1 of the paper."""

    A = "A"  # identity; if the shape changes, every second pixel and new channels of zeros
    B = "B"  # identity; if the shape changes, a 1x1 projection (torchvision's choice)
    C = "C"  # a 1x1 projection in every block
    PLAIN = "plain"  # no shortcut: the plain network of the paper's figure 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The architecture of a network of basic blocks."""

    classes: int
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    """Number of blocks in each of the four stages; by default those of ResNet-34."""
    shortcut: Shortcut = Shortcut.B

    def __post_init__(self) -> None:
        if self.classes < 1:
            raise ValueError(f"classes is {self.classes}; it must be at least 1")
        if len(self.blocks) != 4 or not all(1 <= count <= MAX_BLOCKS for count in self.blocks):
            raise ValueError(
                f"blocks is {self.blocks}; it must be four counts from 1 to {MAX_BLOCKS}"
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

        Every field is required, so that a damaged file is not taken for a ResNet-34.

        Raises:
            ValueError: `data` does not describe an architecture.
        """
        if missing := [field.name for field in fields(cls) if field.name not in data]:
            raise ValueError(f"the architecture has no {missing[0]}")
        return parse(cls, data)
