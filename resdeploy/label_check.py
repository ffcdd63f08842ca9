"""The check that labels are those of the network: in the same order, and better than chance.

Shape letters: N images, K classes.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from resdeploy.errors import DataError
from resdeploy.statistics import IntArray, wilson_interval
from resdeploy.tables import plural

logger = logging.getLogger(__name__)

# One-sided test that predictions are better than chance, at 95 % confidence. To fail it is no error
# on few images: the data must also exclude a network of some use, as follows.
CHANCE_ALPHA = 0.05
# Cohen's kappa of a poor network: 28 % accuracy on 10 balanced classes, 60 % on two. A network that
# is better is called useless in fewer than 1 of 1000 checks, even on few images.
POOR_KAPPA, USELESS_CONFIDENCE = 0.2, 0.998
# A false accusation stops a user's work, and every export and verification is a test.
PERMUTATION_ALPHA = 1e-4
# A permutation must be right for most images of the classes that it moves, and twice as often as
# the labels. A merely bad network does not do that: on 800 CIFAR-10 pictures that were darkened,
# blurred, turned, inverted or normalised wrongly in 21 ways, a ResNet-34 had 10 to 75 % accuracy,
# and permutations that were right for half of the images were so 1.4 times as often as the labels.
LEAST_EXPLAINED, LEAST_RATIO = 0.5, 2.0
SHOWN_PAIRS = 4

ClassMap = Mapping[int, int]
"""True class to predicted class, for the classes that a permutation moves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelCheck:
    """Evidence about the labels of images, from the classes that a network predicts."""

    images: int
    correct: int
    chance: float
    """Expected number of correct predictions if they were independent of the labels."""
    better_than_chance: bool
    no_better_than_chance: bool
    """True if a network of any use is excluded; if both are False, the images are too few."""
    moved: ClassMap
    """Classes that the network seems to know by another index; empty if there is no evidence."""
    explained: int
    """Number of correct predictions if these classes are renamed."""


def check_labels(
    labels: IntArray, predicted: IntArray, classes: int, *, alternatives: int = 1
) -> LabelCheck:
    """Compare true classes (N,) with predicted classes (N,), N > 0, both from 0 to `classes` - 1.

    A permutation is fitted on one half of the images and judged on the other half, in both
    directions, so that few images per class cannot overfit.

    If `predicted` are the most accurate ones of several `alternatives`, they must be better than
    chance by Bonferroni's correction: the best of many is better than most by chance, too.
    """
    labels, predicted = np.asarray(labels, np.int64), np.asarray(predicted, np.int64)
    images, correct = len(labels), int((labels == predicted).sum())
    chance, better = _compare_with_chance(labels, predicted, CHANCE_ALPHA / alternatives)
    poor = chance + POOR_KAPPA * (images - chance)
    upper = wilson_interval(correct, images, USELESS_CONFIDENCE)[1] * images / 100
    # With one true class, the number of correct predictions is always that of chance.
    no_better = not better and upper < poor and len(np.unique(labels)) > 1
    moved = _find_permutation(labels, predicted, classes, with_paths=no_better)
    renamed = _rename(labels, moved)
    if not _compare_with_chance(renamed, predicted)[1]:
        moved, renamed = {}, labels  # constant predictions explain themselves
    return LabelCheck(
        images=images,
        correct=correct,
        chance=chance,
        better_than_chance=better,
        no_better_than_chance=no_better,
        moved=moved,
        explained=int((renamed == predicted).sum()),
    )


def refuse_wrong_labels(
    labels: IntArray,
    predicted: IntArray,
    names: Sequence[str],
    source: object,
    *,
    only_order: bool = False,
) -> None:
    """Check the labels of images that `source` names; warn if the images are too few.

    `labels` are the true classes (N,), `predicted` those that the network predicts, best in FP32,
    `names` the names of the K classes. With `only_order`, predictions may be no better than chance.

    Raises:
        DataError: The predictions are far better if classes are renamed, or no better than chance.
    """
    if len(names) < 2 or not len(labels):
        return
    check = check_labels(labels, predicted, len(names))
    share = f"{100 * check.correct / check.images:.1f} %"
    chance = f"{100 * check.chance / check.images:.1f} %"
    if check.moved:
        raise DataError(
            f"the labels of {source} are not in the order of the network's classes: its "
            f"predictions are correct for {share} of {check.images:,} images, but for "
            f"{100 * check.explained / check.images:.1f} % if labels are renamed "
            f"({len(check.moved)} of {len(names)}: {_pairs(check.moved, names)})",
            "check the names of the folders, and the order of the labels with which the network "
            "was trained and exported",
        )
    if only_order:
        return
    if check.no_better_than_chance:
        raise DataError(
            f"the predictions on {source} are correct for {share} of {check.images:,} images, no "
            f"more than by chance ({chance} if the labels were shuffled)",
            "check that the labels are in the order of the network's classes, that image size, "
            "mean and std are those of the training, and that the weights are trained",
        )
    if not check.better_than_chance:
        present = len(np.unique(labels))
        of_classes = f" of {present} of the {len(names)} classes" if present < len(names) else ""
        logger.warning(
            "%s%s are too few to tell whether the labels of %s are right and the network is "
            "trained: the predictions are correct for %s of them, and for %s if the labels were "
            "shuffled",
            plural(check.images, "image"), of_classes, source, share, chance,
        )  # fmt: skip


def assign_greedily(counts: Mapping[tuple[int, int], int]) -> dict[int, int | None]:
    """Give each label another predicted class, beginning with the largest of the `counts`.

    The result has at least half of the largest possible sum of counts, and all of it if each label
    has a predicted class of its own in most cases. The value is None if no class is left.
    """
    chosen: dict[int, int | None] = {}
    taken = set[int]()
    for true, got in sorted(counts, key=lambda pair: (-counts[pair], pair[0] != pair[1], pair)):
        if true not in chosen and got not in taken:
            chosen[true] = got
            taken.add(got)
    for label in sorted({true for true, _ in counts} - set(chosen)):
        chosen[label] = None if label in taken else label
        taken.add(label)
    return chosen


def _compare_with_chance(
    labels: IntArray, predicted: IntArray, alpha: float = CHANCE_ALPHA
) -> tuple[float, bool]:
    """Return the expected number of correct predictions if the labels were shuffled.

    Return also whether the predictions are significantly better than that.

    Source: Hoeffding, "A combinatorial central limit theorem", Annals of Mathematical Statistics
    22 (1951) 558-566, for a matrix that is 1 where a label equals a prediction.
    """
    size, count = int(max(labels.max(), predicted.max())) + 1, len(labels)
    true, got = (np.bincount(x, minlength=size).astype(np.float64) for x in (labels, predicted))
    both = true * got
    chance = float(both.sum() / count)
    squares = both.sum() - (both * (true + got)).sum() / count + chance**2
    deviation = math.sqrt(max(squares, 0.0) / max(count - 1, 1))
    # 0.5 is the continuity correction. Without a deviation, every order is equally good.
    excess = float((labels == predicted).sum()) - chance - 0.5
    return chance, deviation > 0 and excess > NormalDist().inv_cdf(1 - alpha) * deviation


def _find_permutation(
    labels: IntArray, predicted: IntArray, classes: int, *, with_paths: bool
) -> ClassMap:
    """Return the classes moved by the permutation that explains the predictions far better."""

    def fit_freely(true: IntArray, got: IntArray) -> ClassMap:
        return _fit_freely(true, got, with_paths=with_paths)

    def fit_regular(true: IntArray, got: IntArray) -> ClassMap:
        return _fit_regular(true, got, classes)

    order = np.argsort(labels, kind="stable")
    halves = order[0::2], order[1::2]  # each has half of the images of each class
    best: tuple[int, ClassMap] = (0, {})
    for fit in (fit_regular, fit_freely):
        images = gained = lost = 0
        for known, held_out in (halves, halves[::-1]):
            true, got = labels[held_out], predicted[held_out]
            renamed = _rename(true, fit(labels[known], predicted[known]))
            images += int((renamed != true).sum())
            gained += int(((renamed == got) & (true != got)).sum())
            lost += int(((renamed != got) & (true == got)).sum())
        # Hoeffding's bound of McNemar's one-sided exact test; `math.comb` takes too long here.
        score = (gained - lost) ** 2 / max(2 * (gained + lost), 1) if gained > lost else 0.0
        significant = math.exp(-score) < PERMUTATION_ALPHA
        if significant and _explains(gained, lost, images) and gained > best[0]:
            best = gained, fit(labels, predicted)
    return best[1]


def _rename(labels: IntArray, moved: ClassMap) -> IntArray:
    present, where = np.unique(labels, return_inverse=True)
    table = np.array([moved.get(label, label) for label in present.tolist()], dtype=np.int64)
    return table[where]


def _explains(gained: int, lost: int, images: int) -> bool:
    """Return True if a permutation gains most of the `images` that it concerns, and loses few."""
    return gained >= LEAST_EXPLAINED * images and gained >= LEAST_RATIO * lost


def _fit_regular(labels: IntArray, predicted: IntArray, classes: int) -> ClassMap:
    """Return the best of the permutations that mistakes in programs cause, for all classes.

    These are cyclic shifts, among them classes that count from 1, the reversed order, and numbers
    sorted as strings. They can be found with one image per class.
    """
    if not len(labels):
        return {}
    as_strings = sorted(range(classes), key=str)
    shift = int(np.bincount((predicted - labels) % classes, minlength=classes)[1:].argmax()) + 1
    candidates = [
        [(index + shift) % classes for index in range(classes)],
        list(range(classes))[::-1],
        as_strings,
        np.argsort(as_strings).tolist(),
    ]
    best = max(candidates, key=lambda table: int((np.array(table)[labels] == predicted).sum()))
    return {true: got for true, got in enumerate(best) if true != got}


def _fit_freely(labels: IntArray, predicted: IntArray, *, with_paths: bool) -> ClassMap:
    """Return the cycles of the best assignment of classes that explain their images.

    A path leads to a class without images. Alone it is weak evidence: of two classes that the
    network confuses, only one may be in the data.
    """
    counts, images = Counter(zip(labels.tolist(), predicted.tolist())), Counter(labels.tolist())
    target = assign_greedily(counts)
    moved: dict[int, int] = {}
    for members in _cycles(target):
        end = target[members[-1]]
        next_of = dict(zip(members, [*members[1:], members[0] if end is None else end]))
        gained = sum(counts[pair] for pair in next_of.items())
        lost = sum(counts[label, label] for label in members)
        closed = end in (None, members[0])
        if (closed or with_paths) and _explains(gained, lost, sum(images[m] for m in members)):
            moved |= next_of
    return moved


def _cycles(target: Mapping[int, int | None]) -> Iterator[list[int]]:
    """Yield the cycles of a permutation, and the paths to classes that it does not move."""
    remaining = {true for true, got in target.items() if true != got}
    # Paths from their beginning, then cycles from anywhere.
    for start in [*sorted(remaining - set(target.values())), *sorted(remaining)]:
        members = list[int]()
        label: int | None = start
        while label is not None and label in remaining:
            remaining.remove(label)
            members.append(label)
            label = target[label]
        if members:
            yield members


def _pairs(moved: ClassMap, names: Sequence[str]) -> str:
    pairs = [f"{names[true]!r} -> {names[got]!r}" for true, got in sorted(moved.items())]
    more = f" and {len(pairs) - SHOWN_PAIRS} more" if len(pairs) > SHOWN_PAIRS else ""
    return ", ".join(pairs[:SHOWN_PAIRS]) + more
