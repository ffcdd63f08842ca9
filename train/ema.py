"""A moving average of the weights, which is often better than the last of them.

Source: Polyak and Juditsky 1992, "Acceleration of stochastic approximation by averaging"; as an
exponential average, Szegedy et al. 2015, arXiv:1512.00567, section 8.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from resdeploy.train.model.resnet import Classifier


class WeightAverage:
    """Follows a classifier: after every step, `decay` of itself and the rest of the new weights.

    Unlike `torch.optim.swa_utils.AveragedModel`, it takes no count of the steps to the GPU, which
    would have to be waited for.
    """

    def __init__(self, classifier: Classifier, decay: float) -> None:
        self.classifier = copy.deepcopy(classifier)
        """With the average as its weights; do not train it."""
        self._followed = classifier
        # Collected once: walking over the network takes longer than the average itself.
        self._mine, self._theirs = _numbers(self.classifier), _numbers(classifier)
        self._average: Any = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self._empty = True

    def update(self) -> None:
        """Take a step's weights and statistics in; the first ones are taken as they are."""
        if self._empty:
            self.restore(self._followed.network.state_dict())
        else:
            self._average(self._mine, self._theirs, None)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a network's state; the next step is averaged with it."""
        self.classifier.network.load_state_dict(dict(state))
        self._empty = False


def _numbers(classifier: Classifier) -> list[Tensor]:
    """All that changes and is no count."""
    return [
        tensor for tensor in classifier.network.state_dict().values() if tensor.is_floating_point()
    ]
