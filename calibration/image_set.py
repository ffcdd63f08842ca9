"""The set of calibration images, which are readable and distinct, and recorded by their digests."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from resdeploy.errors import CalibrationError, ImageError
from resdeploy.filesystem import sha256
from resdeploy.images.loading import load_image
from resdeploy.images.preprocessing import Preprocessing, UInt8Array, image_digest
from resdeploy.images.skipped import SkippedImages, has_single_colour, reason_of

logger = logging.getLogger(__name__)


def draw(paths: Sequence[Path], seed: int) -> list[Path]:
    """Return `paths` in a pseudo-random order that depends on `seed` and on the file names.

    The order of two files does not depend on the other files, so that a damaged image does not
    change which other images are used.
    """

    def key(path: Path) -> tuple[str, Path]:
        return sha256(os.fsencode(f"{seed}/{path.parent.name}/{path.name}")), path

    return sorted(paths, key=key)


@dataclass(slots=True)
class CalibrationImages:
    """Collector of a given number of usable images."""

    preprocessing: Preprocessing
    wanted: int
    """Number of images to collect."""
    excluded: Collection[str] = ()
    """Digests of images that must not be used, such as the golden images."""
    purpose: str = "calibration"
    """Purpose of the images, for log messages."""
    decoded: Mapping[Path, UInt8Array] = field(default_factory=dict)
    """Images that need not be decoded again."""
    digests: list[str] = field(default_factory=list)
    """sha256 of the pixels of every collected image, in order."""
    paths: list[Path] = field(default_factory=list)
    """File of every collected image, in the same order."""
    examined: list[Path] = field(default_factory=list)
    """File of every collected or skipped image."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Number of skipped images by reason."""

    def add(self, paths: Sequence[Path], batch: int) -> Iterator[UInt8Array]:
        """Load images until `wanted` are collected, and yield batches (N, H, W, 3), N <= `batch`.

        Raises:
            CalibrationError: None of the images can be used.
        """
        collected: set[str] = set()
        unreadable = SkippedImages()
        pixels: list[UInt8Array] = []
        for path in paths:
            if len(self.digests) == self.wanted:
                break
            self.examined.append(path)
            try:
                image = self.decoded.get(path)
                image = load_image(path, self.preprocessing) if image is None else image
            except ImageError as error:
                unreadable.add(path, reason_of(error, path))
                self.skipped["unreadable"] += 1
                continue
            digest = image_digest(image)
            if digest in collected:
                self.skipped["duplicate"] += 1
            elif digest in self.excluded:
                self.skipped["golden"] += 1
            elif has_single_colour(image):
                unreadable.add(path, "has pixels of one colour only")
                self.skipped["constant"] += 1
            else:
                collected.add(digest)
                self.digests.append(digest)
                self.paths.append(path)
                pixels.append(image)
            if len(pixels) == batch:
                yield np.stack(pixels)
                pixels = []
        if pixels:
            yield np.stack(pixels)
        unreadable.report()
        self._report()

    def _report(self) -> None:
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.skipped.items())
        if not self.digests:
            raise CalibrationError(
                f"none of the calibration images can be used: {reasons or 'there are none'}",
                "name another folder of images with --calibration-data",
            )
        faults = ", ".join(
            f"{count} {reason}" for reason, count in self.skipped.items() if reason != "golden"
        )
        if faults:  # golden images have another purpose
            logger.info("not used as %s images: %s", self.purpose, faults)
