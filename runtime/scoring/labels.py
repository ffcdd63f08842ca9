"""True classes of rows, if the source has them, and the counts of right and wrong predictions."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from resdeploy.errors import DataError
from resdeploy.images.class_mapping import map_classes
from resdeploy.result_files.scoring import ScoringAccuracy
from resdeploy.runtime.scoring.sources import SourceSummary
from resdeploy.statistics import wilson_interval

logger = logging.getLogger(__name__)


def label_outputs(
    summary: SourceSummary, labels: Sequence[str], *, required: bool
) -> Mapping[str, int]:
    """Return the output of the network for each name of a true class; empty if there are none.

    Names of folders may be anything, so names that are no labels of the network are ignored with a
    log message, unless the user has named the column.

    Raises:
        DataError: They are `required`, and some are no labels of the network.
    """
    if not summary.labels:
        return {}
    names = sorted(summary.labels)
    try:
        return dict(zip(names, map_classes(names, labels, guess=False, owner="the bundle")))
    except DataError as error:
        if required:
            raise
        logger.info("accuracy is not computed, because the sources have no true classes: %s", error)
        return {}


def scoring_accuracy(confusion: Iterable[tuple[int, int, int]]) -> ScoringAccuracy | None:
    """Return the accuracy from counts by true and predicted class; None without any."""
    counts: dict[tuple[int, int], int] = {}
    for true, predicted, count in confusion:
        counts[true, predicted] = counts.get((true, predicted), 0) + count
    rows = sum(counts.values())
    if not rows:
        return None
    correct = sum(count for (true, predicted), count in counts.items() if true == predicted)
    return ScoringAccuracy(
        rows=rows, percent=100 * correct / rows, interval=wilson_interval(correct, rows),
        confusion=tuple((*pair, count) for pair, count in sorted(counts.items())),
    )  # fmt: skip
