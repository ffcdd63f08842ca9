"""True classes of rows, and the accuracy."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import numpy as np
import pytest

from resdeploy.errors import DataError
from resdeploy.runtime.scoring.labels import label_outputs, scoring_accuracy
from resdeploy.runtime.scoring.scorer import Scores
from resdeploy.runtime.scoring.sources import SourceSummary

LABELS = ("blue", "green", "red")


def outputs(names: Iterable[str], *, required: bool = False) -> dict[str, int]:
    return dict(label_outputs(SourceSummary(labels=set(names)), LABELS, required=required))


def test_names_and_numbers_of_classes() -> None:
    assert outputs(["red", "Blue"]) == {"red": 2, "Blue": 0}
    assert outputs(["2", "0"]) == {"2": 2, "0": 0}
    assert outputs([]) == {}


def test_names_of_folders_that_are_no_labels_are_ignored_and_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        assert outputs(["red", "holiday"]) == {}
    assert "accuracy is not computed" in caplog.text
    assert "holiday" in caplog.text


def test_a_column_that_the_user_names_must_have_labels() -> None:
    with pytest.raises(DataError, match="holiday"):
        outputs(["red", "holiday"], required=True)
    with pytest.raises(DataError):
        outputs(["3"], required=True)


def test_counts_are_those_of_classified_rows_with_a_true_class() -> None:
    scores = Scores(
        paths=tuple("abcdef"),
        labels=("red", None, "blue", "red", "red", "blue"),
        errors=(None, None, "broken", None, None, None),
        indices=np.array([[2, 1], [0, 1], [1, 2], [2, 0], [0, 2]], np.int32),
        probabilities=np.zeros((5, 2), np.float32), logits=None, engine="x",
    )  # fmt: skip
    assert scores.confusion({"red": 2, "blue": 0}) == ((0, 0, 1), (2, 1, 1), (2, 2, 2))
    assert scores.confusion({}) == ()


def test_the_accuracy_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    true, predicted = generator.integers(0, 3, (2, 400))
    matrix = metrics.confusion_matrix(true, predicted)
    # In two files, with counts of the same cells.
    cells = [(i, j, int(n)) for (i, j), n in np.ndenumerate(matrix - 1)]
    found = scoring_accuracy([*cells, *((i, j, 1) for i in range(3) for j in range(3))])
    assert found is not None
    assert found.rows == 400
    assert found.percent == pytest.approx(100 * metrics.accuracy_score(true, predicted))
    assert [count for *_, count in found.confusion] == matrix.ravel().tolist()


def test_the_interval_is_that_of_wilson() -> None:
    found = scoring_accuracy([(0, 0, 90), (0, 1, 10)])
    assert found is not None
    # Computed by hand: (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n), p = 0.9, n = 100.
    assert found.interval == pytest.approx((82.56, 94.48), abs=0.01)
    assert scoring_accuracy([]) is None
