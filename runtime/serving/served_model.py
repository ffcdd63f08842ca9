"""A model that is verified before it serves and can be reloaded without losing requests."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from resdeploy.bundle.bundle import REPORT, Bundle
from resdeploy.bundle.file_check import check_files
from resdeploy.bundle.manifest import ExportWarning, Precision
from resdeploy.bundle.quality import relevant_warnings
from resdeploy.bundle.signature import open_signed
from resdeploy.errors import BackendError, BundleError, ResdeployError
from resdeploy.images.preprocessing import ImageSize
from resdeploy.progress import Progress, silent
from resdeploy.runtime.serving.batching.batcher import Batcher
from resdeploy.runtime.serving.batching.interface import BatchRecord, Instance
from resdeploy.runtime.serving.batching.queue import RECOVERY_SECONDS
from resdeploy.runtime.serving.config import ServeConfig
from resdeploy.runtime.serving.engine_instances import EngineFactory, EngineInstance
from resdeploy.runtime.serving.loading_process import LoadingResult, check_loading
from resdeploy.runtime.serving.request_errors import Unavailable

logger = logging.getLogger(__name__)

# Building an engine for a GPU takes minutes.
LOAD_SECONDS = 900.0
Result = TypeVar("Result")
Opened = tuple[tuple[str, ...], EngineFactory, list[EngineInstance]]


class LoadTimeoutError(BackendError):
    """An engine was not loaded in time; its thread may never end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedBundle:
    """A loaded bundle with its batcher and engines; later changes of its files have no effect."""

    bundle: Bundle
    labels: tuple[str, ...]
    batcher: Batcher
    engines: EngineFactory

    @property
    def image_size(self) -> ImageSize:
        """Size of the model's input in pixels."""
        return self.bundle.manifest.preprocessing.image_size

    def precision(self, artifact: str) -> Precision:
        """Return the precision of one of the bundle's graphs."""
        return self.bundle.artifact(artifact).precision


class ServedModel:
    """A model: its name, the bundle that currently serves it, and the recovery after failures."""

    def __init__(
        self,
        name: str,
        path: Path,
        config: ServeConfig,
        observe: Callable[[BatchRecord], None] = lambda record: None,
        progress: Progress = silent,
    ) -> None:
        """Prepare a model without loading it; `observe` is called after every batch."""
        self.name = name
        self._path = path
        self._config = config
        self._observe = observe
        self._progress = progress
        self._current: LoadedBundle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def ready(self) -> bool:
        """True if a verified engine serves the model."""
        return self.active_instance is not None

    @property
    def active_instance(self) -> Instance | None:
        """One of the instances that serve the model; None if there is none."""
        instances = self._current.batcher.instances if self._current else ()
        return instances[0] if instances else None

    @property
    def warnings(self) -> tuple[ExportWarning, ...]:
        """Doubts of the export about the graph that serves the model."""
        instance = self.active_instance
        if self._current is None or instance is None:
            return ()
        return relevant_warnings(self._current.bundle.manifest, [instance.artifact])

    @property
    def page(self) -> Path:
        """The report of the bundle, which explains the warnings."""
        return self._path / REPORT

    @property
    def depth(self) -> int:
        """Number of queued images."""
        return self._current.batcher.depth if self._current else 0

    def loaded_bundle(self) -> LoadedBundle:
        """Return the current bundle.

        Admit the request before the next `await`: a replaced bundle closes when all are answered.

        Raises:
            Unavailable: The model is not loaded yet.
        """
        if self._current is None:
            raise Unavailable(
                "the model is not ready: it is being loaded; try again in a few seconds",
                RECOVERY_SECONDS,
            )
        return self._current

    async def load(self) -> bool:
        """Load the bundle and let it serve; return False if it is unchanged.

        The previous bundle serves until `check_loading` passed the new one, then ends its requests.

        Raises:
            BackendError: No requested backend runs here and reproduces the golden logits.
            BundleError: The bundle is missing or damaged; the previous bundle keeps serving.
        """
        previous, checked = self._current, LoadingResult()
        if previous is not None:  # without one there is nothing to protect
            current = previous.bundle.digest if self.ready else None
            checked = await check_loading(self._path, self._config, current)
            if checked.opened is None:
                return False
        bundle = await in_own_thread(open_signed, self._path, self._config.signer)
        if checked.digest not in ("", bundle.digest):
            reason = f"{self._path} was changed while it was loaded"
            raise BundleError(reason, "reload it when it is complete")
        opening = asyncio.ensure_future(
            in_own_thread(self._open, bundle, checked, discard=self._close_opened)
        )
        try:  # the files that the engine does not need are checked meanwhile
            for warning in await in_own_thread(check_files, bundle):
                logger.warning("%s: %s", self.name, warning.message)
            labels, engines, instances = await opening
        except BaseException:
            opening.add_done_callback(self._discard)
            opening.cancel()
            raise
        batcher = Batcher(
            self._config,
            on_failure=lambda instance, error: self._handle_failure(loaded, instance, error),
            observe=self._observe,
        )
        loaded = LoadedBundle(bundle=bundle, labels=labels, batcher=batcher, engines=engines)
        for instance in instances:
            batcher.attach(instance)
        self._current = loaded
        if previous is not None:
            self._spawn(_close_when_answered(previous))
        return True

    async def close(self) -> None:
        """Answer all queued requests and free the engines."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._current is not None:
            await _close_when_answered(self._current)

    def _open(self, bundle: Bundle, checked: LoadingResult) -> Opened:
        labels = bundle.labels()
        engines = EngineFactory(bundle, self._config, self._progress)
        instances = engines.open_only(*checked.opened) if checked.opened else engines.open_next()
        if not instances:
            raise BackendError(
                f"no backend reproduces the golden logits of {self._path} on this machine",
                "run resdeploy verify for the differences and resdeploy doctor for the cause",
            )
        return labels, engines, instances

    def _discard(self, opening: asyncio.Future[Opened]) -> None:
        """Close the engines that nobody waits for any more."""
        if not opening.cancelled() and opening.exception() is None:
            self._close_opened(opening.result())

    def _close_opened(self, opened: Opened) -> None:
        self._spawn(_close(opened[-1]))

    def _handle_failure(self, loaded: LoadedBundle, instance: Instance, error: Exception) -> None:
        logger.error(
            "%s: %s failed with %s: %s", self.name, instance.backend, instance.artifact, error
        )
        others = loaded.batcher.instances
        for other in others:
            loaded.batcher.detach(other)
        self._spawn(self._recover(loaded, [instance, *others]))

    async def _recover(self, loaded: LoadedBundle, failed: Sequence[Instance]) -> None:
        """Attach the next candidate; after the last one, retry all of them periodically."""
        await _close(failed)
        while loaded is self._current and not loaded.batcher.instances:
            instances: list[EngineInstance] = []
            try:
                instances = await in_own_thread(
                    loaded.engines.open_next, discard=lambda late: self._spawn(_close(late))
                )
            except LoadTimeoutError as error:  # its engine may hang for ever
                logger.warning("%s: %s; only a reload can help", self.name, error)
                break
            except ResdeployError as error:
                logger.warning("%s: %s", self.name, error)
            if loaded is not self._current:  # a reload has replaced the bundle
                await _close(instances)
                break
            for instance in instances:
                loaded.batcher.attach(instance)
            if not instances:
                logger.error("%s: no verified backend is left", self.name)
                loaded.batcher.fail_queued("the model failed")
                await asyncio.sleep(RECOVERY_SECONDS)
        if not loaded.batcher.instances:
            loaded.batcher.fail_queued("the model was replaced")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def in_own_thread(
    function: Callable[..., Result],
    *arguments: Any,
    discard: Callable[[Result], object] = lambda late: None,
) -> Result:
    """Return the result of a function that may never end, for example on a hung network share.

    Neither the exit of the process nor the threads of the event loop wait for its thread. `discard`
    gets a result that comes too late.

    Raises:
        LoadTimeoutError: The function takes longer than `LOAD_SECONDS`.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def deliver(result: Result) -> None:
        discard(result) if future.done() else future.set_result(result)

    def fail(error: Exception) -> None:
        if not future.done():
            future.set_exception(error)

    def run() -> None:
        try:
            call = partial(deliver, function(*arguments))
        except Exception as error:
            call = partial(fail, error)
        with suppress(RuntimeError):  # the event loop has ended
            loop.call_soon_threadsafe(call)

    threading.Thread(target=run, daemon=True, name="load").start()
    try:
        return await asyncio.wait_for(future, LOAD_SECONDS)
    except asyncio.TimeoutError:
        if not future.cancelled():
            raise  # the function's own
        reason = f"the bundle was not loaded within {LOAD_SECONDS:g} s"
        raise LoadTimeoutError(reason, "find out with resdeploy verify what takes long") from None


async def _close_when_answered(loaded: LoadedBundle) -> None:
    await loaded.batcher.wait_until_answered()
    instances = loaded.batcher.instances
    for instance in instances:
        loaded.batcher.detach(instance)
    await _close(instances)


async def _close(instances: Iterable[Instance]) -> None:
    for instance in instances:
        try:
            await instance.close()
        except BackendError as error:  # the failure that led here has been logged
            logger.debug("%s: %s", instance.backend, error)
