"""Golden images of a bundle, their reference logits, and the parity of each graph with them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from resdeploy.bundle.golden import Float32Array, Golden
from resdeploy.bundle.manifest import GoldenOrigin, Parity
from resdeploy.calibration.image_set import CalibrationImages, draw
from resdeploy.errors import CalibrationError, CheckpointError, DataError, ImageError
from resdeploy.export.inputs import ImagePools
from resdeploy.export.source.network import ReferenceClassifier
from resdeploy.images.folder import list_images
from resdeploy.images.loading import load_image
from resdeploy.images.preprocessing import (
    ImageSize,
    Preprocessing,
    UInt8Array,
    height_and_width,
    image_digest,
)
from resdeploy.statistics import agreement_percent, sqnr_db

GOLDEN_IMAGES = 32


def choose_golden(
    pools: ImagePools, preprocessing: Preprocessing, seed: int
) -> tuple[UInt8Array, GoldenOrigin]:
    """Return up to 32 different images, (N, H, W, 3), or synthetic ones if none can be read.

    If the golden images come from the calibration images, at most a quarter of them is used.
    """
    count = GOLDEN_IMAGES
    if pools.golden == pools.calibration:
        count = min(count, max(1, len(pools.golden) // 4))
    image_set = CalibrationImages(preprocessing, wanted=count, purpose="golden")
    try:
        (images,) = image_set.add(draw(pools.golden, seed), GOLDEN_IMAGES)
    except CalibrationError:  # there are none
        images = synthetic_images(preprocessing.image_size, GOLDEN_IMAGES, seed)
        return images, GoldenOrigin.SYNTHETIC
    return images, GoldenOrigin.DATA


def read_golden_images(
    folder: Path, preprocessing: Preprocessing, seed: int, excluded: Collection[str] = ()
) -> UInt8Array:
    """Return up to 32 different images, (N, H, W, 3), of a folder that the user chose for them.

    Images whose sha256 is in `excluded` are left out.

    Raises:
        DataError: The folder has no other image, or a drawn image cannot be decoded.
    """
    chosen: dict[str, UInt8Array] = {}
    for path in draw(list_images(folder), seed):
        if len(chosen) == GOLDEN_IMAGES:
            break
        try:
            image = load_image(path, preprocessing)
        except ImageError as error:
            hint = error.hint or "remove it from the folder, or repair it"
            raise DataError(f"a golden image cannot be read: {error}", hint) from error
        digest = image_digest(image)
        if digest not in excluded:
            chosen.setdefault(digest, image)
    if not chosen:
        raise DataError(
            f"every image in {folder} calibrated the bundle", "choose a folder of other images"
        )
    return np.stack(list(chosen.values()))


def synthetic_images(image_size: ImageSize, count: int, seed: int) -> UInt8Array:
    """Return random colour gradients with noise, (count, height, width, 3)."""
    generator = np.random.default_rng(seed)
    height, width = height_and_width(image_size)
    corners = generator.uniform(0, 255, size=(4, count, 1, 1, 3))
    down = np.linspace(0.0, 1.0, height)[:, None, None]
    across = np.linspace(0.0, 1.0, width)[None, :, None]
    top = corners[0] * (1 - across) + corners[1] * across
    bottom = corners[2] * (1 - across) + corners[3] * across
    noise = generator.normal(0, 16, (count, height, width, 3))
    noisy = top * (1 - down) + bottom * down + noise
    return np.asarray(np.clip(np.rint(noisy), 0, 255), dtype=np.uint8)


def make_golden(classifier: ReferenceClassifier, images: UInt8Array) -> Golden:
    """Compute the reference's FP32 logits, one image at a time.

    Raises:
        CheckpointError: A logit is NaN or infinite, because the weights are too large.
    """
    logits = classifier.logits(images)
    if not np.isfinite(logits).all():
        raise CheckpointError(
            "the network computes NaN or infinite logits, though its weights are finite",
            "use an earlier checkpoint",
        )
    return Golden(images=images, logits=logits)


def measure_parity(golden: Golden, logits: Float32Array) -> Parity:
    """Compare the logits (N, K) of an artifact with the golden logits."""
    ratios = sqnr_db(golden.logits, logits)
    return Parity(
        images=len(logits),
        max_error=float(np.abs(golden.logits - logits).max()),
        agreement=agreement_percent(golden.logits, logits),
        sqnr_db=float(np.median(ratios)),
        sqnr_db_p5=float(np.percentile(ratios, 5)),
    )
