"""The comparison of the accuracy of two bundles: paired outputs on the same images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resdeploy.bundle.bundle import Bundle
from resdeploy.errors import BundleError
from resdeploy.images.class_folders import match_labels, read_image_folder, split_folder
from resdeploy.images.folder import read_batches
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.progress import Progress
from resdeploy.result_files.comparison import AccuracyChange
from resdeploy.runtime.backends.base import OpenOptions
from resdeploy.runtime.backends.registry import Candidate
from resdeploy.runtime.verification.golden_check import different_rows, run_batches
from resdeploy.statistics import IntArray, PairedAccuracy, Verdict, pair_predictions

BATCH = 32


@dataclass(frozen=True, slots=True)
class _Batch:
    """A batch, pre-processed for each bundle, with the true classes as indices of its labels."""

    images: tuple[UInt8Array, UInt8Array]
    classes: tuple[IntArray, IntArray]


def compare_accuracies(
    first: Bundle,
    second: Bundle,
    pairs: Sequence[tuple[Candidate, Candidate]],
    *,
    data: Path | None,
    max_drop: float,
    threads: int | None,
    progress: Progress,
) -> tuple[AccuracyChange, ...]:
    """Run every pair of artifacts on the images in `data`, or on golden images if it is None.

    Raises:
        BundleError: `data` is None and the bundles differ in image size or classes.
        DataError: The folder cannot be used with both bundles.
    """
    options = OpenOptions(threads=threads, progress=progress)
    if data is None:
        batches = _golden_batches(first, second)
    else:
        batches = _folder_batches(first, second, data, progress)
    correct: list[tuple[list[IntArray], list[IntArray]]] = [([], []) for _ in pairs]
    different = [0] * len(pairs)
    with ExitStack() as stack:
        opened = [
            tuple(
                stack.enter_context(closing(candidate.open(bundle, options)))
                for bundle, candidate in zip((first, second), pair)
            )
            for pair in pairs
        ]
        for batch in batches:
            for index, backends in enumerate(opened):
                logits = [run_batches(b, images) for b, images in zip(backends, batch.images)]
                for side in (0, 1):
                    predicted = logits[side].argmax(axis=1)
                    correct[index][side].append(predicted == batch.classes[side])
                different[index] += different_rows(*logits)
    return tuple(
        _accuracy_change(pair[0], [np.concatenate(parts) for parts in sides], count, data, max_drop)
        for pair, sides, count in zip(pairs, correct, different)
    )


def judge_drop(paired: PairedAccuracy, max_drop: float) -> Verdict:
    """Return the verdict on an accuracy drop at 95 % confidence.

    PASS: The drop is at most `max_drop`. FAIL: The drop is larger than `max_drop`; or it is larger
    than 0, and its estimate is larger than `max_drop`. Without the second condition, a drop of half
    a point on 5,000 images would be inconclusive if many predictions changed in both directions.
    """
    verdict = paired.verdict(max_drop)
    if verdict is Verdict.INCONCLUSIVE and paired.drop > max_drop and paired.drop_lower_bound() > 0:
        return Verdict.FAIL
    return verdict


def _accuracy_change(
    candidate: Candidate,
    correct: Sequence[np.ndarray],
    different: int,
    data: Path | None,
    max_drop: float,
) -> AccuracyChange:
    paired = pair_predictions(correct[0], correct[1])
    verdict = judge_drop(paired, max_drop) if different else Verdict.PASS
    undecided = verdict is Verdict.INCONCLUSIVE
    return AccuracyChange(
        artifact=candidate.artifact.name,
        backend=candidate.engine.name,
        images=paired.images,
        truth="pytorch" if data is None else "labels",
        first=100 * paired.baseline_correct / paired.images,
        second=100 * paired.candidate_correct / paired.images,
        lost=paired.lost,
        gained=paired.gained,
        drop=paired.drop,
        drop_low=paired.drop_lower_bound() if different else 0.0,
        drop_high=paired.drop_upper_bound() if different else 0.0,
        different=different,
        images_to_decide=paired.images_to_decide(max_drop) if undecided else None,
        verdict=verdict,
    )


def _golden_batches(first: Bundle, second: Bundle) -> Iterable[_Batch]:
    sizes = [bundle.manifest.preprocessing.image_size for bundle in (first, second)]
    if sizes[0] != sizes[1] or first.labels() != second.labels():
        raise BundleError(
            f"{first.path} and {second.path} cannot share golden images: their image sizes are "
            f"{sizes[0]} and {sizes[1]} pixels, or their classes differ",
            "compare them on labelled images with --data",
        )
    golden = first.golden()
    classes = golden.logits.argmax(axis=1)
    return [_Batch((golden.images, golden.images), (classes, classes))]


def _folder_batches(
    first: Bundle, second: Bundle, data: Path, progress: Progress
) -> Iterator[_Batch]:
    found = read_image_folder(split_folder(data, "val"))
    labels = [np.array(match_labels(found, b.labels()).labels) for b in (first, second)]
    formats = [bundle.manifest.preprocessing for bundle in (first, second)]
    others = read_batches(found.files, formats[1], BATCH) if formats[0] != formats[1] else None
    with progress("comparing", len(found.files)) as advance:
        for batch in read_batches(found.files, formats[0], BATCH):
            # Both readers skip the same damaged files, so their batches have the same positions.
            other = next(others) if others else batch
            positions = list(batch.positions)
            yield _Batch((batch.images, other.images), (labels[0][positions], labels[1][positions]))
            advance(len(positions))
