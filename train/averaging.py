"""A moving average of the weights, which is often better than the last of them.

Source: Polyak and Juditsky 1992, "Acceleration of stochastic approximation by averaging"; as an
exponential average, Szegedy et al. 2015, arXiv:1512.00567, section 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor
from torch.optim import swa_utils

from resdeploy.train.model import Classifier


class WeightAverage:
    """Follows a classifier: after every step, `decay` of itself and the rest of the new weights."""

    def __init__(self, classifier: Classifier, decay: float) -> None:
        average: Any = swa_utils.get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self._model = swa_utils.AveragedModel(classifier, multi_avg_fn=average, use_buffers=True)

    @property
    def classifier(self) -> Classifier:
        """With the average as its weights; do not train it."""
        return cast("Classifier", self._model.module)

    def update(self, classifier: Classifier) -> None:
        """Take a step's weights in; the first ones are taken as they are."""
        self._model.update_parameters(classifier)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a network's state; the next step is averaged with it."""
        self.classifier.network.load_state_dict(dict(state))
        self._model.n_averaged.fill_(1)
