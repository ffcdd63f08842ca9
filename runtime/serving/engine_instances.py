"""Verified engines as instances of a batcher: each has its own thread and is warmed up."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.golden import Float32Array, Golden
from resdeploy.errors import BackendError, one_line_reason
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.machine.device import available_cores
from resdeploy.progress import Progress
from resdeploy.runtime.backends.base import Backend, OpenOptions
from resdeploy.runtime.backends.registry import Candidate, candidates
from resdeploy.runtime.serving.batching.service_times import ServiceTimes, measure_service_times
from resdeploy.runtime.serving.config import ServeConfig
from resdeploy.runtime.verification.open_verified import (
    check_at_load,
    open_verified,
    verified_backends,
)
from resdeploy.tables import plural

logger = logging.getLogger(__name__)

# Each instance holds its own copy of the weights.
MAX_CPU_INSTANCES = 4
# An engine that computed the golden logits this recently is not suspected again, so images without
# an answer cost the engine at most one golden check in this time.
TRUST_SECONDS = 1.0


class EngineInstance:
    """A backend and the thread that runs it, as a `batching.interface.Instance`."""

    def __init__(
        self, candidate: Candidate, backend: Backend, golden: Golden, max_batch: int,
        known: ServiceTimes | None,
    ) -> None:  # fmt: skip
        """Take ownership of a backend, warm it up and, unless it is `known`, time it.

        Raises:
            BackendError: The backend failed; it has been closed.
        """
        self.backend, self.artifact = candidate.engine.name, candidate.artifact.name
        self._engine = backend
        self._artifact, self._golden = candidate.artifact, golden
        self._trusted_until = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"{self.backend}/{self.artifact}")
        try:
            # Engines prepare state per thread, so the timing uses the thread that will serve.
            warm_up = 1 if candidate.engine.on_cpu else 2
            timing = self._thread.submit(
                measure_service_times, backend, golden.images, max_batch, known, warm_up
            )
            self.times: ServiceTimes = timing.result()
        except BackendError:
            backend.close()
            self._thread.shutdown(wait=False)
            raise

    async def run(self, parts: Sequence[UInt8Array]) -> Float32Array:
        """Return the logits (N, K) of all images of all parts, in order; NaN where there are none.

        Raises:
            BackendError: The engine failed, and does not compute the golden logits any more.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._run, parts)

    def _run(self, parts: Sequence[UInt8Array]) -> Float32Array:
        return run_parts(self._engine, parts, self._golden.logits.shape[1], self._check)

    def _check(self) -> None:
        """Raise a BackendError if the engine does not compute the golden logits any more."""
        if time.monotonic() < self._trusted_until:
            return
        check = check_at_load(self._engine, self._artifact, self._golden)
        if not check.passed:
            raise BackendError(
                f"it does not compute the golden logits any more ({check.figures})",
                "run resdeploy verify",
            )
        self._trusted_until = time.monotonic() + TRUST_SECONDS

    async def close(self) -> None:
        """Wait for the running batch and free the engine."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.close)
        self._thread.shutdown(wait=False)


def run_batch(backend: Backend, parts: Sequence[UInt8Array]) -> Float32Array:
    """Return the logits (N, K) of all images of all parts.

    If the backend has CUDA graphs, the batch is padded with black images to the next size that has
    one. That size is at most twice as large, and launching kernels one by one costs more.

    Raises:
        BackendError: The engine failed.
    """
    count = sum(map(len, parts))
    captured = getattr(backend, "captured", ())  # batch sizes with a CUDA graph
    size = min((size for size in captured if size >= count), default=count)
    if len(parts) == 1 and size == count:
        batch = np.ascontiguousarray(parts[0])
    else:
        batch = np.zeros((size, *parts[0].shape[1:]), np.uint8)
        np.concatenate(parts, out=batch[:count])
    return backend.run(batch)[:count]


def run_parts(
    backend: Backend, parts: Sequence[UInt8Array], classes: int, check: Callable[[], None]
) -> Float32Array:
    """Return the logits (N, K) of all parts, with NaN for a part that has no finite logits.

    One request must not cost others their answers. So `check` judges the engine by its golden
    images, and if they pass, the parts without finite logits are run again, one by one.

    Raises:
        BackendError: The engine failed, and `check` raised this error.
    """
    try:
        logits = run_batch(backend, parts)
    except Exception as error:  # engines raise exceptions of many types
        logger.warning("%s failed with a batch: %s", backend.name, one_line_reason(error))
        logits = np.full((sum(map(len, parts)), classes), np.nan, np.float32)
    if np.isfinite(logits).all():
        return logits
    check()
    if len(parts) == 1:
        return logits
    ends = np.cumsum([len(part) for part in parts])[:-1]
    rows = [
        own if np.isfinite(own).all() else run_parts(backend, [part], classes, check)
        for part, own in zip(parts, np.split(logits, ends))
    ]
    return np.concatenate(rows)


class EngineFactory:
    """A source of verified backends for a bundle, in order of their speed."""

    def __init__(self, bundle: Bundle, config: ServeConfig, progress: Progress) -> None:
        self._bundle = bundle
        self._config = config
        self._golden = bundle.golden()
        cores = available_cores()
        self._cpu_instances, threads = divided = divide_cores(
            cores, config.instances, config.threads
        )
        self._reduced = ""
        if (config.instances or divided[0], config.threads or threads) != divided:
            self._reduced = (
                f"--instances and --threads exceed the {cores} cores; the server runs "
                f"{plural(divided[0], 'instance')} with {plural(threads, 'thread')} each"
            )
        self._options = OpenOptions(
            threads=threads, exact=config.exact, measure=True, progress=progress
        )
        self._candidates = self._verified_candidates()

    def open_next(self) -> list[EngineInstance]:
        """Open the instances of the next candidate that verifies.

        This takes seconds, or minutes if an engine must be built. If no candidate is left, the list
        is empty, and the next call tries all candidates again.

        Raises:
            BackendError: No requested backend can run on this machine.
            BundleError: The bundle is damaged.
        """
        for candidate, backend in self._candidates:
            if instances := self._open_instances(candidate, backend):
                return instances
        self._candidates = self._verified_candidates()
        return []

    def open_only(self, backend: str, artifact: str, count: int) -> list[EngineInstance]:
        """Open up to `count` instances of one engine and graph; none if it does not verify."""
        for candidate in candidates(self._bundle, backend):
            if candidate.artifact.name == artifact:
                opened = open_verified(self._bundle, candidate, self._golden, self._options)
                return self._open_instances(candidate, opened, count) if opened else []
        return []

    def _verified_candidates(self) -> Iterator[tuple[Candidate, Backend]]:
        backend, precision = self._config.backend, self._config.precision
        return verified_backends(self._bundle, backend, precision, self._options)

    def _open_instances(
        self, candidate: Candidate, backend: Backend, count: int | None = None
    ) -> list[EngineInstance]:
        """Open `count` or the configured number of instances, or fewer if one cannot be opened."""
        if candidate.engine.on_cpu and self._reduced:
            logger.warning("%s", self._reduced)
        usual = self._cpu_instances if candidate.engine.on_cpu else self._config.instances or 1
        count = count or usual
        instances: list[EngineInstance] = []
        opened: Backend | None = backend
        while opened is not None:
            try:
                limit, known = self._config.max_batch, instances[0].times if instances else None
                instances.append(EngineInstance(candidate, opened, self._golden, limit, known))
            except BackendError as error:
                engine, artifact = candidate.engine.name, candidate.artifact.name
                logger.warning("%s cannot run %s: %s", engine, artifact, error)
                break
            if len(instances) == count:
                break
            opened = open_verified(self._bundle, candidate, self._golden, self._options)
        return instances


def divide_cores(cores: int, instances: int | None, threads: int | None) -> tuple[int, int]:
    """Return the number of CPU instances and the threads of each, together at most the cores.

    Many instances with one thread each have the highest throughput and suffer least from other
    load, because the threads of one inference wait for each other (benchmarks/serving/__main__.py).
    """
    threads = min(threads, cores) if threads else None
    instances = min(instances or MAX_CPU_INSTANCES, cores // (threads or 1))
    return instances, threads or cores // instances
