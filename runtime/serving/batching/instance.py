"""The seam between the queue and the engines: what runs a batch, and what becomes of it.

N images of a batch or a request, K classes.
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
        """Logits (N, K) of all images of all parts, in order."""
        ...

    async def close(self) -> None:
        """Free the engine, once what it runs is done."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What became of a request's images."""

    logits: Float32Array
    backend: str
    artifact: str
    batch: int
    """Images that ran together; of the last batch where the request had several."""
    queue_seconds: float
    inference_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRecord:
    """For the metrics."""

    images: int
    queue_seconds: tuple[float, ...]
    """Of each of its requests."""
    inference_seconds: float


def join(answers: Sequence[Answer]) -> Answer:
    """The answer for a request that ran in several batches."""
    return Answer(
        logits=np.concatenate([answer.logits for answer in answers]),
        backend=answers[-1].backend,
        artifact=answers[-1].artifact,
        batch=answers[-1].batch,
        queue_seconds=answers[0].queue_seconds,
        inference_seconds=sum(answer.inference_seconds for answer in answers),
    )
