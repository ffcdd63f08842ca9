"""Tests that only images whose class a mixture could change are run again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resdeploy.export.mixed_precision.evaluator import NOISE_FACTOR, changeable_images


@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(2, 50), scale=st.floats(1e-3, 10))
def test_noise_of_up_to_four_times_the_norm_changes_no_other_image(
    seed: int, classes: int, scale: float
) -> None:
    generator = np.random.default_rng(seed)
    reference = generator.normal(0, 3, (40, classes)).astype(np.float32)
    noise = (scale * generator.normal(0, 1, reference.shape)).astype(np.float32)
    noisy = (reference + noise).astype(np.float32)
    close = changeable_images(reference, noisy)
    norm = np.linalg.norm(noise, axis=1)
    # The worst noise of a given norm changes only the two best classes.
    order = np.argsort(reference, axis=1)
    rows = np.arange(len(reference))
    worst = reference.astype(np.float64)
    shift = 0.999 * NOISE_FACTOR * np.maximum(norm, np.median(norm)) / np.sqrt(2)
    worst[rows, order[:, -1]] -= shift
    worst[rows, order[:, -2]] += shift
    changed = np.flatnonzero(worst.argmax(axis=1) != reference.argmax(axis=1))
    assert set(changed) <= set(close)


def test_images_with_a_large_margin_are_left_out() -> None:
    reference = np.array([[0, 10], [0, 0.1], [10, 0], [3, 3]], dtype=np.float32)
    noisy = (reference + np.array([0.1, 0])).astype(np.float32)
    assert changeable_images(reference, noisy).tolist() == [1, 3]


@pytest.mark.parametrize("classes", [2, 5])
def test_at_least_one_image_is_run_again(classes: int) -> None:
    reference = np.eye(classes, dtype=np.float32) * 100
    assert len(changeable_images(reference, reference)) == 1
