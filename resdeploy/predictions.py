"""From logits to the names of the most likely classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from resdeploy.bundle.golden import Float32Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A class that a picture may show."""

    label: str
    index: int
    probability: float


def most_likely(logits: Float32Array, labels: Sequence[str], top: int) -> list[Prediction]:
    """The `top` most likely classes of logits (K,), the most likely first."""
    probabilities = softmax(logits)
    return [
        Prediction(label=labels[index], index=index, probability=float(probabilities[index]))
        for index in map(int, np.argsort(-probabilities, kind="stable")[:top])
    ]


def softmax(logits: Float32Array) -> np.ndarray:
    """Probabilities (K,) of logits (K,), in float64."""
    powers = np.exp(logits.astype(np.float64) - logits.max())
    return np.asarray(powers / powers.sum())
