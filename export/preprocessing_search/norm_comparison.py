"""Comparison of candidates by the recorded statistics of the batch norms, with what it needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from resdeploy.export.preprocessing_search.decision import (
    CROP_MARGIN,
    CROPPED_AREAS,
    ENOUGH_BLOCKS,
    LEAST_RATIO_OF_FEW,
    batch_norm_divergence,
    common_blocks,
    is_excluded,
    locate,
    measure_moments,
)  # fmt: skip
from resdeploy.export.preprocessing_search.scoring import (
    OBSERVED_BLOCKS,
    CandidateScore,
    CandidateScorer,
)
from resdeploy.images.preprocessing import Preprocessing, ResizeMode
from resdeploy.progress import Advance

AUGMENTED_BLOCKS = 8  # enough for the direction in which an augmentation moves the moments


class NormComparison:
    """Comparison of the candidates of one scorer, which keeps what it measured."""

    def __init__(self, scorer: CandidateScorer) -> None:
        self._scorer = scorer
        self.random_crops = False
        """True if a candidate was kept because the training took random crops."""
        self._divergences: dict[tuple[Preprocessing, int], float] = {}
        self._positions: dict[tuple[Preprocessing, Preprocessing, int], tuple[float, float]] = {}
        self._known_augmentations: dict[Preprocessing, Tensor] = {}
        self._known_crops: dict[Preprocessing, tuple[float, ...]] = {}

    def nearest(self, scores: Sequence[CandidateScore], advance: Advance) -> CandidateScore:
        """Return the candidate that the batch norms' recorded statistics are nearest to."""
        fewest = min(len(score.blocks) for score in scores)
        nearest = min(scores, key=lambda score: self.divergence(score, fewest))
        for score in [score for score in scores if score is not nearest]:
            blocks = common_blocks(nearest, score)
            # Without statistics of batch norms the divergence is infinite.
            if blocks >= ENOUGH_BLOCKS and math.isfinite(self.divergence(nearest, blocks)):
                closer = self._locate(nearest, score)[0] < 0.5
            else:
                closer = self.divergence(score, blocks) < self.divergence(nearest, blocks)
            nearest = score if closer else nearest
            advance(1)
        return nearest

    def is_excluded(
        self, near: CandidateScore, far: CandidateScore, alpha: float, advance: Advance
    ) -> bool:
        """Return True if the batch norms show that another candidate is nearer."""
        advance(1)
        blocks = common_blocks(near, far)
        one, two = (self.divergence(score, blocks) for score in (near, far))
        if near is far or math.isinf(one):
            return False
        if blocks < ENOUGH_BLOCKS:
            farther = two >= LEAST_RATIO_OF_FEW * one
        else:
            farther = is_excluded(*self._locate(near, far), alpha)
        return farther and not (near.has_graph_of(far) and self._is_randomly_cropped(near, far))

    def _is_randomly_cropped(self, near: CandidateScore, far: CandidateScore) -> bool:
        """Return True if the training took random crops, and those of `far` may be among them.

        The crop of a candidate is not in the weights then. Random crops look most like some other
        candidate, with larger objects, than that with which the network is meant to be used.
        """
        one, two = self._crops(near), self._crops(far)
        without = self._scorer.trained(near.preprocessing, AUGMENTED_BLOCKS)
        if min(*one, *two) >= CROP_MARGIN * batch_norm_divergence(without, AUGMENTED_BLOCKS):
            return False
        self.random_crops = True
        return min(two) < LEAST_RATIO_OF_FEW * min(one)

    def _crops(self, score: CandidateScore) -> tuple[float, ...]:
        """Return the divergence with random crops of each area; any candidate's crop is ignored."""
        size = score.preprocessing.image_size
        key = replace(score.preprocessing, resize=size, resize_mode=ResizeMode.SQUASH)
        if key not in self._known_crops:
            scores = [self._scorer.cropped(key, a, AUGMENTED_BLOCKS) for a in CROPPED_AREAS]
            self._known_crops[key] = tuple(batch_norm_divergence(s, len(s.blocks)) for s in scores)
        return self._known_crops[key]

    def _locate(self, near: CandidateScore, far: CandidateScore) -> tuple[float, float]:
        blocks = common_blocks(near, far)
        key = near.preprocessing, far.preprocessing, blocks
        if key not in self._positions:
            one, two = (measure_moments(self._scorer.trained(c, blocks)) for c in key[:2])
            self._positions[key] = locate(one, two, self._augmentations(near))
        return self._positions[key]

    def _augmentations(self, score: CandidateScore) -> Tensor:
        """Return how augmentations move the moments, about the same with every crop."""
        key = replace(score.preprocessing, resize=None, resize_mode=ResizeMode.SQUASH)
        if key not in self._known_augmentations:
            start = self._scorer.trained(score.preprocessing, AUGMENTED_BLOCKS)
            moved = self._scorer.augmented(score.preprocessing, AUGMENTED_BLOCKS)
            centres = [measure_moments(other).centre for other in moved]
            self._known_augmentations[key] = torch.stack(centres) - measure_moments(start).centre
        return self._known_augmentations[key]

    def divergence(self, score: CandidateScore, blocks: int = OBSERVED_BLOCKS) -> float:
        key = score.preprocessing, min(blocks, len(score.blocks))
        if key not in self._divergences:
            self._divergences[key] = batch_norm_divergence(score, blocks)
        return self._divergences[key]
