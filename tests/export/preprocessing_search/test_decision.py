"""The decision between two candidates: McNemar's exact test, and the estimate of more images."""

from __future__ import annotations

import math

import pytest
import torch

from resdeploy.export.preprocessing_search.decision import (
    Moments,
    images_to_separate,
    is_excluded,
    is_worse,
    locate,
)  # fmt: skip
from resdeploy.statistics import PairedAccuracy


def paired(lost: int, gained: int, images: int = 1000) -> PairedAccuracy:
    return PairedAccuracy(
        images=images, baseline_correct=lost, candidate_correct=gained, lost=lost, gained=gained
    )


@pytest.mark.parametrize("alpha", [0.05, 1e-3, 1e-6])
def test_worse_is_decided_by_the_exact_binomial_tail(alpha: float) -> None:
    for lost in range(40):
        for gained in range(40):
            count = lost + gained
            tail = sum(math.comb(count, k) for k in range(gained + 1)) / 2**count
            expected = lost > gained and tail <= alpha
            assert is_worse(paired(lost, gained), alpha) is expected


def test_the_estimated_images_separate_two_candidates() -> None:
    images = images_to_separate(paired(30, 20), 1e-3)
    assert images is not None
    factor = images / 1000
    assert is_worse(paired(round(30 * factor * 1.1), round(20 * factor * 1.1)), 1e-3)
    assert not is_worse(paired(round(30 * factor * 0.8), round(20 * factor * 0.8)), 1e-3)


def test_equally_accurate_candidates_need_no_number_of_images() -> None:
    assert images_to_separate(paired(0, 0), 1e-3) is None
    assert images_to_separate(paired(20, 20), 1e-3) is None


def test_the_recorded_statistics_must_be_at_one_candidate() -> None:
    assert is_excluded(1.0, 0.2, 1e-3)
    assert not is_excluded(1.0, 0.4, 1e-3)  # uncertain
    assert not is_excluded(0.45, 0.01, 1e-3)  # nearer to the other one
    assert not is_excluded(1.8, 0.1, 1e-3)  # far beyond both
    assert is_excluded(1.6, 0.3, 1e-3)  # perhaps not beyond
    assert not is_excluded(3.4, 0.79, 1e-3)  # fits neither, though beyond is uncertain
    assert not is_excluded(math.nan, math.nan, 1e-3)  # the same inputs


def test_positions_are_measured_without_the_ignored_shift() -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    step, nothing = draw(100), torch.zeros((0, 100), dtype=torch.float64)
    shift = draw(1, 100) + step / 2
    spread = 0.1 * draw(64, 100)
    groups = torch.arange(20).repeat_interleave(5)  # ten norms of five channels
    near, far = (Moments(centre, spread, groups) for centre in (shift[0], shift[0] + step))
    position, deviation = locate(near, far, shift)
    assert abs(position - 1) < 1e-6
    assert deviation < 0.2
    assert abs(locate(near, far, nothing)[0] - 1) > 0.01
    assert abs(locate(far, near, shift)[0]) < 1e-6


def test_the_noise_of_the_recorded_statistics_is_that_of_the_nearest_candidate() -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    step, nothing = draw(500), torch.zeros((0, 500), dtype=torch.float64)
    spread, residual = draw(64, 500), draw(500)

    groups = torch.arange(20).repeat_interleave(25)

    def deviation(batches: float) -> float:
        near = Moments(residual / batches**0.5, spread, groups)
        return locate(near, Moments(near.centre - step, spread, groups), nothing)[1]

    # A mean of `batches` blocks has this part of the variance of one, which counts three times: as
    # noise of the images, as the least noise of the coordinates, and as the jackknife sees it.
    many = deviation(16)
    assert many == pytest.approx(math.sqrt(3) / float(step.norm()) / 4, rel=0.2)
    assert deviation(64) == pytest.approx(many / 2, rel=0.1)
    # The images that are measured on have noise, too.
    assert deviation(1e6) == pytest.approx(deviation(1e9), rel=1e-3)
    assert deviation(1e9) == pytest.approx(many / 2, rel=0.3)
    # So has what no candidate explains.
    assert deviation(1) > 3 * many


def test_norms_that_disagree_make_a_position_uncertain() -> None:
    generator = torch.Generator().manual_seed(0)
    step, spread = torch.ones(400).double(), torch.randn(64, 400, generator=generator).double() / 9
    groups, nothing = torch.arange(20).repeat_interleave(20), torch.zeros((0, 400)).double()
    offset = torch.tensor([0.4, -0.4]).double().repeat_interleave(40).repeat(5)  # of each norm
    positions = []
    for centre in (torch.zeros(400).double(), offset):
        near, far = Moments(centre, spread, groups), Moments(centre - step, spread, groups)
        positions.append(locate(near, far, nothing))
    (right, sure), (mean, unsure) = positions
    assert right == pytest.approx(1)
    assert mean == pytest.approx(1, abs=0.05)
    # The standard error of ten positions, of which each is 0.4 away.
    assert unsure > 0.12 > 3 * sure


def test_another_geometry_must_be_worse_by_some_points() -> None:
    assert is_worse(paired(140, 40), 1e-3)
    assert not is_worse(paired(130, 50), 1e-3, points=5.0)  # 8 points, but its bound is below 5
    assert is_worse(paired(180, 40), 1e-3, points=5.0)
