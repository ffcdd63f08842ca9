"""Tests of the training benchmarks on small data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.training import degradation
from benchmarks.training import loops as training_loops
from benchmarks.training.degradation import balanced_subset, plot
from benchmarks.training.loops import operations_per_image
from resdeploy.images.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from resdeploy.train.config import TrainingConfig
from resdeploy.train.data.dataset import read_splits
from tests.samples import SIZE


def test_a_step_needs_three_times_the_papers_operations() -> None:
    # He et al. 2015, table 1: 3.6e9 FLOPs (multiply-adds) at 224 pixels and 1000 classes.
    macs = operations_per_image(224, 1000) / 6
    assert macs == pytest.approx(3.6e9, rel=0.03)  # the table gives two digits


@pytest.mark.slow
@pytest.mark.parametrize("loop", training_loops.LOOPS)
def test_every_loop_trains_steps(loop: str, image_data: Path) -> None:
    if loop == "reference":
        step = training_loops.reference_step(image_data, SIZE, 8)
    else:
        step = training_loops.resdeploy_step(image_data, SIZE, 8, bf16=False)
    assert [step() >= 0 for _ in range(9)] == [True] * 9  # more than the seven steps of an epoch


def test_the_reference_loop_normalises_its_pixels(image_data: Path) -> None:
    pixels, label = training_loops.ReferenceImages(image_data / "train", SIZE)[0]
    assert pixels.shape == (3, SIZE, SIZE)
    assert label == 0
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    back = 255 * (pixels * std + mean)
    torch.testing.assert_close(back, back.round(), rtol=0, atol=1e-3)  # pixels were integers
    assert back.mean((1, 2)).argmax() == 2  # the image is blue


def test_a_balanced_subset_has_equal_numbers_of_each_class(image_data: Path) -> None:
    part = balanced_subset(read_splits(image_data).train, 12)
    assert np.bincount(part.labels).tolist() == [4, 4, 4]


@pytest.mark.slow
def test_plain_and_residual_networks_are_trained_and_plotted(
    image_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(degradation, "DEPTHS", {10: (1, 1, 1, 1)})
    config = TrainingConfig(data="x", epochs=2, image_size=SIZE, batch_size=30, lr=0.1)
    splits = read_splits(image_data)
    curves = [degradation.train_network(config, splits, kind, 10) for kind in degradation.KINDS]
    for curve in curves:
        assert len(curve.train_error) == len(curve.val_error) == 2
        assert all(0 <= error <= 100 for error in (*curve.train_error, *curve.val_error))
    monkeypatch.setattr(degradation, "COLOURS", {10: "#0072B2"})
    assert plot(curves).startswith(b"\x89PNG")
