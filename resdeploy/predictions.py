"""Predictions: the most likely classes of a picture and their probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from resdeploy.bundle.golden import Float32Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A class and its probability for one picture."""

    label: str
    index: int
    probability: float


def top_predictions(logits: Float32Array, labels: Sequence[str], top: int) -> list[Prediction]:
    """Return the `top` most likely classes from logits (K,), in order of probability."""
    probabilities = softmax(logits)
    return [
        Prediction(label=labels[index], index=index, probability=float(probabilities[index]))
        for index in map(int, np.argsort(-probabilities, kind="stable")[:top])
    ]


def softmax(logits: Float32Array) -> np.ndarray:
    """Return the probabilities of logits (..., K), in float64."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))
