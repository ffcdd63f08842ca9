"""Named sets of training settings; every setting can be overridden."""

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
    """A set of training settings and the publication that it follows."""

    purpose: str
    source: str
    settings: Mapping[str, Any]
    """Fields of `TrainingConfig` whose values differ from the defaults."""


RECIPES: Mapping[str, TrainingRecipe] = MappingProxyType(
    {
        QUICK: TrainingRecipe(
            purpose="trains in minutes on a CPU: small images and few epochs",
            source="the defaults of resdeploy",
            settings={},
        ),
        "paper": TrainingRecipe(
            purpose="repeats the original training of residual networks",
            source="He et al. 2015, arXiv:1512.03385, section 3.4 (8 GPUs)",
            settings={
                "epochs": 120,  # 600,000 steps of 256 images, with ImageNet's 1.28 million images
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
            purpose="trains for 100 epochs with strong augmentation, for the best accuracy",
            source="Wightman, Touvron, Jegou 2021, arXiv:2110.00476, recipe A3, with SGD and cross "
            "entropy instead of LAMB and binary cross entropy, and an average of the weights",
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
            purpose="adapts a trained network to other images",
            source="Kornblith, Shlens, Le 2018, arXiv:1805.08974, section 4.3 (lower learning rate "
            "and weight decay)",
            settings={
                "epochs": 20,
                "image_size": 224,
                "lr": 0.01,
                "weight_decay": 1e-4,
                "min_area": 0.35,
            },
        ),
        QAT: TrainingRecipe(
            purpose="adapts a trained network to INT8 (quantisation-aware training)",
            source="Krishnamoorthi 2018, arXiv:1806.08342, section 3.2 (fine-tuning with frozen "
            "batch-norm statistics); Esser et al. 2020, arXiv:1902.08153 (learned scales)",
            settings={
                "qat": True,
                "epochs": 1,
                "lr": 0.0005,
                "weight_decay": 0.0,
                "warmup_epochs": 0.1,
                "label_smoothing": 0.0,
                "flip": False,  # the teacher is most accurate on images that are not mirrored
                "min_area": 0.8,
                "distillation": 1.0,
            },
        ),
    }
)
