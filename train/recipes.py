"""Named sets of training settings; any of them can be overridden."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

QUICK = "quick"
FINETUNE = "finetune"
QAT = "qat"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecipe:
    """Settings of `config.TrainingConfig` that differ from its defaults, and where from."""

    purpose: str
    source: str
    settings: Mapping[str, Any]


RECIPES: Mapping[str, TrainingRecipe] = MappingProxyType(
    {
        QUICK: TrainingRecipe(
            purpose="minutes on a CPU: small images, few epochs",
            source="the defaults of resdeploy",
            settings={},
        ),
        "paper": TrainingRecipe(
            purpose="as the residual networks were first trained",
            source="He et al. 2015, arXiv:1512.03385, section 3.4; rate and batch for 8 GPUs there",
            settings={
                "epochs": 120,  # 60e4 steps of 256 of ImageNet's 1.28 million images
                "image_size": 224,
                "batch_size": 256,
                "lr": 0.1,
                "weight_decay": 1e-4,
                "decay_all": True,
                "nesterov": False,
                "warmup_epochs": 0.0,
                "label_smoothing": 0.0,
                "schedule": "step",  # "divided by 10 when the error plateaus"
                "crop": "scale",
            },
        ),
        "modern": TrainingRecipe(
            purpose="the best accuracy for 100 epochs",
            source="Wightman, Touvron, Jegou 2021, arXiv:2110.00476, recipe A3; SGD and cross "
            "entropy in place of LAMB and binary cross entropy, and an average of the weights",
            settings={
                "epochs": 100,
                "image_size": 160,
                "batch_size": 256,
                "lr": 0.5,
                "weight_decay": 5e-5,
                "warmup_epochs": 5.0,
                "min_area": 0.08,
                "randaugment": 6,
                "mixup": 0.1,
                "cutmix": 1.0,
                "ema": 0.9998,
            },
        ),
        FINETUNE: TrainingRecipe(
            purpose="a trained network on other pictures",
            source="Kornblith, Shlens, Le 2018, arXiv:1805.08974, section 4.3 (lower rate, less "
            "decay)",
            settings={
                "epochs": 20,
                "image_size": 224,
                "lr": 0.01,
                "weight_decay": 1e-4,
                "min_area": 0.35,
            },
        ),
        QAT: TrainingRecipe(
            purpose="a trained network that adapts to INT8",
            source="Krishnamoorthi 2018, arXiv:1806.08342, section 3.2 (fine-tuning, norms held); "
            "Esser et al. 2020, arXiv:1902.08153 (learned scales)",
            settings={
                "qat": True,
                "epochs": 1,
                "lr": 0.0005,
                "weight_decay": 0.0,
                "warmup_epochs": 0.1,
                "label_smoothing": 0.0,
                "flip": False,  # as it comes, a picture is what the teacher knows best
                "min_area": 0.8,
                "distillation": 1.0,
            },
        ),
    }
)
