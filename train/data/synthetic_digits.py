"""The built-in data set: scikit-learn's 1,797 handwritten digits, as image files.

The images have 8x8 pixels, come from 43 writers and are part of scikit-learn, so nothing is
downloaded. Source: the test part of Alpaydin and Kaynak, "Optical Recognition of Handwritten
Digits", UCI Machine Learning Repository (1998).
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from PIL import Image

from resdeploy.errors import OutputError, needs_extra
from resdeploy.filesystem import cache_folder, new_directory
from resdeploy.train.config import DIGITS

logger = logging.getLogger(__name__)


def digits_folder() -> Path:
    """Return the cached data folder with `train/` and `val/`, and write it on first use.

    A fixed quarter of each digit's images is the validation split.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
        OutputError: The cache folder cannot be written.
    """
    folder = cache_folder() / DIGITS
    if not folder.exists():
        try:
            _write_digits(folder)
        except OutputError:
            if not folder.exists():  # otherwise another process has written it
                raise
    return folder


def _write_digits(folder: Path) -> None:
    with needs_extra():
        from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    pixels = np.rint(values * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    generator = np.random.default_rng(0)
    with new_directory(folder) as temporary:
        for label in range(10):
            members = generator.permutation(np.flatnonzero(labels == label))
            val_count = round(len(members) / 4)
            for split, indices in (("val", members[:val_count]), ("train", members[val_count:])):
                target = temporary / split / str(label)
                target.mkdir(parents=True)
                for index in sorted(indices):
                    Image.fromarray(pixels[index]).save(target / f"{index:04d}.png")
    logger.info("wrote %d digits to %s", len(pixels), folder)
