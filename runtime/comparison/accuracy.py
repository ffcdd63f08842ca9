"""The comparison of the accuracy of two bundles: paired outputs on the same images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.manifest import Precision
from resdeploy.errors import BundleError
from resdeploy.images.class_folders import LabelledImages, match_labels
from resdeploy.images.folder import read_batches
from resdeploy.images.preprocessing import Preprocessing, UInt8Array
from resdeploy.json_documents import jsonable
from resdeploy.label_check import refuse_wrong_labels
from resdeploy.progress import Progress
from resdeploy.result_files.comparison import AccuracyChange
from resdeploy.runtime.backends.base import OpenOptions
from resdeploy.runtime.backends.registry import Candidate
from resdeploy.runtime.verification.golden_check import different_rows, run_batches
from resdeploy.statistics import (
    IntArray,
    PairedAccuracy,
    Verdict,
    drop_bounds,
    images_for_verdict,
    judge_counts,
    pair_predictions,
)

BATCH = 32
_Answers = tuple[IntArray, IntArray]  # true and predicted classes of a batch


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
    folder: LabelledImages[Path] | None,
    data: Path | None,
    max_drop: float,
    threads: int | None,
    progress: Progress,
) -> tuple[AccuracyChange, ...]:
    """Run every pair of artifacts on the images of `folder`, or on golden images if it is None.

    `data` is the place of the images, for messages.

    Raises:
        BundleError: `folder` is None and the bundles differ in pre-processing or classes.
        DataError: The folder cannot be used with both bundles, or its labels do not fit their
            predictions.
    """
    options = OpenOptions(threads=threads, progress=progress)
    batches = (
        _golden_batches(first, second)
        if folder is None
        else _folder_batches(first, second, folder, progress)
    )
    correct: list[tuple[list[IntArray], list[IntArray]]] = [([], []) for _ in pairs]
    different = [0] * len(pairs)
    # The labels are judged by the answers of the most precise graphs.
    order = list(Precision)
    judged = min(range(len(pairs)), key=lambda i: order.index(pairs[i][0].artifact.precision))
    answers: tuple[list[_Answers], list[_Answers]] = ([], [])
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
                    if index == judged:
                        answers[side].append((batch.classes[side], predicted))
                different[index] += different_rows(*logits)
    if data is not None:
        for side, bundle in enumerate((first, second)):
            labels, predicted = (np.concatenate(parts) for parts in zip(*answers[side]))
            # If the second bundle alone is no better than chance, it fails, not the labels.
            refuse_wrong_labels(
                labels,
                predicted,
                bundle.labels(),
                f"{data} for {bundle.path}",
                only_order=side == 1,
            )
    same_network = _has_same_network(first, second)
    return tuple(
        _accuracy_change(
            pair[0],
            [np.concatenate(parts) for parts in sides],
            count,
            data,
            max_drop,
            is_same=same_network and pair[0].artifact.precision is Precision.FP32,
        )
        for pair, sides, count in zip(pairs, correct, different)
    )


def _has_same_network(first: Bundle, second: Bundle) -> bool:
    """Return True if both have the same weights and pre-processing; exports may round apart."""
    weights = [bundle.manifest.model.get("source_sha256") for bundle in (first, second)]
    same_input = first.manifest.preprocessing == second.manifest.preprocessing
    return weights[0] is not None and weights[0] == weights[1] and same_input


def judge_drop(paired: PairedAccuracy, max_drop: float) -> Verdict:
    """Return the verdict on an accuracy drop at 95 % confidence.

    PASS: The drop is at most `max_drop`. FAIL: The drop is larger than `max_drop`; or it is larger
    than 0, and its estimate is larger than `max_drop`. Without the second condition, a drop of half
    a point on 5,000 images would be inconclusive if many predictions changed in both directions.
    """
    return _judge_counts(paired.lost, paired.gained, paired.images, max_drop)


def images_for_drop(paired: PairedAccuracy, max_drop: float) -> int | None:
    """Estimate how many images a conclusive verdict needs; see `fewest_images`.

    Losses and gains are expected to stay as frequent as on the images of `paired`.
    """
    lost, gained = (count / paired.images for count in (paired.lost, paired.gained))
    return images_for_verdict(lost, gained, max_drop, known=paired.images, judge=_judge_counts)


def _judge_counts(lost: float, gained: float, images: int, max_drop: float) -> Verdict:
    verdict = judge_counts(lost, gained, images, max_drop)
    low, _ = drop_bounds(lost, gained, images)
    is_larger = 100 * (lost - gained) / images > max_drop and low > 0
    return Verdict.FAIL if verdict is Verdict.INCONCLUSIVE and is_larger else verdict


def _accuracy_change(
    candidate: Candidate,
    correct: Sequence[np.ndarray],
    different: int,
    data: Path | None,
    max_drop: float,
    *,
    is_same: bool,
) -> AccuracyChange:
    paired = pair_predictions(correct[0], correct[1])
    is_measured = bool(different) and not (is_same and paired.lost == paired.gained == 0)
    verdict = judge_drop(paired, max_drop) if is_measured else Verdict.PASS
    if data is None and verdict is Verdict.PASS:
        verdict = Verdict.REPRODUCED  # golden images do not judge accuracy
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
        drop_low=paired.drop_lower_bound() if is_measured else 0.0,
        drop_high=paired.drop_upper_bound() if is_measured else 0.0,
        different=different,
        images_to_decide=images_for_drop(paired, max_drop) if is_measured else None,
        verdict=verdict,
    )


def _settings_outside_the_graph(preprocessing: Preprocessing) -> dict[str, Any]:
    """Return the settings of the resize; the golden images do compare those of the graph."""
    settings: dict[str, Any] = jsonable(preprocessing)
    for name in ("channels", "value_range", "mean", "std"):
        del settings[name]
    return settings | {"resize": preprocessing.resize or preprocessing.image_size}


def _golden_batches(first: Bundle, second: Bundle) -> Iterable[_Batch]:
    reason = ""
    # Golden images are resized already, so they cannot show the effect of another pre-processing.
    settings = [
        _settings_outside_the_graph(bundle.manifest.preprocessing) for bundle in (first, second)
    ]
    for name, old in settings[0].items():
        if old != (new := settings[1][name]):
            reason = f"{name} of their pre-processing is {old} and {new}"
            break
    if not reason and first.labels() != second.labels():
        reason = "their classes differ, or the order of their classes"
    if reason:
        raise BundleError(
            f"{first.path} and {second.path} cannot share golden images: {reason}",
            "compare them on labelled images with --data",
        )
    golden = first.golden()
    classes = golden.logits.argmax(axis=1)
    return [_Batch((golden.images, golden.images), (classes, classes))]


def _folder_batches(
    first: Bundle, second: Bundle, found: LabelledImages[Path], progress: Progress
) -> Iterator[_Batch]:
    matched = [match_labels(found, first.labels(), owner=str(first.path))]
    if second.labels() == first.labels():  # match and log only once
        matched.append(matched[0])
    else:
        matched.append(match_labels(found, second.labels(), owner=str(second.path)))
    labels = [np.array(images.labels) for images in matched]
    formats = [bundle.manifest.preprocessing for bundle in (first, second)]
    others = read_batches(found.files, formats[1], BATCH) if formats[0] != formats[1] else None
    with progress("comparing", len(found.files)) as advance:
        for batch in read_batches(found.files, formats[0], BATCH):
            # Both readers skip the same damaged files, so their batches have the same positions.
            other = next(others) if others else batch
            positions = list(batch.positions)
            yield _Batch((batch.images, other.images), (labels[0][positions], labels[1][positions]))
            advance(len(positions))
