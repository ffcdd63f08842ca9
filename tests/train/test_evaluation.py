"""Tests of the evaluation, and of the report that shows it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss

from resdeploy.errors import DataError
from resdeploy.images.class_folders import LabelledImages
from resdeploy.images.preprocessing import Preprocessing
from resdeploy.result_files.provenance import collect_provenance
from resdeploy.train.config import TrainingConfig
from resdeploy.train.data.dataset import (
    BatchPlan,
    DataSplits,
    EpochImages,
    load_batches,
    read_splits,
)
from resdeploy.train.data.shards import ImageFile
from resdeploy.train.distributed import Process
from resdeploy.train.evaluation import MAX_MISTAKES, Evaluation, Mistake, evaluate, validation_plan
from resdeploy.train.run.curves import draw_curves
from resdeploy.train.run.outcome import RunOutcome
from resdeploy.train.run.report import confused_pairs, row_shares, write_report
from tests.samples import SIZE, make_classifier
from tests.train.run.test_folder import metrics

ALONE = Process(0, 1, torch.device("cpu"))
PREPROCESSING = Preprocessing.standard(SIZE)
DEVICE = {"cpu": "Processor <1>", "gpus": []}


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


# The report

CONFUSION = np.array([[8, 2, 0], [0, 5, 5], [0, 0, 0]])
MADE = Evaluation(loss=1.0, confusion=CONFUSION, worst=(), unreadable={})


def test_confused_pairs_are_sorted_by_frequency() -> None:
    pairs = confused_pairs(CONFUSION)
    assert pairs == [(1, 2), (0, 1)]
    shares = row_shares(CONFUSION)
    assert [shares[pair] for pair in pairs] == [0.5, 0.2]
    assert shares.diagonal().tolist() == [0.8, 0.5, 0]


def page(folder: Path, evaluation: Evaluation, images: LabelledImages[ImageFile], name: str) -> str:
    lines = [
        metrics(1),
        metrics(2),
        metrics(3),
        dataclasses.replace(metrics(3), epoch=4, accuracy=9.0),
    ]
    draw_curves(lines, folder / "curves.png")
    config = TrainingConfig(data=name, patience=3)
    splits = DataSplits(images, images, held_out=True)
    write_report(
        folder,
        config,
        RunOutcome.of(lines, dataclasses.replace(config, epochs=9, patience=1), splits, 50.0, 1),
        evaluation,
        images,
        PREPROCESSING,
        [name],
        collect_provenance(DEVICE),
    )
    return (folder / "report.html").read_text()


def test_the_report_shows_matrix_mistakes_and_settings(
    tmp_path: Path, evaluation: Evaluation, images: LabelledImages[ImageFile]
) -> None:
    text = page(tmp_path, evaluation, images, "data")
    assert f"{evaluation.accuracy:.2f} % top-1 accuracy" in text
    assert text.count("data:image/png;base64,") == 1 + len(evaluation.worst)
    assert '<table class="matrix">' in text
    assert "label_smoothing" in text
    assert "on Processor &lt;1&gt;" in text
    assert "after 4 epochs, on 24 held-out images" in text
    assert "The network is that of epoch 3, the best one." in text
    assert "most frequent class has an accuracy of 33.33 %. The training ended before" in text
    assert "before epoch 9: neither top-1 accuracy nor loss has improved in 1 epoch." in text
    assert "http" not in text.lower().replace("https://pytorch.org", "")


def test_many_classes_are_shown_without_the_matrix(
    tmp_path: Path, images: LabelledImages[ImageFile]
) -> None:
    many = LabelledImages(
        classes=tuple(f"class {n}" for n in range(40)), files=images.files, labels=images.labels
    )
    confusion = np.eye(40, dtype=np.int64)
    confusion[3, 4] = 7
    mistake = Mistake(position=0, label=3, predicted=4, probability=0.9)
    text = page(
        tmp_path,
        Evaluation(loss=1.0, confusion=confusion, worst=(mistake,), unreadable={}),
        many,
        "data",
    )
    assert '<table class="matrix">' not in text
    assert "<tr><td>class 3</td><td>class 4</td><td>7</td>" in text


def test_labels_and_settings_are_escaped(tmp_path: Path, images: LabelledImages[ImageFile]) -> None:
    odd = LabelledImages(
        classes=("<script>alert(1)</script>", "b", "c"),
        files=images.files,
        labels=images.labels,
    )
    text = page(tmp_path, MADE, odd, '"><img src=x>')
    assert "<script>" not in text
    assert "<img src=x>" not in text
