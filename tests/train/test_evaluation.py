"""Tests of the evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss

from resdeploy.errors import DataError
from resdeploy.images.class_folders import LabelledImages
from resdeploy.images.preprocessing import Preprocessing
from resdeploy.train.data.dataset import (
    BatchPlan,
    EpochImages,
    load_batches,
    read_splits,
)
from resdeploy.train.data.shards import ImageFile
from resdeploy.train.distributed import Process
from resdeploy.train.evaluation import MAX_MISTAKES, Evaluation, evaluate, validation_plan
from tests.samples import SIZE, make_classifier

ALONE = Process(0, 1, torch.device("cpu"))
PREPROCESSING = Preprocessing.standard(SIZE)


@pytest.fixture(scope="module")
def images(image_data: Path) -> LabelledImages[ImageFile]:
    return read_splits(image_data).val


def evaluated(images: LabelledImages[ImageFile]) -> Evaluation:
    batches = load_batches([EpochImages(images, PREPROCESSING)], validation_plan(ALONE))
    return evaluate(make_classifier(), batches, len(images.classes), ALONE)


@pytest.fixture(scope="module")
def evaluation(images: LabelledImages[ImageFile]) -> Evaluation:
    return evaluated(images)


def test_the_results_equal_those_of_scikit_learn(
    evaluation: Evaluation, images: LabelledImages[ImageFile]
) -> None:
    (batch,) = load_batches(
        [EpochImages(images, PREPROCESSING)], BatchPlan(batch_size=100, shuffle=False)
    )
    with torch.inference_mode():
        likely = make_classifier()(batch.images).double().softmax(1).numpy()
    truth, predicted = batch.labels.numpy(), likely.argmax(1)
    np.testing.assert_array_equal(
        evaluation.confusion, confusion_matrix(truth, predicted, labels=[0, 1, 2])
    )
    assert evaluation.accuracy == pytest.approx(100 * accuracy_score(truth, predicted))
    # Both compute logits in float32 and sums in float64.
    assert evaluation.loss == pytest.approx(log_loss(truth, likely, labels=[0, 1, 2]), rel=1e-6)
    wrong = [int(n) for n in np.flatnonzero(truth != predicted)]
    worst_first = sorted(wrong, key=lambda n: float(likely[n, truth[n]]))[:MAX_MISTAKES]
    assert [mistake.position for mistake in evaluation.worst] == worst_first
    for mistake in evaluation.worst:
        assert mistake.label == truth[mistake.position] != mistake.predicted
        assert mistake.probability == pytest.approx(likely[mistake.position].max(), rel=1e-5)


def test_images_that_cannot_be_decoded_are_not_counted(
    images: LabelledImages[ImageFile], tmp_path: Path
) -> None:
    (tmp_path / "damaged.png").write_bytes(b"")
    damaged = LabelledImages(
        classes=images.classes,
        files=(*images.files[:3], tmp_path / "damaged.png"),
        labels=(*images.labels[:3], 0),
    )
    found = evaluated(damaged)
    assert (int(found.confusion.sum()), found.unreadable) == (
        3,
        {3: "is empty"},
    )
    nothing = LabelledImages(classes=images.classes, files=(tmp_path / "damaged.png",), labels=(0,))
    with pytest.raises(DataError, match="no validation image"):
        evaluated(nothing)
