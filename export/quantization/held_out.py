"""The use of images in an export with INT8, and the held-out images that judge its graphs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from resdeploy.calibration.image_set import CalibrationImages, draw
from resdeploy.errors import CalibrationError
from resdeploy.export.inputs import Source
from resdeploy.export.options import no_calibration_images
from resdeploy.export.quantization.simulate import batch_size
from resdeploy.images.preprocessing import ImageSize, UInt8Array, pixel_count
from resdeploy.statistics import fewest_images
from resdeploy.tables import plural

# Fewest images of each step, for large ones, and most, for 32 pixels: the time for an image grows
# with its pixels. At 224 pixels, a ResNet-34 and its two INT8 graphs take 0.23 s for each image
# that judges, 29 s in all; an export took 330 s (one core of an AMD EPYC, 2026-11-28).
SEARCHED_IMAGES = 256, 2560
JUDGED_IMAGES = 128, 512  # without a target: one image is 0.8 or 0.2 points
# Choosing on 256 of 3,000 pictures of CIFAR-10 instead of 128, the CPU's graph of a ResNet-18 kept
# 98.0 % of the classes instead of 97.6 % in the worst tenth of draws (2026-11-30).
SCORING_IMAGES = 128, 256
# A target is judged on this many times the images that would do without any changed class, so that
# a good graph may change two.
NEEDED_FACTOR = 2
SMALL_PIXELS = 32 * 32
FEWEST_IMAGES = 8  # of which 2 are golden, 2 serve the search and 4 calibrate


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutImages:
    """Images that do not calibrate the graphs that are evaluated on them."""

    images: UInt8Array
    """uint8 (N, H, W, 3)."""
    classes: npt.NDArray[np.int64] | None
    """True class of each image; None if the classes are not known."""
    digests: tuple[str, ...]
    """sha256 of the pixels of each image."""

    def part(self, start: int, end: int | None = None) -> HeldOutImages:
        """Return the images from `start` to `end`."""
        classes = None if self.classes is None else self.classes[start:end]
        return HeldOutImages(
            images=self.images[start:end], classes=classes, digests=self.digests[start:end]
        )

    def plus(self, other: HeldOutImages) -> HeldOutImages:
        """Return the images of both."""
        classes = None
        if self.classes is not None and other.classes is not None:
            classes = np.concatenate([self.classes, other.classes])
        return HeldOutImages(
            images=np.concatenate([self.images, other.images]),
            classes=classes,
            digests=self.digests + other.digests,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePlan:
    """Numbers of images that the steps of an export use."""

    judged: int
    """Held-out images to judge the graphs on, which serve no other purpose."""
    searched: int
    """Further held-out images, on which a search for a target chooses layers."""
    cross_validated: int
    """Calibration images to judge the graphs on, because the held-out ones are few."""
    most: int
    """Largest number of images that judge; smaller if calibration images must judge, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageUse:
    """Numbers that decide for what an export uses how many images."""

    size: ImageSize
    available: int
    """Number of images in the folder for calibration."""
    validation: int | None
    """Number of validation images; None if there is no folder for them."""
    golden: int
    """Number of golden images."""
    wanted: int
    """Largest number of calibration images."""
    compares: bool
    """True if several calibrators are compared."""
    target: bool
    """True if there is an accuracy or latency target."""
    needed: int | None
    """Fewest images that can show that the accuracy target is met, if any number can."""

    def plan(self, more: int = 0) -> ImagePlan:
        """Divide the images as if all of them, and `more`, could be read."""
        shared = self.validation is None
        available = self.available + (more if shared else 0)
        scoring = scoring_images(available, self.size) if self.compares or self.target else 0
        free = available - scoring - (self.golden if shared else 0)
        calibrating = max(0, min(self.wanted, free))
        others = 0 if self.validation is None else self.validation + more - self.golden
        return plan_images(
            size=self.size,
            unused=max(0, free - calibrating + others),
            calibrating=calibrating,
            scoring=scoring,
            target=self.target,
            needed=self.needed,
        )

    def sentences(self, *, calibrating: int, scoring: int, folds: int) -> list[str]:
        """Return what each set of images is used for.

        There are `calibrating` images, `scoring` further ones that choose the calibrator and the
        layers in float, and `folds` parts of the calibration images that judge.
        """
        plan = self.plan()
        sets = [f"{plural(calibrating, 'calibration image')} (at most {self.wanted:,})"]
        if scoring:
            chosen = ["the calibrator"] * self.compares + ["the layers in float"] * self.target
            sets.append(
                f"{plural(scoring, 'further image')}, which only choose {' and '.join(chosen)}"
            )
        if plan.searched:
            also = plural(plan.searched, "further image")
            sets.append(f"{also}, which only choose the layers in float")
        if plan.judged:
            judged = plural(plan.judged, "other image")
            sets.append(f"{judged}, which judge the INT8 graphs (at most {plan.most:,})")
        sets.append(f"{plural(self.golden, 'golden image')}, which verify the graphs anywhere")
        lines = [f"used: {'; '.join(sets)}"]
        if plan.cross_validated:
            crossed = min(plan.cross_validated, calibrating)  # the plan counts unreadable ones, too
            lines.append(
                f"{crossed} of the calibration images also judge the INT8 graphs (at most "
                f"{plan.most:,} judge), by cross-validation: the weights are rounded "
                f"{plural(folds, 'more time')}, each time without a part of the images"
            )
            more = fewest_images(lambda count: not self.plan(count).cross_validated)
            kind = "image" if self.validation is None else "validation image"
            if more is not None:
                lines[-1] += f" (unnecessary with {more} more {kind}s)"
        return lines


def plan_images(
    *,
    size: ImageSize,
    unused: int,
    calibrating: int,
    scoring: int,
    target: bool,
    needed: int | None,
) -> ImagePlan:
    """Divide the images of an export.

    Args:
        size: Size of an image, in pixels.
        unused: Number of images that neither calibrate nor score and are not golden.
        calibrating: Number of calibration images.
        scoring: Number of images that score calibrators, on which a search may choose layers.
        target: True if there is an accuracy or latency target.
        needed: Fewest images that can show that the accuracy target is met, if any number can.
    """
    if not target:
        most = _fitting_number(JUDGED_IMAGES, size)
        judged = min(unused, most)
        # Rounding the weights for folds takes longer than judging many images that are at hand.
        crossed = max(0, min(calibrating, JUDGED_IMAGES[0] - judged))
        most = JUDGED_IMAGES[0] if crossed else most
        return ImagePlan(judged=judged, searched=0, cross_validated=crossed, most=most)
    searched = _fitting_number(SEARCHED_IMAGES, size)
    enough = NEEDED_FACTOR * (needed or JUDGED_IMAGES[0])
    # Otherwise, the search gets as many images as the judgement.
    judged = min(max(searched, enough), (unused + scoring + 1) // 2, unused)
    return ImagePlan(
        judged=judged,
        searched=min(unused - judged, max(searched - scoring, 0)),
        cross_validated=max(0, min(calibrating, enough - judged)),
        most=max(searched, enough),
    )


def scoring_images(available: int, size: ImageSize) -> int:
    """Return how many of the available images of this size score calibrators."""
    return min(_fitting_number(SCORING_IMAGES, size), available // 4)


def _fitting_number(bounds: tuple[int, int], size: ImageSize) -> int:
    fewest, most = bounds
    return int(np.clip(most * SMALL_PIXELS // pixel_count(size), fewest, most))


def draw_held_out_images(
    source: Source,
    seed: int,
    wanted: int,
    *,
    used: Collection[str],
    used_paths: Collection[Path] = (),
) -> HeldOutImages:
    """Draw validation images, and training images only if there are too few of them.

    A network is more accurate on its training images, so they come last. `used` holds the sha256 of
    images that must not be drawn; those in `used_paths` are not even read. Possibly there are none.
    """
    image_set = CalibrationImages(
        source.preprocessing, wanted=wanted, excluded=used, purpose="held-out"
    )
    known = set(used_paths)
    paths = [
        path
        for pool in (source.pools.golden, source.pools.calibration)
        for path in draw(pool, seed)
        if path not in known
    ]
    try:
        batches = list(image_set.add(paths, batch_size(source.preprocessing.image_size)))
    except CalibrationError:  # none is left
        batches = []
    return held_out_images(source, batches, image_set.paths, image_set.digests)


def held_out_images(
    source: Source, batches: Sequence[UInt8Array], paths: Sequence[Path], digests: Sequence[str]
) -> HeldOutImages:
    """Return batches of images with their classes."""
    empty = np.empty((0, *source.preprocessing.size, 3), np.uint8)
    classes = source.classes_of(paths)
    return HeldOutImages(
        images=np.concatenate([empty, *batches]),
        classes=None if classes is None else np.array(classes, dtype=np.int64),
        digests=tuple(digests),
    )


def require_images(source: Source, fewest: int) -> None:
    """Check that there are calibration images, before the long work starts.

    Raises:
        CalibrationError: No images are known, or fewer than `fewest`.
    """
    found = len(source.pools.calibration)
    if not found:
        raise no_calibration_images()
    if found < fewest:
        raise CalibrationError(
            f"{found} images are too few to calibrate, to search for a target and to judge it; "
            f"at least {fewest} are needed",
            "name a folder of more images with --calibration-data, or leave the target out",
        )
