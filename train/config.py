"""The settings of a training run; without torch, so that the command line loads quickly."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from resdeploy.errors import TrainingError
from resdeploy.images.class_mapping import log_once
from resdeploy.images.preprocessing import ImageSize, Preprocessing, height_and_width
from resdeploy.images.preprocessing_choice import StatedSettings, choose_preprocessing
from resdeploy.images.preprocessing_settings import PreprocessingSettings, settings_of
from resdeploy.json_documents import jsonable, parse
from resdeploy.train.model.architecture import ARCHITECTURES, Shortcut, Stem
from resdeploy.train.recipes import FINETUNE, QAT, QUICK, RECIPES

DIGITS = "digits"
SCHEDULES = ("cosine", "step")
CROPS = ("area", "scale")
MIN_PATIENCE = 3  # epochs; the accuracy on a few hundred images varies by points between epochs
NETWORK = ("arch", "stem")  # settings of a new network, which are None with `init`


class SettingError(TrainingError, ValueError):
    """A setting that is out of range, or that needs or excludes another one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """The settings of a run, which are stored in its folder and used again to resume it."""

    data: str = DIGITS
    """Folder with `train/` and `val/` or with class folders, or `digits`."""
    epochs: int = 13
    """Largest number of epochs; the schedule of the learning rate ends there."""
    patience: int | None = None
    """Epochs without a better accuracy or loss after which training stops; 0: it does not stop;
    None: a third of the epochs, at least `MIN_PATIENCE`."""
    target_accuracy: float | None = None
    """Top-1 accuracy on the validation images after which training stops, in percent."""
    image_size: ImageSize = 32
    """Side of the network's square input, or its height and width, in pixels."""
    preprocessing: Preprocessing | None = None
    """Pre-processing with this image size; None: `Preprocessing.standard`."""
    batch_size: int = 64
    """Images per step, summed over all processes."""
    lr: float = 0.05
    """Highest learning rate for a batch of 256; other batch sizes scale it in proportion."""
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    """Weight decay of the weights; biases and batch norm have none unless `decay_all` is set."""
    decay_all: bool = False
    schedule: str = "cosine"
    """`cosine`, or `step`, which divides the rate by 10 after 1/2 and 3/4 of the epochs."""
    warmup_epochs: float = 1.0
    """Epochs in which the learning rate rises linearly from 0."""
    label_smoothing: float = 0.1
    mixup: float = 0.0
    """Parameter of mixup's Beta distribution; 0: no mixup."""
    cutmix: float = 0.0
    """Parameter of CutMix's Beta distribution; 0: no CutMix."""
    randaugment: int = 0
    """Magnitude of RandAugment's distortions, up to 30; 0: no distortions."""
    ema: float = 0.0
    """Decay of the moving average of the weights; 0: no average."""
    flip: bool | None = None
    """True to mirror half of the images; None: True except for digits."""
    crop: str = "area"
    """Random crop, `area` or `scale`; see `augment.Augmentation`."""
    min_area: float | None = None
    """Smallest fraction of an image that an area crop keeps; None: 0.85 for digits, else 0.35."""
    arch: str | None = None
    """Name in `architecture.ARCHITECTURES`; None: that of `init`, or `resnet34`."""
    stem: str | None = None
    """Value of `architecture.Stem`; None: that of `init`, or `imagenet`."""
    shortcut: Shortcut | None = None
    """Shortcut option of the network; None: that of `init`, or B."""
    init: str | None = None
    """Checkpoint to start from; the head is new if the classes are others."""
    freeze: bool = False
    """True to train only the head, on the features of `init`."""
    class_weights: bool = False
    """True to weight the loss so that every class has the same total weight."""
    qat: bool = False
    """True to train `init` with the fake quantisation of the INT8 graph for TensorRT."""
    distillation: float = 0.0
    """With `qat`: share of the loss, 0 to 1, whose targets are the predictions of `init`."""
    recipe: str = QUICK
    """Recipe in `recipes.RECIPES` that the settings are based on."""
    seed: int = 0
    accumulate: int = 1
    """Number of parts in which a process computes its share of a batch; more need less memory."""
    bf16: bool | None = None
    """True to compute in bfloat16; None: True if this is faster."""
    compile: bool | None = None
    """True to use `torch.compile`, which rounds differently; None: True on a GPU if possible."""
    save_minutes: float = 10.0
    """Minutes between saves of the state within an epoch; it is always saved after an epoch."""
    tensorboard: bool = False
    workers: int | None = None
    """Processes that decode images; None: 0 on a CPU, otherwise one per core except one."""

    def __post_init__(self) -> None:
        values = {name: getattr(self, name) for name in self.__slots__}
        for name, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise _wrong_value(name, value, "a finite number")
        minima = {"epochs": 1, "batch_size": 2, "accumulate": 1}
        minima |= dict.fromkeys(("save_minutes", "mixup", "cutmix", "weight_decay", "seed"), 0)
        minima |= dict.fromkeys(("warmup_epochs", "workers", "patience"), 0)
        for name, least in minima.items():
            if values[name] is not None and values[name] < least:
                raise _wrong_value(name, values[name], f"a number from {least}")
        if min(height_and_width(self.image_size)) < 8:
            raise _wrong_value("image_size", self.image_size, "a number from 8")
        if self.lr <= 0:
            raise _wrong_value("lr", self.lr, "a number above 0")
        limits = {"momentum": 1, "label_smoothing": 1, "ema": 1, "randaugment": 31}
        for name, limit in limits.items():
            if not 0 <= values[name] < limit:
                raise _wrong_value(name, values[name], f"a number from 0 to below {limit}")
        if self.target_accuracy is not None and not 0 < self.target_accuracy <= 100:
            raise _wrong_value("target_accuracy", self.target_accuracy, "above 0 and up to 100 %")
        if not 0 <= self.distillation <= 1:
            raise _wrong_value("distillation", self.distillation, "a number from 0 to 1")
        if self.min_area is not None and not 0 < self.min_area <= 1:
            raise _wrong_value("min_area", self.min_area, "a number above 0, up to 1")
        stems = [stem.value for stem in Stem]
        for name, choices in (
            ("schedule", SCHEDULES), ("crop", CROPS), ("recipe", RECIPES),
            ("arch", ARCHITECTURES), ("stem", stems),
        ):  # fmt: skip
            if values[name] not in choices and (name not in NETWORK or values[name] is not None):
                raise _wrong_value(name, values[name], f"one of {', '.join(choices)}")
        for name in ("freeze", "qat"):
            if values[name] and self.init is None:
                raise SettingError(
                    f"{_option(name)} needs a trained network",
                    "add --init with a run folder or a file of weights",
                )
        for name in NETWORK:
            if self.init is not None and values[name] is not None:
                raise SettingError(
                    f"{_option(name)} is only possible for a new network, and --init has its own",
                    f"remove {_option(name)} or --init",
                )
        for name in ("freeze", "ema", "bf16"):
            if self.qat and values[name]:
                raise SettingError(
                    f"--qat cannot be combined with {_option(name)}", f"remove {_option(name)}"
                )
        if self.distillation and not self.qat:
            raise SettingError(
                "--distillation is only possible with --qat", "add --qat, or remove --distillation"
            )

    def pinned(self) -> TrainingConfig:
        """Return the settings with absolute paths and the defaults that depend on the data.

        A run folder holds these, so that a run can be resumed from another working folder, and with
        its data in another place.
        """
        digits = self.data == DIGITS
        # A digit fills its image, so mirroring or a small crop can change what it shows.
        return replace(
            self,
            data=self.data if digits else str(Path(self.data).resolve()),
            init=None if self.init is None else str(Path(self.init).resolve()),
            flip=not digits if self.flip is None else self.flip,
            min_area=self.min_area or (0.85 if digits else 0.35),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the settings in JSON's types."""
        return dict(jsonable(self))

    @classmethod
    def from_recipe(cls, name: str | None = None, **chosen: Any) -> TrainingConfig:
        """Return the settings of a recipe, overridden by those in `chosen` that are not None.

        Without `name`, the recipe is `qat` with `qat`, `finetune` with `init`, otherwise `quick`.

        Raises:
            SettingError: The recipe does not exist, or a setting is out of range.
        """
        chosen = {field: value for field, value in chosen.items() if value is not None}
        name = name or (QAT if chosen.get("qat") else FINETUNE if "init" in chosen else QUICK)
        if name not in RECIPES:
            raise SettingError(f"there is no recipe {name!r}", f"choose from {', '.join(RECIPES)}")
        if "shortcut" in chosen:
            chosen["shortcut"] = Shortcut(chosen["shortcut"])
        return cls(**{**RECIPES[name], **chosen, "recipe": name})

    def with_preprocessing(
        self, sources: Sequence[StatedSettings], initial: Sequence[StatedSettings] = ()
    ) -> TrainingConfig:
        """Return the settings with the pre-processing of `sources`, else that of `initial` weights.

        What neither states is standard. The image size of `initial` is not used.

        Raises:
            DataError: The pre-processing is not possible.
        """
        size = PreprocessingSettings(image_size=self.image_size)
        standard = replace(
            settings_of(Preprocessing.standard(self.image_size)),
            channels=None, value_range=None, mean=None, std=None,  # grey pixels have other ones
        )  # fmt: skip
        last = StatedSettings(settings=standard, place="the standard")
        sized = StatedSettings(settings=size, place="the settings of the training", is_option=True)
        choice = choose_preprocessing([*sources, sized, *initial, last])
        if choice.contradiction is not None:
            log_once(choice.contradiction, logging.WARNING)
        found = choice.preprocessing
        return replace(self, image_size=found.image_size, preprocessing=found)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrainingConfig:
        """Read the form that `to_json` returns.

        Raises:
            KeyError, TypeError, ValueError: `data` lacks a setting or holds a wrong one.
        """
        shortcut, found, size = data["shortcut"], data["preprocessing"], data["image_size"]
        return cls(
            **{
                **data,
                "shortcut": None if shortcut is None else Shortcut(shortcut),
                "image_size": tuple(size) if isinstance(size, list) else size,
                "preprocessing": None if found is None else parse(Preprocessing, found),
            }
        )


def learning_rate(config: TrainingConfig, epochs_done: float) -> float:
    """Return the learning rate after `epochs_done` epochs: a linear warm-up, then the schedule.

    Sources: Goyal et al. 2017, arXiv:1706.02677, section 2 (warm-up, rate in proportion to the
    batch); Loshchilov and Hutter 2016, arXiv:1608.03983, equation 5 (cosine); He et al. 2015,
    arXiv:1512.03385, section 4.2 (division by 10 after 1/2 and 3/4).
    """
    highest = config.lr * config.batch_size / 256
    warmup = min(config.warmup_epochs, config.epochs / 2)
    if epochs_done < warmup:
        return highest * epochs_done / warmup
    if config.schedule == "step":
        return highest * 0.1 ** sum(epochs_done >= share * config.epochs for share in (0.5, 0.75))
    share = (epochs_done - warmup) / (config.epochs - warmup)
    return highest * (1 + math.cos(math.pi * min(share, 1.0))) / 2


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _wrong_value(name: str, value: object, allowed: str) -> SettingError:
    return SettingError(
        f"{_option(name)} is {value}, not {allowed}",
        f"leave {_option(name)} out to use the value of the recipe",
    )
