"""The settings of a training run. Needs no torch, so that the command line can show defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from resdeploy.train.model.architecture import Shortcut
from resdeploy.train.recipes import FINETUNE, QAT, QUICK, RECIPES

DIGITS = "digits"
REFERENCE_BATCH = 256  # the batch that `lr` is given for
SCHEDULES = ("cosine", "step")
CROPS = ("area", "scale")
STEPS = (0.5, 0.75)  # shares of the epochs after which the rate falls to a tenth


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
    nesterov: bool = True
    weight_decay: float = 5e-4
    """On weights; not on biases and the norms' factors, unless `decay_all`."""
    decay_all: bool = False
    schedule: str = "cosine"
    """`cosine`, or `step`: a tenth after a half and again after three quarters of the epochs."""
    warmup_epochs: float = 1.0
    label_smoothing: float = 0.1
    mixup: float = 0.0
    """Parameter of mixup's Beta distribution; 0: off."""
    cutmix: float = 0.0
    """The same of CutMix."""
    randaugment: int = 0
    """Magnitude of random distortions, up to 30; 0: off."""
    ema: float = 0.0
    """Share of the average of the weights that a step keeps; 0: no average."""
    flip: bool | None = None
    """Mirror images; None: yes, except for digits."""
    crop: str = "area"
    """How a part of an image is drawn, see `augment.Augmentation`."""
    min_area: float | None = None
    """Smallest share of an image that a random crop keeps; None: 0.85 for digits, else 0.35."""
    shortcut: Shortcut | None = None
    """None: that of `init`, or B."""
    init: str | None = None
    """Weights to start from; the classifier is new where the number of classes differs."""
    freeze: bool = False
    """Train the classifier alone, on the features that `init` gives."""
    class_weights: bool = False
    """Count rare classes for more, so that all together count alike."""
    qat: bool = False
    """Quantise while training, as the INT8 graph for TensorRT will, so that `init` adapts to it."""
    distillation: float = 0.0
    """With `qat`: how far it learns the answers of `init`, rather than labels, from 0 to 1."""
    recipe: str = QUICK
    """Which of `recipes.RECIPES` the settings started from."""
    seed: int = 0
    accumulate: int = 1
    """Parts that a process computes its share of a batch in; more need less memory."""
    bf16: bool | None = None
    """Compute in bfloat16; None: where that is faster."""
    compile: bool | None = None
    """Let PyTorch's compiler join operations; None: on a GPU, where it can. Rounds differently."""
    save_minutes: float = 10.0
    """How often the state is saved within an epoch; it always is after one."""
    tensorboard: bool = False
    """Also write the metrics for TensorBoard."""
    workers: int | None = None
    """Processes that decode images; None: none on a CPU, else one for each core but one."""

    def __post_init__(self) -> None:
        for name, least in (
            ("epochs", 1),
            ("batch_size", 2),
            ("accumulate", 1),
            ("save_minutes", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it takes at least {least}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr is {self.lr}; it takes a number above 0")
        for name, most in (
            ("momentum", 1),
            ("label_smoothing", 1),
            ("ema", 1),
            ("randaugment", 31),
        ):
            if not 0 <= getattr(self, name) < most:
                raise ValueError(f"{name} is {getattr(self, name)}; it takes 0 up to {most}")
        for name, choices in (("schedule", SCHEDULES), ("crop", CROPS), ("recipe", RECIPES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)}; choose from {list(choices)}")
        if self.mixup < 0 or self.cutmix < 0 or self.weight_decay < 0:
            raise ValueError("mixup, cutmix and weight_decay take 0 or more")
        if self.freeze and self.init is None:
            raise ValueError("freeze keeps the features of init: name the weights to start from")
        if self.qat and self.init is None:
            raise ValueError("qat adapts a trained network: name it with init")
        if self.qat and (self.freeze or self.ema or self.bf16):
            raise ValueError("qat trains all weights, in float32 and without an average of them")
        if not 0 <= self.distillation <= 1:
            raise ValueError(f"distillation is {self.distillation}; it takes 0 to 1")
        if self.distillation and not self.qat:
            raise ValueError("distillation is from a network to its INT8 twin: add qat")

    def to_json(self) -> dict[str, Any]:
        """The form that `state.json` holds."""
        return asdict(self) | {"shortcut": self.shortcut and self.shortcut.value}

    @classmethod
    def from_recipe(cls, name: str | None = None, **chosen: Any) -> TrainingConfig:
        """A recipe's settings, with those of `chosen` that are not None in their place.

        Args:
            name: Of a recipe; None: `qat` with `qat`, `finetune` with `init`, otherwise `quick`.
            chosen: Fields of TrainingConfig.

        Raises:
            ValueError: there is no such recipe, or a setting is impossible.
        """
        given = {field: value for field, value in chosen.items() if value is not None}
        name = name or (QAT if given.get("qat") else FINETUNE if "init" in given else QUICK)
        if name not in RECIPES:
            raise ValueError(f"there is no recipe {name!r}: choose from {', '.join(RECIPES)}")
        if isinstance(given.get("shortcut"), str):
            given["shortcut"] = Shortcut(given["shortcut"])
        return cls(**{**RECIPES[name].settings, **given, "recipe": name})

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrainingConfig:
        """Inverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: `data` is not a set of settings.
        """
        shortcut = data["shortcut"]
        return cls(**{**data, "shortcut": None if shortcut is None else Shortcut(shortcut)})


def learning_rate(config: TrainingConfig, epochs_done: float) -> float:
    """The rate after `epochs_done` epochs: a line up to the highest, then down again.

    Sources: Goyal et al. 2017, arXiv:1706.02677, section 2 (warm-up, rate in proportion to the
    batch); Loshchilov and Hutter 2016, arXiv:1608.03983, equation 5 (cosine); He et al. 2015,
    arXiv:1512.03385, section 4.2 (steps at a half and three quarters).
    """
    highest = config.lr * config.batch_size / REFERENCE_BATCH
    warmup = min(config.warmup_epochs, config.epochs / 2)
    if epochs_done < warmup:
        return highest * epochs_done / warmup
    if config.schedule == "step":
        return highest * 0.1 ** sum(epochs_done >= share * config.epochs for share in STEPS)
    share = (epochs_done - warmup) / (config.epochs - warmup)
    return highest * (1 + math.cos(math.pi * min(share, 1.0))) / 2
