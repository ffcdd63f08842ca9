"""Verified engines as instances of a batcher: each in a thread of its own, warmed up and timed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.golden import Float32Array
from resdeploy.errors import BackendError
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.machine.device import available_cores
from resdeploy.progress import Progress
from resdeploy.runtime.backends.base import Backend, OpenOptions
from resdeploy.runtime.backends.registry import Candidate
from resdeploy.runtime.serving.batching.service_times import ServiceTimes, measure
from resdeploy.runtime.serving.config import ServeConfig
from resdeploy.runtime.verification.open_verified import open_verified, verified_backends

logger = logging.getLogger(__name__)

# Each holds the model's weights once more.
MOST_INSTANCES = 4


class EngineInstance:
    """One backend and the one thread that runs it; see `instance.Instance`."""

    def __init__(
        self, candidate: Candidate, backend: Backend, images: UInt8Array, max_batch: int
    ) -> None:
        """Take over a backend, which nobody else may use; warm it up and time it.

        Args:
            candidate: What the backend runs.
            backend: The engine.
            images: What to time it with, shape (N, H, W, 3).
            max_batch: Of how many images batches may be.

        Raises:
            BackendError: the engine failed, and is closed.
        """
        self.backend, self.artifact = names(candidate)
        self._engine = backend
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"{self.backend}/{self.artifact}")
        try:
            # In the thread that will run it: engines prepare something for each.
            timing = self._thread.submit(measure, backend, images, max_batch)
            self.times: ServiceTimes = timing.result()
        except BackendError:
            backend.close()
            self._thread.shutdown(wait=False)
            raise

    async def run(self, parts: Sequence[UInt8Array]) -> Float32Array:
        """See `instance.Instance`.

        Raises:
            BackendError: the engine failed.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, run_parts, self._engine, parts)

    async def close(self) -> None:
        """Free the engine, once what it runs is done."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.close)
        self._thread.shutdown(wait=False)


def run_parts(backend: Backend, parts: Sequence[UInt8Array]) -> Float32Array:
    """Logits (N, K) of all images of all parts.

    Where the backend has captured graphs, the batch is filled up with black images to the next size
    that has one: the largest is at most twice as large, and starting kernels one by one costs more.

    Raises:
        BackendError: the engine failed, or gave what are no numbers.
    """
    count = sum(map(len, parts))
    size = min((size for size in captured(backend) if size >= count), default=count)
    if len(parts) == 1 and size == count:
        batch = np.ascontiguousarray(parts[0])
    else:
        batch = np.zeros((size, *parts[0].shape[1:]), np.uint8)
        np.concatenate(parts, out=batch[:count])
    logits = backend.run(batch)[:count]
    if not np.isfinite(logits).all():
        raise BackendError("the engine computes values that are no numbers", "see resdeploy verify")
    return logits


def captured(backend: Backend) -> frozenset[int]:
    """Sizes of batches that start fastest; none where a backend knows no difference."""
    return frozenset(getattr(backend, "captured", ()))


class EngineFactory:
    """Opens what can serve a bundle, one candidate after the other, the fastest first."""

    def __init__(self, bundle: Bundle, config: ServeConfig, progress: Progress) -> None:
        """Open nothing yet."""
        self._bundle = bundle
        self._config = config
        self._golden = bundle.golden()
        self._on_cpu, threads = share_cores(available_cores(), config.instances, config.threads)
        self._opening = OpenOptions(threads=threads, progress=progress)
        self._candidates = self._verified()

    def next(self) -> list[EngineInstance]:
        """Instances of the next candidate that verifies; none where all were tried.

        After that it begins again: what failed may have recovered. Takes seconds; minutes where an
        engine must be built.

        Raises:
            BackendError: nothing that was asked for can run here.
            BundleError: the bundle is damaged.
        """
        for candidate, backend in self._candidates:
            if instances := self._multiply(candidate, backend):
                return instances
        self._candidates = self._verified()
        return []

    def _verified(self) -> Iterator[tuple[Candidate, Backend]]:
        config = self._config
        return verified_backends(self._bundle, config.backend, config.precision, self._opening)

    def _multiply(self, candidate: Candidate, backend: Backend) -> list[EngineInstance]:
        """As many instances as are configured; fewer, or none, where memory is too short."""
        wanted = self._config.instances or (self._on_cpu if candidate.engine.on_cpu else 1)
        instances: list[EngineInstance] = []
        opened: Backend | None = backend
        while opened is not None:
            try:
                instances.append(
                    EngineInstance(candidate, opened, self._golden.images, self._config.max_batch)
                )
            except BackendError as error:
                logger.warning("%s cannot run %s: %s", *names(candidate), error)
                break
            if len(instances) == wanted:
                break
            opened = open_verified(self._bundle, candidate, self._golden, self._opening)
        return instances


def share_cores(cores: int, instances: int | None, threads: int | None) -> tuple[int, int]:
    """Instances on a CPU, and threads of each.

    One thread for each of many instances answers most requests a second, and bears neighbours
    best: threads of one inference wait for each other (benchmarks/serving/__main__.py).
    """
    if instances is None:
        instances = max(1, min(MOST_INSTANCES, cores // (threads or 1)))
    return instances, threads or max(1, cores // instances)


def names(candidate: Candidate) -> tuple[str, str]:
    """Of the engine and of the graph."""
    return candidate.engine.name, candidate.artifact.name
