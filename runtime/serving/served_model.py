"""One model in service: verified before it answers, replaced while it serves, never half-alive."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from resdeploy.bundle.bundle import Bundle, open_bundle
from resdeploy.bundle.manifest import MANIFEST, Precision
from resdeploy.errors import BackendError, BundleError, ResdeployError
from resdeploy.progress import Progress, silent
from resdeploy.runtime.serving.batching.batcher import Batcher, BatcherLimits
from resdeploy.runtime.serving.batching.instance import BatchRecord, Instance
from resdeploy.runtime.serving.batching.queue import RECOVERY_SECONDS
from resdeploy.runtime.serving.config import ServeConfig
from resdeploy.runtime.serving.engine_instances import EngineFactory, EngineInstance
from resdeploy.runtime.serving.request_errors import Unavailable
from resdeploy.storage import sha256

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedBundle:
    """A bundle as it was when it was loaded, and the queue before its engines."""

    bundle: Bundle
    digest: str
    """Of its manifest, and so of all its files."""
    labels: tuple[str, ...]
    batcher: Batcher
    open_backend: EngineFactory

    @property
    def image_size(self) -> int:
        """In pixels."""
        return self.bundle.manifest.preprocessing.image_size

    def precision(self, artifact: str) -> Precision:
        """The arithmetic of one of its graphs."""
        return self.bundle.artifact(artifact).precision


class _Opened(NamedTuple):
    bundle: Bundle
    labels: tuple[str, ...]
    open_backend: EngineFactory
    instances: list[EngineInstance]


class ServedModel:
    """What a name stands for on a server."""

    def __init__(
        self,
        name: str,
        path: Path,
        config: ServeConfig,
        *,
        observe: Callable[[BatchRecord], None] = lambda record: None,
        progress: Progress = silent,
    ) -> None:
        """Load nothing yet; `observe` is told of every batch."""
        self.name = name
        self._path = path
        self._config = config
        self._observe = observe
        self._progress = progress
        self._current: LoadedBundle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def ready(self) -> bool:
        """Whether a verified engine serves."""
        return self._current is not None and bool(self._current.batcher.instances)

    @property
    def serving(self) -> Instance | None:
        """One of the instances that answer; None while none does."""
        instances = self._current.batcher.instances if self._current else ()
        return instances[0] if instances else None

    @property
    def depth(self) -> int:
        """Images in the queue."""
        return self._current.batcher.depth if self._current else 0

    def generation(self) -> LoadedBundle:
        """What serves now: take it and a place in its queue in one go.

        Raises:
            Unavailable: it is not loaded yet.
        """
        if self._current is None:
            raise Unavailable("the model is not ready", RECOVERY_SECONDS)
        return self._current

    async def load(self) -> bool:
        """Put the bundle as it is now into service; False where that is what serves already.

        The bundle that serves goes on until the new one has been verified, and then until its last
        request is answered.

        Raises:
            BackendError: nothing that was asked for can run here, or gives PyTorch's answers.
            BundleError: the bundle is missing or damaged; what serves goes on.
        """
        digest = await asyncio.to_thread(manifest_digest, self._path)
        before = self._current
        if before is not None and before.digest == digest and self.ready:
            return False
        opened = await asyncio.to_thread(self._open)
        generation = self._generation(opened, digest)
        for instance in opened.instances:
            generation.batcher.attach(instance)
        self._current = generation
        if before is not None:
            self._spawn(_retire(before))
        return True

    async def close(self) -> None:
        """Answer what is in the queue, then free the engines."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._current is not None:
            await _retire(self._current)

    def _open(self) -> _Opened:
        bundle = open_bundle(self._path)
        labels = bundle.labels()
        open_backend = EngineFactory(bundle, self._config, self._progress)
        instances = open_backend.next()
        if not instances:
            raise BackendError(
                f"no backend gives PyTorch's answers for {self._path} on this machine",
                "run resdeploy verify for the figures and resdeploy doctor for the cause",
            )
        return _Opened(bundle, labels, open_backend, instances)

    def _generation(self, opened: _Opened, digest: str) -> LoadedBundle:
        config = self._config
        batcher = Batcher(
            BatcherLimits(
                max_batch=config.max_batch,
                max_delay=config.max_delay_ms / 1000,
                max_wait=config.max_wait_ms / 1000,
                queue=config.queue,
            ),
            on_failure=lambda instance, error: self._failed(generation, instance, error),
            observe=self._observe,
        )
        generation = LoadedBundle(
            bundle=opened.bundle,
            digest=digest,
            labels=opened.labels,
            batcher=batcher,
            open_backend=opened.open_backend,
        )
        return generation

    def _failed(self, generation: LoadedBundle, instance: Instance, error: Exception) -> None:
        logger.error(
            "%s: %s failed with %s: %s", self.name, instance.backend, instance.artifact, error
        )
        others = generation.batcher.instances
        for other in others:
            generation.batcher.detach(other)
        self._spawn(self._recover(generation, [instance, *others]))

    async def _recover(self, generation: LoadedBundle, failed: Sequence[Instance]) -> None:
        """Let the next candidate serve; when all have failed, try them all again and again."""
        await _close(failed)
        while generation is self._current and not generation.batcher.instances:
            instances = await self._next(generation)
            if generation is not self._current:  # a new bundle serves meanwhile
                await _close(instances)
                break
            for instance in instances:
                generation.batcher.attach(instance)
            if not instances:
                logger.error("%s: no verified backend is left", self.name)
                generation.batcher.give_up("the model failed")
                await asyncio.sleep(RECOVERY_SECONDS)
        if not generation.batcher.instances:
            generation.batcher.give_up("the model was replaced")

    async def _next(self, generation: LoadedBundle) -> list[EngineInstance]:
        try:
            return await asyncio.to_thread(generation.open_backend.next)
        except ResdeployError as error:
            logger.warning("%s: %s", self.name, error)
            return []

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def manifest_digest(path: Path) -> str:
    """What changes with any file of a bundle.

    Raises:
        BundleError: there is no bundle.
    """
    try:
        return sha256((path / MANIFEST).read_bytes())
    except OSError as error:
        raise BundleError(
            f"{path} is not a bundle: its {MANIFEST} cannot be read",
            "make one with resdeploy export",
        ) from error


async def _retire(generation: LoadedBundle) -> None:
    """Free a generation's engines once its last request is answered."""
    await generation.batcher.empty()
    instances = generation.batcher.instances
    for instance in instances:
        generation.batcher.detach(instance)
    await _close(instances)


async def _close(instances: Iterable[Instance]) -> None:
    for instance in instances:
        try:
            await instance.close()
        except BackendError as error:  # it is of no use any more, and has said so before
            logger.debug("%s: %s", instance.backend, error)
