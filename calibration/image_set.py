"""Which images calibrate: each one counted, hashed, and different from the others."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from resdeploy.errors import CalibrationError, ImageError
from resdeploy.images.preprocessing import Preprocessing, UInt8Array, image_digest, load_image
from resdeploy.storage import sha256

logger = logging.getLogger(__name__)


def draw(paths: Sequence[Path], seed: int) -> list[Path]:
    """All `paths` in a random order that depends on `seed` and on the name of each.

    An image that comes or goes leaves the others in their order, so that a damaged one does not
    change which others are used.
    """

    def place(path: Path) -> tuple[str, Path]:
        return sha256(f"{seed}/{path.parent.name}/{path.name}".encode()), path

    return sorted(paths, key=place)


@dataclass(slots=True)
class CalibrationImages:
    """Admits images until enough are there, and writes down what became of each."""

    preprocessing: Preprocessing
    wanted: int
    excluded: Collection[str] = ()
    """Digests of images that must not be used, because they verify."""
    digests: list[str] = field(default_factory=list)
    """sha256 of the pixels of every image admitted, in order."""
    paths: list[Path] = field(default_factory=list)
    """Where each of them came from."""
    unreadable: int = 0
    duplicates: int = 0
    constant: int = 0
    overlapping: int = 0

    def admit(self, paths: Sequence[Path], batch: int) -> Iterator[UInt8Array]:
        """Yield the usable images of `paths`, (N, H, W, 3) with N at most `batch`.

        Raises:
            CalibrationError: not one image can be used.
        """
        seen: set[str] = set()
        pixels: list[UInt8Array] = []
        for path in paths:
            if len(self.digests) == self.wanted:
                break
            try:
                image = load_image(path, self.preprocessing)
            except ImageError as error:
                logger.warning("skipped: %s", error)
                self.unreadable += 1
                continue
            digest = image_digest(image)
            if digest in seen:
                self.duplicates += 1
            elif digest in self.excluded:
                self.overlapping += 1
            elif (image == image[0, 0]).all():
                self.constant += 1
            else:
                seen.add(digest)
                self.digests.append(digest)
                self.paths.append(path)
                pixels.append(image)
            if len(pixels) == batch:
                yield np.stack(pixels)
                pixels = []
        if pixels:
            yield np.stack(pixels)
        self._close()

    def _close(self) -> None:
        if not self.digests:
            raise CalibrationError(
                "not one calibration image can be used", "name a folder of other images"
            )
        if refused := self.refused:
            logger.info(
                "passed over %d images: %s",
                sum(refused.values()),
                ", ".join(f"{count} {reason}" for reason, count in refused.items()),
            )
        if len(self.digests) < self.wanted:
            logger.info(
                "only %d images can be used, of %d wanted",
                len(self.digests), self.wanted,
            )  # fmt: skip

    @property
    def refused(self) -> dict[str, int]:
        """How many images were passed over, by reason; only reasons that occurred."""
        reasons = {
            "unreadable": self.unreadable,
            "duplicate": self.duplicates,
            "constant": self.constant,
            "also used to verify": self.overlapping,
        }
        return {reason: count for reason, count in reasons.items() if count}
