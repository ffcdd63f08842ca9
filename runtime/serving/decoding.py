"""Pictures become pixels in a pool of threads: Pillow's decoders release the GIL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from resdeploy.errors import ImageError
from resdeploy.images.preprocessing import Preprocessing, UInt8Array, load_image
from resdeploy.runtime.serving.request_errors import DeadlineExceeded, QueueFull, RequestError

SMOOTHING = 0.1


class Decoder:
    """Decodes like every other stage, with as many threads as there are cores."""

    def __init__(self, threads: int, *, max_pixels: int, max_wait: float) -> None:
        """Start without threads; they come with the work.

        Args:
            threads: How many pictures are decoded at a time.
            max_pixels: Larger pictures are refused.
            max_wait: Seconds of work that may wait.
        """
        self._threads = threads
        self._max_pixels = max_pixels
        self._max_wait = max_wait
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        Image.init()  # loads Pillow's decoders, for which the first request need not wait
        self._pending = 0
        self._seconds = 0.0  # that a picture usually takes

    def check(self) -> None:
        """Whether a picture would be decoded soon.

        Raises:
            QueueFull: not now.
        """
        wait = self._pending * self._seconds / self._threads
        if self._pending > self._threads and wait > self._max_wait:
            raise QueueFull("too many pictures wait to be decoded", wait)

    async def decode(
        self, files: Sequence[bytes], preprocessing: Preprocessing, deadline: float
    ) -> UInt8Array:
        """Pixels, uint8 (N, H, W, 3), of N image files.

        Args:
            files: Their contents.
            preprocessing: The model's.
            deadline: Time of the event loop's clock after which none is begun.

        Raises:
            DeadlineExceeded: the deadline passed.
            RequestError: a file cannot be decoded; the message says which.
        """
        loop = asyncio.get_running_loop()
        self._pending += len(files)
        try:
            jobs = [
                loop.run_in_executor(self._pool, self._decode, data, preprocessing, deadline)
                for data in files
            ]
            try:
                done = await asyncio.gather(*jobs)
            finally:
                for job in jobs:
                    job.cancel()
        finally:
            self._pending -= len(files)
        pixels = []
        for number, (image, seconds) in enumerate(done, start=1):
            if isinstance(image, ImageError):
                which = f"file {number}: " if len(files) > 1 else ""
                raise RequestError(f"{which}{image}")
            self._seconds += SMOOTHING * (seconds - self._seconds)
            pixels.append(image)
        return np.stack(pixels)

    def close(self) -> None:
        """Let the threads end when they are done."""
        self._pool.shutdown(wait=False)

    def _decode(
        self, data: bytes, preprocessing: Preprocessing, deadline: float
    ) -> tuple[UInt8Array | ImageError, float]:
        start = time.monotonic()  # the clock of asyncio's event loops
        if start > deadline:
            raise DeadlineExceeded("the deadline passed before the picture was decoded")
        try:
            image = load_image(data, preprocessing, self._max_pixels)
        except ImageError as error:
            return error, 0.0
        return image, time.monotonic() - start
