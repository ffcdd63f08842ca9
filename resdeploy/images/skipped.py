"""Reasons why images are skipped: each is logged for its first images, and then counted."""

from __future__ import annotations

import logging
import re
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from resdeploy.errors import ImageError
from resdeploy.images.class_mapping import log_once

logger = logging.getLogger(__name__)

SINGLE_COLOUR = "has pixels of one colour only, so its prediction means nothing"
NAMED = 3  # images that are named for each reason


def reason_of(error: ImageError, file: object) -> str:
    """Return the message of an error without the name of the file."""
    return str(error).removeprefix(str(file)).removeprefix("the image").strip()


def has_single_colour(pixels: npt.NDArray[np.uint8]) -> bool:
    """Return True if all pixels of an image (H, W, 3) are equal."""
    return bool((pixels == pixels[0, 0]).all())


@dataclass(frozen=True, slots=True)
class SkippedImages:
    """Counter of skipped images by reason, which logs the names of the first ones."""

    action: str = "skipping"
    """Verb for what happens to the images, for messages."""

    counts: Counter[str] = field(default_factory=Counter)
    """Number of images by reason; numbers in a reason, which differ between files, are `N`."""

    def add(self, file: object, reason: str) -> None:
        """Count an image; log its name if it is one of the first three with this reason."""
        kind = re.sub(r"\d[\d,]*", "N", reason)
        self.counts[kind] += 1
        if self.counts[kind] <= NAMED:
            log_once(f"{self.action} {file}: it {reason}", logging.WARNING)

    def report(self) -> None:
        """Log the number of images that `add` did not name."""
        for reason, count in self.counts.items():
            if count > NAMED:
                logger.warning("%s %d more images: each %s", self.action, count - NAMED, reason)
