"""Inference of any number of pictures, which are read and decoded in threads beside it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from resdeploy.bundle.golden import Float32Array
from resdeploy.errors import ResdeployError
from resdeploy.images.decode import DecodingLimits
from resdeploy.images.loading import load_image
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.images.skipped import has_single_colour
from resdeploy.machine.device import available_cores
from resdeploy.runtime.model import Model

MAX_DECODERS = 8  # threads; each may hold a file of 64 MiB
ORDINARY_MEMORY = 128 << 20  # bytes, of 32 megapixels; pictures that need more come one by one
BATCHES_AHEAD = 2  # that are decoded while one is computed; more would only need memory

ReadPicture = Callable[[], "Path | bytes"]
"""Function that returns a path or the content of a file, or raises a ResdeployError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureResult:
    """The logits of one picture, or the reason why there are none."""

    logits: Float32Array | None = None
    """Shape (K,)."""
    error: str | None = None
    """Reason why the picture cannot be read or decoded, with the remedy."""
    single_colour: bool = False
    """True if all pixels are equal, so that the logits mean nothing."""


def infer_pictures(
    model: Model,
    pictures: Iterable[ReadPicture],
    *,
    readers: int | None = None,
    batch: int | None = None,
) -> Iterator[PictureResult]:
    """Yield the result of each picture, in order. One that cannot be decoded does not stop others.

    Args:
        model: The model.
        pictures: Functions, which are called in threads; the iterable is advanced by the caller.
        readers: Number of the threads; None for one per core.
        batch: Number of pictures in an inference; None for `model.batch`.

    Raises:
        BackendError: The engine failed.
    """
    remaining, large, size = iter(pictures), threading.Lock(), batch or model.batch
    waiting: deque[Future[UInt8Array]] = deque()

    def decode(read: ReadPicture) -> UInt8Array:
        with ExitStack() as held:

            def admit(pixels: int, memory: int) -> None:
                if memory > ORDINARY_MEMORY:
                    held.enter_context(large)

            return load_image(read(), model.preprocessing, DecodingLimits(admit=admit))

    pool = ThreadPoolExecutor(readers or min(available_cores(), MAX_DECODERS), "decoder")
    try:
        while True:
            wanted = (1 + BATCHES_AHEAD) * size - len(waiting)
            waiting.extend(pool.submit(decode, read) for read in islice(remaining, wanted))
            if not waiting:
                return
            decoded = [_decoded(waiting.popleft()) for _ in range(min(size, len(waiting)))]
            pixels = [image for image in decoded if isinstance(image, np.ndarray)]
            logits = iter(model.run(np.stack(pixels)) if pixels else ())
            for image in decoded:
                if isinstance(image, str):
                    yield PictureResult(error=image)
                else:
                    single = has_single_colour(image)
                    yield PictureResult(logits=next(logits), single_colour=single)
    finally:
        pool.shutdown(cancel_futures=True)


def _decoded(future: Future[UInt8Array]) -> UInt8Array | str:
    try:
        return future.result()
    except ResdeployError as error:
        return "; ".join(filter(None, (str(error), error.hint)))
