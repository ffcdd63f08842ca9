"""Fine-tune a pretrained ResNet on your own pictures, and keep it only if INT8 is as accurate.

    pip install '.[all]'
    python examples/fine_tune.py photos weights.pth flowers.bundle

`photos` holds `train` and `val`, each with one folder of pictures per class. `weights.pth` are the
weights of a ResNet, from torchvision for example. The script writes a run to `runs`, and a bundle.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import resdeploy


def main() -> int:
    """Train, export and verify; return 0 if the bundle passed, otherwise 1."""
    parser = argparse.ArgumentParser(description="Fine-tune a ResNet, and export it to a bundle.")
    parser.add_argument("data", type=Path, help="folder with train/ and val/")
    parser.add_argument("weights", type=Path, help="weights to start from")
    parser.add_argument("bundle", type=Path, help="bundle to write")
    parser.add_argument("--epochs", type=int, default=20, help="largest number of epochs")
    parser.add_argument("--image-size", type=int, default=224, help="side of the input in pixels")
    parser.add_argument("--max-drop", type=float, default=1.0, help="in percentage points")
    options = parser.parse_args()

    trained = resdeploy.train(
        options.data, init=options.weights, epochs=options.epochs, image_size=options.image_size
    )
    print(f"{trained.accuracy:.1f} % top-1 accuracy; report: {trained.run / 'report.html'}")

    # The export calibrates INT8 on the training pictures of the run.
    resdeploy.export(trained.run, options.bundle, int8=True)
    checked = resdeploy.verify(options.bundle, data=options.data, max_drop=options.max_drop)
    for line in checked.results:
        print(f"{line.precision.value} on {line.backend}: {line.top1:.1f} %, {line.verdict.value}")
    return 0 if checked.verdict.value == "pass" else 1


if __name__ == "__main__":
    sys.exit(main())
