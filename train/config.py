"""The settings of a training run. Needs no torch, so that the command line can show defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from resdeploy.train.architecture import Shortcut

DIGITS = "digits"
REFERENCE_BATCH = 256  # the batch that `lr` is given for


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """Settings of a run; they are stored with it, and a resumed run keeps them."""

    data: str = DIGITS
    """A folder with `train/` and `val/`, or `digits`."""
    epochs: int = 13
    image_size: int = 32
    """Side of the network's input, in pixels."""
    batch_size: int = 64
    lr: float = 0.05
    """Highest learning rate, for a batch of 256; it is scaled to the batch size."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    """On weights; not on biases and the norms' factors."""
    warmup_epochs: float = 1.0
    label_smoothing: float = 0.1
    flip: bool | None = None
    """Mirror images; None: yes, except for digits."""
    min_area: float | None = None
    """Smallest share of an image that a random crop keeps; None: 0.85 for digits, else 0.35."""
    shortcut: Shortcut | None = None
    """None: that of `init`, or B."""
    init: str | None = None
    """Weights to start from; the classifier is new where the number of classes differs."""
    seed: int = 0
    workers: int | None = None
    """Processes that decode images; None: none on a CPU, whose cores are busy, 4 with a GPU."""

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it takes at least {least}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr is {self.lr}; it takes a number above 0")

    def to_json(self) -> dict[str, Any]:
        """The form that `state.json` holds."""
        return asdict(self) | {"shortcut": self.shortcut and self.shortcut.value}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrainingConfig:
        """Inverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: `data` is not a set of settings.
        """
        shortcut = data["shortcut"]
        return cls(**{**data, "shortcut": None if shortcut is None else Shortcut(shortcut)})


def learning_rate(config: TrainingConfig, epochs_done: float) -> float:
    """The rate after `epochs_done` epochs: a line up to the highest, then half a cosine to zero.

    Sources: Goyal et al. 2017, arXiv:1706.02677, section 2 (warm-up, rate in proportion to the
    batch); Loshchilov and Hutter 2016, arXiv:1608.03983, equation 5 (cosine).
    """
    highest = config.lr * config.batch_size / REFERENCE_BATCH
    warmup = min(config.warmup_epochs, config.epochs / 2)
    if epochs_done < warmup:
        return highest * epochs_done / warmup
    share = (epochs_done - warmup) / (config.epochs - warmup)
    return highest * (1 + math.cos(math.pi * min(share, 1.0))) / 2
