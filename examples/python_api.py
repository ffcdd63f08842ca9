"""Classify all JPEG and PNG files of a folder in Python, and name the files that are damaged.

    pip install '.[cpu]'
    python examples/python_api.py r34.bundle photos

The exit code is 1 if a file is damaged.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import resdeploy
from resdeploy.errors import ImageError


def main() -> int:
    """Print the most likely class of each picture; return 1 if a file is damaged."""
    parser = argparse.ArgumentParser(description="Classify the pictures of a folder.")
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    parser.add_argument("photos", type=Path, help="folder of pictures")
    options = parser.parse_args()

    damaged = 0
    # `load` takes the fastest backend that reproduces the export's logits on this machine.
    with resdeploy.load(options.bundle) as model:
        for path in sorted(options.photos.rglob("*")):
            if path.suffix.lower() not in (".jpg", ".jpeg", ".png"):
                continue
            try:
                best, *_ = model.predict(path, top=3)
            except ImageError as error:
                damaged += 1
                print(f"{path}: {error}", file=sys.stderr)
            else:
                print(f"{path}: {best.label} ({100 * best.probability:.1f} %)")
    return 1 if damaged else 0


if __name__ == "__main__":
    sys.exit(main())
