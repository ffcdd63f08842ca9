"""An exponential moving average (EMA) of the weights, often more accurate than the last weights.

Source: Polyak and Juditsky 1992, "Acceleration of stochastic approximation by averaging"; as an
exponential average, Szegedy et al. 2015, arXiv:1512.00567, section 8.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from resdeploy.train.model.resnet import Classifier


class WeightAverage:
    """The moving average of a classifier's weights: `decay * average + (1 - decay) * weights`.

    Unlike `torch.optim.swa_utils.AveragedModel`, it keeps no step counter on the GPU, because
    reading one would wait for the GPU.
    """

    def __init__(self, classifier: Classifier, decay: float) -> None:
        self.classifier = copy.deepcopy(classifier)
        """Copy with the averaged weights; do not train it."""
        self._source = classifier
        # Collected once, because collecting takes longer than averaging.
        self._averaged, self._current = _float_tensors(self.classifier), _float_tensors(classifier)
        self._average: Any = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self._empty = True

    def update(self) -> None:
        """Add the current weights and batch-norm statistics; the first call copies them."""
        if self._empty:
            self.restore(self._source.network.state_dict())
        else:
            self._average(self._averaged, self._current, None)

    def restore(self, state: dict[str, Tensor]) -> None:
        """Set the average to `state`."""
        self.classifier.network.load_state_dict(state)
        self._empty = False


def _float_tensors(classifier: Classifier) -> list[Tensor]:
    """Return weights and batch-norm statistics, without the integer step counters."""
    return [
        tensor for tensor in classifier.network.state_dict().values() if tensor.is_floating_point()
    ]
