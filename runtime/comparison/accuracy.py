"""Do two bundles answer alike? Each artifact of both on the same images, paired."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resdeploy.bundle.bundle import Bundle
from resdeploy.errors import BundleError, DataError
from resdeploy.images.folder import match_labels, read_batches, read_image_folder, split_folder
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.progress import Progress
from resdeploy.results.comparison import AccuracyChange
from resdeploy.runtime.backends.base import OpenOptions
from resdeploy.runtime.backends.registry import Candidate
from resdeploy.runtime.verification.golden_check import different_rows, run_batches
from resdeploy.statistics import IntArray, PairedAccuracy, Verdict, pair_predictions

BATCH = 32


@dataclass(frozen=True, slots=True)
class _Batch:
    """The same pictures as each bundle wants them, with their classes as each numbers them."""

    images: tuple[UInt8Array, UInt8Array]
    classes: tuple[IntArray, IntArray]


def compare_answers(
    first: Bundle,
    second: Bundle,
    pairs: Sequence[tuple[Candidate, Candidate]],
    *,
    data: Path | None,
    max_drop: float,
    threads: int | None,
    progress: Progress,
) -> tuple[AccuracyChange, ...]:
    """Run every pair of artifacts on the images of `data`, or on golden ones for None.

    Raises:
        BundleError: without `data`, where the bundles read other sizes or know other classes.
        DataError: the folder cannot be used with both.
    """
    opening = OpenOptions(threads=threads, progress=progress)
    batches = _golden(first, second) if data is None else _folder(first, second, data, progress)
    right: list[tuple[list[IntArray], list[IntArray]]] = [([], []) for _ in pairs]
    different = [0] * len(pairs)
    with ExitStack() as stack:
        opened = [
            tuple(
                stack.enter_context(closing(candidate.open(bundle, opening)))
                for bundle, candidate in zip((first, second), pair)
            )
            for pair in pairs
        ]
        for batch in batches:
            for index, backends in enumerate(opened):
                logits = [run_batches(b, images) for b, images in zip(backends, batch.images)]
                for side in (0, 1):
                    answers = logits[side].argmax(axis=1)
                    right[index][side].append(answers == batch.classes[side])
                different[index] += different_rows(*logits)
    if not right[0][0]:
        raise DataError(
            "not one image of the folder can be decoded", "name a folder with intact images"
        )
    return tuple(
        _judge(pair[0], [np.concatenate(parts) for parts in sides], count, data, max_drop)
        for pair, sides, count in zip(pairs, right, different)
    )


def judge_drop(paired: PairedAccuracy, max_drop: float) -> Verdict:
    """Whether the second is good enough; a certain loss that looks too large is not let through.

    PASS: the drop is at most `max_drop`, at 95 %. FAIL: it is larger, at 95 %; or there is one, at
    95 %, and the best estimate of it is larger. To ask for the former alone would let answers that
    differ in both directions hide half a point on 5,000 images.
    """
    verdict = paired.verdict(max_drop)
    certain = paired.drop_lower_bound() > 0 and paired.drop > max_drop
    return Verdict.FAIL if certain and verdict is Verdict.INCONCLUSIVE else verdict


def _judge(
    candidate: Candidate,
    right: Sequence[np.ndarray],
    different: int,
    data: Path | None,
    max_drop: float,
) -> AccuracyChange:
    paired = pair_predictions(right[0], right[1])
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


def _golden(first: Bundle, second: Bundle) -> Iterable[_Batch]:
    sizes = [bundle.manifest.preprocessing.image_size for bundle in (first, second)]
    if sizes[0] != sizes[1] or first.labels() != second.labels():
        raise BundleError(
            f"{first.path} and {second.path} read images of {sizes[0]} and {sizes[1]} pixels, or "
            "know other classes: the golden images of one are none for the other",
            "compare them on pictures, with --data",
        )
    golden = first.golden()
    classes = golden.logits.argmax(axis=1)
    return [_Batch((golden.images, golden.images), (classes, classes))]


def _folder(first: Bundle, second: Bundle, data: Path, progress: Progress) -> Iterator[_Batch]:
    found = read_image_folder(split_folder(data, "val"))
    labels = [np.array(match_labels(found, b.labels()).labels) for b in (first, second)]
    wanted = [bundle.manifest.preprocessing for bundle in (first, second)]
    ours = read_batches(found.files, wanted[0], BATCH)
    with progress("comparing", len(found.files)) as advance:
        again = read_batches(found.files, wanted[1], BATCH) if wanted[0] != wanted[1] else None
        for one in ours:
            other = one if again is None else next(again)  # what one can decode, so can the other
            positions = list(one.positions)
            yield _Batch((one.images, other.images), (labels[0][positions], labels[1][positions]))
            advance(len(positions))
