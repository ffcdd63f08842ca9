"""Decoding of pictures in a thread pool; Pillow's decoders release the GIL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from resdeploy.errors import ImageError
from resdeploy.images.loading import load_image
from resdeploy.images.preprocessing import Preprocessing, UInt8Array
from resdeploy.runtime.serving.request_errors import DeadlineExceeded, QueueFull, RequestError

# Weight of the newest picture in the moving mean of the decoding time.
SMOOTHING = 0.1


class Decoder:
    """A pool of threads that decodes pictures with the function that all stages use."""

    def __init__(self, threads: int, *, max_pixels: int, max_wait: float) -> None:
        """Create a pool; `max_wait` is the maximum expected wait for a thread in seconds."""
        self._threads = threads
        self._max_pixels = max_pixels
        self._max_wait = max_wait
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        Image.init()  # loads Pillow's decoders now instead of during the first request
        self._pending = 0
        self._seconds_per_picture = 0.0

    def check_capacity(self) -> None:
        """Raise an error if a picture would wait too long for a thread.

        Raises:
            QueueFull: The expected wait exceeds the limit.
        """
        wait = self._pending * self._seconds_per_picture / self._threads
        if self._pending > self._threads and wait > self._max_wait:
            raise QueueFull("too many pictures are waiting for decoding", wait)

    async def decode(
        self, files: Sequence[bytes], preprocessing: Preprocessing, deadline: float
    ) -> UInt8Array:
        """Return the pixels, uint8 (N, H, W, 3), of the contents of N image files.

        No decoding starts after `deadline`, a time of the event loop's clock.

        Raises:
            DeadlineExceeded: The deadline passed.
            RequestError: A file cannot be decoded.
        """
        loop = asyncio.get_running_loop()
        self._pending += len(files)
        try:
            jobs = [
                loop.run_in_executor(self._pool, self._decode, data, preprocessing, deadline)
                for data in files
            ]
            try:
                decoded = await asyncio.gather(*jobs)
            finally:
                for job in jobs:
                    job.cancel()
        finally:
            self._pending -= len(files)
        pixels = []
        for number, (image, seconds) in enumerate(decoded, start=1):
            if isinstance(image, ImageError):
                prefix = f"file {number}: " if len(files) > 1 else ""
                raise RequestError(f"{prefix}{image}")
            self._seconds_per_picture += SMOOTHING * (seconds - self._seconds_per_picture)
            pixels.append(image)
        return np.stack(pixels)

    def close(self) -> None:
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
