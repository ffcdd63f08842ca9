"""Export a classifier of any architecture, from an ONNX file or a program of torch.export.

    pip install '.[cpu,export]'
    python examples/own_graph_file.py net.onnx own.bundle --labels labels.txt --photos photos

Such a file does not state how pictures are prepared: put the settings of the network's training
in the place of SETTINGS.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import resdeploy

SETTINGS = {
    "resize": "shorter", "crop_fraction": 0.875, "interpolation": "bilinear", "channels": "rgb",
    "value_range": 1, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5),
}  # fmt: skip


def main() -> int:
    """Export the file; return 0 if this machine computes what the file's network computed."""
    parser = argparse.ArgumentParser(description="Export an ONNX file or a .pt2 file.")
    parser.add_argument("network", type=Path, help="an .onnx file, or a .pt2 file of torch.export")
    parser.add_argument("bundle", type=Path, help="bundle to write")
    parser.add_argument("--labels", type=Path, help="text file with one class name per line")
    parser.add_argument("--photos", type=Path, help="folder of pictures to calibrate INT8 on")
    options = parser.parse_args()

    resdeploy.export(
        options.network, options.bundle, labels=options.labels,
        calibration_data=options.photos, int8=options.photos is not None, **SETTINGS,
    )  # fmt: skip
    checked = resdeploy.verify(options.bundle)
    print(f"{options.bundle}: {checked.verdict.value}")
    return 0 if checked.verdict.value == "reproduced" else 1


if __name__ == "__main__":
    sys.exit(main())
