"""Named sets of training settings; every setting can be overridden."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

QUICK = "quick"
FINETUNE = "finetune"
QAT = "qat"

# For each recipe: the fields of `TrainingConfig` whose values differ from the defaults.
RECIPES: Mapping[str, Mapping[str, Any]] = {
    QUICK: {},  # minutes on a CPU
    # He et al. 2015, arXiv:1512.03385, section 3.4 (8 GPUs)
    "paper": {
        "patience": 0,
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
    # Wightman, Touvron, Jegou 2021, arXiv:2110.00476, recipe A3, with SGD and cross entropy instead
    # of LAMB and binary cross entropy, and with an average of the weights
    "modern": {
        "patience": 0,
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
    # Kornblith, Shlens, Le 2018, arXiv:1805.08974, section 4.3 (lower learning rate and weight
    # decay)
    FINETUNE: {
        "epochs": 20,
        "image_size": 224,
        "lr": 0.01,
        "weight_decay": 1e-4,
        "min_area": 0.35,
    },
    # Krishnamoorthi 2018, arXiv:1806.08342, section 3.2 (fine-tuning with frozen batch-norm
    # statistics); Esser et al. 2020, arXiv:1902.08153 (learned scales)
    QAT: {
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
}
