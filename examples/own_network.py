"""Export a ResNet that you trained with code of your own.

    pip install '.[cpu,export]'
    python examples/own_network.py weights.pth own.bundle --labels labels.txt --photos photos

Write `weights.pth` with `torch.save(network.state_dict(), "weights.pth")`. The network must be a
ResNet (or ResNeXt, or wide ResNet) as in torchvision, timm or Hugging Face: `resdeploy inspect
weights.pth` says how it is understood. `photos` are pictures to calibrate INT8 on. Weights do not
say how your training prepared its pictures, so state it in PREPROCESSING.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import resdeploy

# Pixels from 0 to 1 less the mean, divided by the standard deviation: torchvision's usual values.
PREPROCESSING = {"resize": "shorter", "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def main() -> int:
    """Export the network; return 0 if this machine computes what PyTorch computed."""
    parser = argparse.ArgumentParser(description="Export a ResNet to a bundle.")
    parser.add_argument("weights", type=Path, help="file of weights")
    parser.add_argument("bundle", type=Path, help="bundle to write")
    parser.add_argument("--photos", type=Path, help="folder of pictures to calibrate INT8 on")
    parser.add_argument("--labels", type=Path, help="text file with one class name per line")
    parser.add_argument("--image-size", type=int, default=224, help="side of the input in pixels")
    options = parser.parse_args()

    resdeploy.export(
        options.weights,
        options.bundle,
        int8=options.photos is not None,
        calibration_data=options.photos,
        labels=options.labels,
        image_size=options.image_size,
        **PREPROCESSING,
    )
    checked = resdeploy.verify(options.bundle)
    print(f"{options.bundle}: {checked.verdict.value}")
    return 0 if checked.verdict.value == "reproduced" else 1


if __name__ == "__main__":
    sys.exit(main())
