"""The built-in data: scikit-learn's 1,797 handwritten digits, as a folder of pictures.

They are 8x8 scans by 43 writers that come with scikit-learn, so that nothing is downloaded.
Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository (1998), its test part.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from resdeploy.errors import OutputError, needs_extra
from resdeploy.storage import cache_folder, new_directory
from resdeploy.train.config import DIGITS

logger = logging.getLogger(__name__)

LARGEST_VALUE = 16
SIDE = 8
VAL_SHARE = 1 / 4
SPLIT_SEED = 0


def digits_folder() -> Path:
    """`train/` and `val/` with a folder of PNG files per digit, made on first use.

    A quarter of each digit's images is held out as `val`, the same quarter every time.

    Raises:
        MissingDependencyError: scikit-learn or Pillow is not installed.
        OutputError: the cache folder cannot be written.
    """
    folder = cache_folder() / DIGITS
    if not folder.exists():
        try:
            _write_digits(folder)
        except OutputError:
            if not folder.exists():  # otherwise another process was faster
                raise
    return folder


def _write_digits(folder: Path) -> None:
    with needs_extra():
        from PIL import Image
        from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    pixels = np.rint(values * (255 / LARGEST_VALUE)).astype(np.uint8).reshape(-1, SIDE, SIDE)
    generator = np.random.default_rng(SPLIT_SEED)
    with new_directory(folder) as temporary:
        for label in range(10):
            members = generator.permutation(np.flatnonzero(labels == label))
            held_out = round(len(members) * VAL_SHARE)
            for split, chosen in (("val", members[:held_out]), ("train", members[held_out:])):
                target = temporary / split / str(label)
                target.mkdir(parents=True)
                for index in sorted(chosen):
                    Image.fromarray(pixels[index]).save(target / f"{index:04d}.png")
    logger.info("wrote %d digits to %s", len(pixels), folder)
