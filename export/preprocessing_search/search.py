"""Search for the pre-processing that a network was trained with.

The candidates are too many for all combinations. The search begins with every normalisation in the
standard geometry, then tries other geometries of each candidate that may still be the best (of all
that are tied), and every normalisation in the best geometry, until there are no new ones.
Candidates that are clearly worse on few images are not scored on more.

Source: Maron and Moore, "Hoeffding races", NIPS 1993, for the races.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from resdeploy.calibration.image_set import draw
from resdeploy.errors import DataError
from resdeploy.export.norm_inputs import norms_with_statistics
from resdeploy.export.preprocessing_search.candidates import (
    LARGE_SIZES,
    SMALL_SIZES,
    describe,
    neighbours,
    normalisations,
    starting_points,
)  # fmt: skip
from resdeploy.export.preprocessing_search.decision import (
    ALPHA,
    DROP_ALPHA,
    GEOMETRY_POINTS,
    LARGEST_DIVERGENCE,
    compare_scores,
    correct_predictions,
    images_to_separate,
    is_worse,
)  # fmt: skip
from resdeploy.export.preprocessing_search.norm_comparison import NormComparison
from resdeploy.export.preprocessing_search.scoring import (
    CandidateScore,
    CandidateScorer,
    has_small_pictures,
)  # fmt: skip
from resdeploy.images.class_folders import label_images, match_labels, validation_folder
from resdeploy.images.folder import find_images
from resdeploy.images.preprocessing import Channels, CropOffset, Preprocessing
from resdeploy.label_check import LabelCheck, check_labels, refuse_wrong_labels
from resdeploy.progress import Progress, silent
from resdeploy.result_files.preprocessing_search import CandidateResult, PreprocessingSearch
from resdeploy.statistics import (
    IntArray,
    PairedAccuracy,
    Verdict,
    upper_bound_of_difference,
    wilson_interval,
)  # fmt: skip
from resdeploy.tables import plural
from resdeploy.train.checkpoint.load import Checkpoint
from resdeploy.train.checkpoint.sources import crop_offset_of
from resdeploy.train.model.architecture import Stem

logger = logging.getLogger(__name__)

FIRST_LOOK = 64  # images on which every candidate is scored
# The default number of images: 512 of 224 pixels, more if they are smaller.
DEFAULT_PIXELS, MOST_IMAGES = 512 * 224 * 224, 5000
ENOUGH_FOR_CHANCE = 256  # images to find that labels are in another order, rather than wrong
MOST_CANDIDATES = 300  # bounds the time


def find_preprocessing(
    checkpoint: Checkpoint,
    names: Sequence[str],
    data: Path,
    *,
    sizes: Sequence[int] = (),
    images: int | None = None,
    stated: Preprocessing | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> PreprocessingSearch:
    """Score candidates on images, and name the best one if the statistics allow it.

    Args:
        checkpoint: The network.
        names: Labels of its outputs.
        data: A folder of images, or one with `val/`. With class folders, top-1 accuracy decides;
            without them, the statistics of the batch norms do.
        sizes: Sizes to try, in pixels; by default, usual ones for this stem and these pictures.
        images: Largest number of images; by default, `DEFAULT_PIXELS` of them.
        stated: Another candidate, such as the settings that the checkpoint states.
        seed: Seed of the choice of images.
        progress: Display of the progress.

    Raises:
        DataError: The images cannot be used, their labels do not fit, or no candidate is better
            than chance.
    """
    folder = validation_folder(data)
    listing = find_images(folder)
    classes: dict[Path, int] | None = None
    if any(path.parent != folder for path in listing.files):
        labelled = label_images(folder, listing.files, listing.passed_over)
        labelled = match_labels(labelled, names, owner=str(checkpoint.path))
        classes = dict(zip(labelled.files, labelled.labels))
    network = checkpoint.network()
    if classes is None and not any(norms_with_statistics(network)):
        raise DataError(
            f"nothing can decide about the pre-processing: the images in {folder} have no labels, "
            "and the batch norms have no statistics",
            "state the settings of the weights' author with options of export, or sort labelled "
            "images into class folders",
        )
    files = draw(listing.files if classes is None else list(classes), seed)
    small = checkpoint.architecture.stem is Stem.CIFAR or has_small_pictures(files)
    if not sizes:
        usual = SMALL_SIZES if small else LARGE_SIZES
        sizes = usual if stated is None else tuple(dict.fromkeys([stated.size[0], *usual]))
    limit = images or min(MOST_IMAGES, max(FIRST_LOOK, DEFAULT_PIXELS // sizes[0] ** 2))
    search = _Search(CandidateScorer(network, files, limit, progress), classes, names, data)
    offset = stated.crop_offset if stated else crop_offset_of(checkpoint)
    search.begin(sizes, stated, offset, gray=checkpoint.architecture.input_channels == 1)
    search.explore(sizes)
    return search.result()


class _Search:
    """Race of candidates on the images of one scorer."""

    def __init__(
        self,
        scorer: CandidateScorer,
        classes: dict[Path, int] | None,
        names: Sequence[str],
        data: Path,
    ) -> None:
        self._scorer, self._classes, self._names, self._data = scorer, classes, names, data
        self._left: list[CandidateScore] = []
        self._norms = NormComparison(scorer)
        self._known_labels: IntArray = np.empty(0, np.int64)

    @property
    def _labels(self) -> IntArray:
        files = self._scorer.files  # without those that could not be decoded so far
        if len(self._known_labels) != len(files):
            self._known_labels = np.array([(self._classes or {})[path] for path in files], np.int64)
        return self._known_labels

    def begin(
        self, sizes: Sequence[int], stated: Preprocessing | None, offset: CropOffset, *, gray: bool
    ) -> None:
        """Race the normalisations in the standard geometry of the first size that works.

        Raises:
            DataError: The labels are in another order, or no candidate is better than chance.
        """
        for size in sizes:
            extra = [] if stated is None else [replace(stated, reducing_gap=None)]
            starts = [replace(s, crop_offset=offset) for s in starting_points(size, gray=gray)]
            entered = list(dict.fromkeys([*extra, *starts]))
            later = set(neighbours(entered[0], sizes)).difference(entered)
            self._scorer.duration.plan(len(self._scorer.scores), len(entered), len(later))
            # Where a network of any use is excluded, more images are lost time.
            self._race(entered, ENOUGH_FOR_CHANCE if size == sizes[0] else FIRST_LOOK)
            best = self._best(self._left)
            if self._classes is None:
                return
            # If the labels are in another order, the right candidate is not the most accurate one.
            scores = list(self._scorer.scores.values())
            for score in (best, min(scores, key=self._norms.divergence)):
                self._check_labels(score, only_order=True)
            if self._compare_with_chance(best).better_than_chance:
                return
        self._refuse_chance(self._best(self._left), sizes)

    def explore(self, sizes: Sequence[int]) -> None:
        """Race the neighbours of all candidates that may be the best, beginning with the best."""
        expanded = set[Preprocessing]()
        while ahead := [s for s in self._left if s.preprocessing not in expanded]:
            base = self._best(ahead).preprocessing
            expanded.add(base)
            room = MOST_CANDIDATES - len(self._scorer.scores)
            if new := self._untried(base, sizes):
                later = {c for s in ahead for c in self._untried(s.preprocessing, sizes)}
                self._scorer.duration.plan(
                    len(self._scorer.scores), len(new), len(later.difference(new))
                )
                self._race(new[:room])
            if len(new) >= room:
                logger.warning("not trying more than %d candidates", MOST_CANDIDATES)
                return

    def _untried(self, base: Preprocessing, sizes: Sequence[int]) -> list[Preprocessing]:
        """Return the neighbours of a candidate that are not scored yet."""
        found = list(neighbours(base, sizes))
        if base == self._best(self._left).preprocessing:
            found += normalisations(base, gray=base.channels is Channels.GRAY)
        return [c for c in dict.fromkeys(found) if c not in self._scorer.scores]

    def result(self) -> PreprocessingSearch:
        """Compare the best candidate with all others, on all images where that is needed.

        Raises:
            DataError: The labels are in another order than the network's classes; or there are no
                labels, and no candidate fits the batch norms.
        """
        everyone = list(self._scorer.scores.values())
        self._scorer.duration.plan(len(everyone), raced=0, waiting=0)
        alpha = ALPHA / max(len(everyone) - 1, 1)
        while True:
            self._norms.random_crops = False  # another candidate may have been the nearest so far
            left = self._contenders(everyone, alpha)
            if min(score.images for score in left) == self._scorer.images:
                break
            self._scorer.extend([s.preprocessing for s in left], self._scorer.images)
        best = self._best(left)
        if self._classes is not None:
            self._check_labels(best)
        elif self._norms.divergence(best) > LARGEST_DIVERGENCE:
            raise DataError(
                "no candidate gives the batch norms the inputs that they had in training: the best "
                f"one is {describe(best.preprocessing)}, {self._norms.divergence(best):.2g} nats "
                "away",
                "sort labelled images into class folders, or use images like those of the training",
            )
        aliases = [s for s in left if s is not best and s.has_pixels_of(best)]
        others = [s for s in left if s is not best and s not in aliases]
        shown = list[CandidateScore]()
        for score in sorted(everyone, key=lambda s: (s is not best, s not in left, -self._rank(s))):
            if not any(score.has_pixels_of(other) for other in shown):
                shown.append(score)
        decided = not others and (
            self._classes is None or self._compare_with_chance(best).better_than_chance
        )
        needed = [0]
        if self._classes is not None:
            # Top-1 accuracy does not decide between geometries.
            needed += [
                0 if s.has_graph_of(best) else images_to_separate(self._paired(best, s), alpha) or 0
                for s in others
            ]
        return PreprocessingSearch(
            verdict=Verdict.PASS if decided else Verdict.INCONCLUSIVE,
            preprocessing=best.preprocessing if decided else None,
            same_pixels=tuple(describe(s.preprocessing) for s in aliases),
            candidates=tuple(self._describe(best, s, alpha, left=s in left) for s in shown),
            labelled=self._classes is not None,
            images=best.images,
            seconds=self._scorer.duration.seconds,
            same_predictions=int(np.all([s.predicted == best.predicted for s in left], 0).sum()),
            random_crops=self._norms.random_crops,
            images_to_decide=max(needed) if min(needed[1:], default=0) else None,
        )

    def _describe(
        self, best: CandidateScore, score: CandidateScore, alpha: float, *, left: bool
    ) -> CandidateResult:
        found = self._norms.divergence(score)
        result = CandidateResult(
            name=describe(score.preprocessing),
            preprocessing=score.preprocessing,
            images=score.images,
            divergence=None if math.isinf(found) else found,
            excluded_by=None if left else "batch norms",
        )
        if self._classes is None:
            return result
        correct = correct_predictions(score, self._labels)
        result = replace(
            result,
            top1=100 * float(correct.mean()),
            top1_interval=wilson_interval(int(correct.sum()), score.images),
        )
        if score is best:
            return result
        paired = self._paired(best, score)
        lost, gained, images = paired.lost, paired.gained, paired.images
        return replace(
            result,
            difference=-paired.drop,
            difference_interval=(
                -100 * upper_bound_of_difference(lost, gained, images, 1 - alpha),
                100 * upper_bound_of_difference(gained, lost, images, 1 - alpha),
            ),
            excluded_by="top-1" if self._is_worse(best, score, alpha) else result.excluded_by,
        )

    def _race(self, candidates: Sequence[Preprocessing], chance: float = math.inf) -> None:
        """Score candidates, and those that are left, on more and more images.

        Stop from `chance` images on if none is better than chance and could be useful.
        """
        scorer, images = self._scorer, min(FIRST_LOOK, self._scorer.images)
        left = [score.preprocessing for score in self._left]
        entered = list(dict.fromkeys([*candidates, *left]))
        while True:
            scorer.extend(entered, images)
            scorer.duration.advance(images / scorer.images)
            self._left = self._contenders([scorer.scores[c] for c in entered], DROP_ALPHA)
            entered = [score.preprocessing for score in self._left]
            if images >= scorer.images:
                return
            if images >= chance and self._is_at_chance():
                return
            images = min(2 * images, scorer.images)

    def _contenders(self, scores: Sequence[CandidateScore], alpha: float) -> list[CandidateScore]:
        """Return the candidates that may be the best."""
        best = self._best(scores)
        rivals = [s for s in scores if s is best or not self._is_worse(best, s, alpha)]
        what = f"comparing the batch norms of {plural(len(rivals), 'candidate')}"
        with self._scorer.phase(what, 2 * len(rivals)) as advance:
            near = self._norms.nearest(rivals, advance)
            return [s for s in rivals if not self._norms.is_excluded(near, s, alpha, advance)]

    def _is_worse(self, best: CandidateScore, other: CandidateScore, alpha: float) -> bool:
        if self._classes is None:
            return False
        points = GEOMETRY_POINTS if best.has_graph_of(other) else 0.0
        return is_worse(self._paired(best, other), alpha, points)

    def _paired(self, best: CandidateScore, other: CandidateScore) -> PairedAccuracy:
        return compare_scores(best, other, self._labels)

    def _best(self, scores: Sequence[CandidateScore]) -> CandidateScore:
        """Return the best of the candidates with the most images."""
        return max(scores, key=lambda score: (score.images, self._rank(score)))

    def _rank(self, score: CandidateScore) -> float:
        if self._classes is None:
            return -self._norms.divergence(score)
        return float(correct_predictions(score, self._labels).mean())

    def _compare_with_chance(self, best: CandidateScore) -> LabelCheck:
        labels, tried = self._labels[: best.images], len(self._scorer.scores)
        return check_labels(labels, best.predicted, len(self._names), alternatives=tried)

    def _is_at_chance(self) -> bool:
        if self._classes is None:
            return False
        return self._compare_with_chance(self._best(self._left)).no_better_than_chance

    def _refuse_chance(self, best: CandidateScore, sizes: Sequence[int]) -> None:
        """Raise a DataError if accuracy cannot decide; log a warning if images are too few."""
        found = self._compare_with_chance(best)
        can_tell = math.isfinite(self._norms.divergence(best))
        if can_tell and not found.no_better_than_chance:
            self._check_labels(best)
            return
        few = "" if found.no_better_than_chance else ", or the images are too few"
        raise DataError(
            f"accuracy cannot decide about the pre-processing, because the classes of {self._data} "
            "are not the network's, or their order is wrong, or the weights are not "
            f"trained{few}: none of {plural(len(self._scorer.scores), 'candidate')} of "
            f"{', '.join(map(str, sizes))} pixels is better than chance; the best one is correct "
            f"for {100 * found.correct / found.images:.1f} % of {plural(found.images, 'image')}, "
            f"and for {100 * found.chance / found.images:.1f} % if the labels were shuffled",
            "give the names of the network's classes in its order with --labels FILE, or "
            + (
                "use images in a folder without sub-folders, which the batch norms judge"
                if can_tell
                else "state the settings of the weights' author with options of export: the batch "
                "norms have no statistics, so that nothing else can decide"
            ),
        )

    def _check_labels(self, score: CandidateScore, *, only_order: bool = False) -> None:
        labels = self._labels[: score.images]
        refuse_wrong_labels(labels, score.predicted, self._names, self._data, only_order=only_order)
