"""What must be known, besides the weights, to rebuild a network. Needs no torch.

Source: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", arXiv:1512.03385:
table 1 (layers), section 3.3 (plain network, shortcut options), section 4.1 (options A, B, C).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

RESNET34_BLOCKS = (3, 4, 6, 3)
MAX_BLOCKS = 1000


class Shortcut(str, Enum):
    """How a block's input reaches its output (section 4.1 of the paper)."""

    A = "A"  # identity; where the shape changes: every second pixel, new channels zero
    B = "B"  # identity; where the shape changes: 1x1 projection W_s x (torchvision, default)
    C = "C"  # a projection in every block
    PLAIN = "plain"  # none: the plain network of the paper's figure 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A network of basic blocks."""

    classes: int
    blocks: tuple[int, ...] = RESNET34_BLOCKS
    """Blocks in each of the four stages."""
    shortcut: Shortcut = Shortcut.B

    def __post_init__(self) -> None:
        if self.classes < 1:
            raise ValueError(f"classes is {self.classes}; a classifier needs at least one")
        if len(self.blocks) != 4 or not all(1 <= count <= MAX_BLOCKS for count in self.blocks):
            raise ValueError(f"blocks is {self.blocks}; it takes four counts of at least 1")

    @property
    def layers(self) -> int:
        """Weighted layers as the paper counts them: stem, two per block, classifier."""
        return 2 * sum(self.blocks) + 2

    @property
    def name(self) -> str:
        """`resnet34`, `resnet34-A`, `plain34`: the paper's name of this network."""
        if self.shortcut is Shortcut.PLAIN:
            return f"plain{self.layers}"
        suffix = "" if self.shortcut is Shortcut.B else f"-{self.shortcut.value}"
        return f"resnet{self.layers}{suffix}"

    def to_json(self) -> dict[str, Any]:
        """The form that `model.json` and the bundle's manifest hold."""
        return {
            "name": self.name,
            "classes": self.classes,
            "blocks": list(self.blocks),
            "shortcut": self.shortcut.value,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Architecture:
        """Inverse of `to_json`.

        Raises:
            KeyError, ValueError, TypeError: `data` does not describe an architecture.
        """
        return cls(
            classes=int(data["classes"]),
            blocks=tuple(int(count) for count in data["blocks"]),
            shortcut=Shortcut(data["shortcut"]),
        )
