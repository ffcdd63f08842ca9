"""The interface between the batcher and the engines, and the results of a batch.

N is the number of images of a batch or request, K the number of classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from resdeploy.bundle.golden import Float32Array
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.runtime.serving.batching.service_times import ServiceTimes


class Instance(Protocol):
    """An engine that runs one batch at a time."""

    backend: str
    artifact: str
    times: ServiceTimes

    async def run(self, parts: Sequence[UInt8Array]) -> Float32Array:
        """Return the logits (N, K) of all images of all parts, in order.

        A part for which a sound engine has no finite logits has NaN.
        """
        ...

    async def close(self) -> None:
        """Wait for the running batch and free the engine."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The logits of one request, with the engine and the times that produced them."""

    logits: Float32Array
    backend: str
    artifact: str
    batch: int
    """Number of images in the batch; of the last batch if the request needed several."""
    queue_seconds: float
    inference_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRecord:
    """Measurements of one batch, for the metrics."""

    images: int
    queue_seconds: tuple[float, ...]
    """Queue time of each request of the batch in seconds."""
    inference_seconds: float


def merge_answers(answers: Sequence[Answer]) -> Answer:
    """Return one answer for a request that ran in several batches."""
    return Answer(
        logits=np.concatenate([answer.logits for answer in answers]),
        backend=answers[-1].backend,
        artifact=answers[-1].artifact,
        batch=answers[-1].batch,
        queue_seconds=answers[0].queue_seconds,
        inference_seconds=sum(answer.inference_seconds for answer in answers),
    )
