"""The settings of a run as its report shows them: the values that were used, in words."""

from __future__ import annotations

from enum import Enum

from resdeploy.result_files.provenance import without_folders
from resdeploy.train.config import TrainingConfig
from resdeploy.train.run.outcome import patience_of
from resdeploy.train.step import Learner

_WORDS = {
    "arch": "network", "bf16": "bfloat16", "compile": "compiled", "cutmix": "CutMix",
    "ema": "decay of the average of the weights", "init": "initial weights",
    "lr": "highest learning rate at a batch of 256", "min_area": "smallest area of a crop",
    "qat": "quantisation-aware training", "randaugment": "RandAugment",
    "workers": "worker processes",
}  # fmt: skip
_OFF_AT_ZERO = ("cutmix", "distillation", "ema", "label_smoothing", "mixup", "randaugment")
_NO_SETTINGS_OF_THE_RESULT = ("preprocessing", "save_minutes", "tensorboard")


def used_settings(config: TrainingConfig, learner: Learner, workers: int) -> dict[str, str]:
    """Return the settings that applied, by their names in words, with the defaults that were found.

    What the settings left open, `learner` and `workers` state.
    """
    architecture, preprocessing = learner.network.architecture, config.preprocessing
    values = {name: getattr(config, name) for name in TrainingConfig.__slots__} | {
        "arch": architecture.name, "stem": architecture.stem, "shortcut": architecture.shortcut,
        "patience": patience_of(config) or "off", "bf16": learner.bf16,
        "compile": learner.compiled, "workers": workers,
    }  # fmt: skip
    if preprocessing is not None:
        values["image_size"] = preprocessing.image_size
    off = {name for name in _OFF_AT_ZERO if not values[name]}
    off |= {name for name, value in values.items() if value is None}
    off |= {name for name in ("freeze", "class_weights", "decay_all", "qat") if not values[name]}
    off |= {"min_area"} if config.crop != "area" else set()
    off |= {"accumulate"} if config.accumulate == 1 else set()
    return {
        _WORDS.get(name, name.replace("_", " ")): _text(value)
        for name, value in values.items()
        if name not in off and name not in _NO_SETTINGS_OF_THE_RESULT
    }


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    if isinstance(value, Enum):
        return str(value.value)
    return f"{value:g}" if isinstance(value, float) else without_folders(str(value))
