"""Export a classifier of any architecture, from a module of PyTorch.

    pip install '.[cpu,export]'
    python examples/own_module.py own.bundle --photos photos

Put your own network in the place of NETWORK. It reads pictures that PREPROCESSING prepares, and
gives one logit per class. The golden logits of the bundle are those of the module.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from torch import nn

import resdeploy
from resdeploy.export.module_export import export_module
from resdeploy.images.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(image_size=64, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
LABELS = ("cat", "dog", "horse")
NETWORK = nn.Sequential(  # with its trained weights
    nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU6(),
    nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16), nn.Hardswish(),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, len(LABELS)),
)  # fmt: skip


def main() -> int:
    """Export the module; return 0 if this machine computes what PyTorch computed."""
    parser = argparse.ArgumentParser(description="Export a module of PyTorch to a bundle.")
    parser.add_argument("bundle", type=Path, help="bundle to write")
    parser.add_argument("--photos", type=Path, help="folder of pictures to calibrate INT8 on")
    options = parser.parse_args()

    export_module(
        NETWORK, options.bundle,
        preprocessing=PREPROCESSING, labels=LABELS,
        calibration=options.photos, int8=options.photos is not None,
    )  # fmt: skip
    checked = resdeploy.verify(options.bundle)
    print(f"{options.bundle}: {checked.verdict.value}")
    return 0 if checked.verdict.value == "reproduced" else 1


if __name__ == "__main__":
    sys.exit(main())
