"""Decoding of pictures in processes, which are killed when a deadline passes or a client leaves."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import numpy as np

from resdeploy.images.preprocessing import Preprocessing, UInt8Array
from resdeploy.runtime.serving import decoder_process
from resdeploy.runtime.serving.decoder_process import LARGE, MAX_TEXT_BYTES, PIXELS, REPLY, REQUEST
from resdeploy.runtime.serving.request_errors import DeadlineExceeded, QueueFull, RequestError

# Weight of the newest picture in the moving mean of the decoding time.
SMOOTHING = 0.1
# A picture that takes longer gives its place to others and goes on with the lowest priority. An
# ordinary photograph takes 2 to 200 ms.
SLOW_SECONDS = 0.25
# Slow pictures at a time, for each place; another one is refused.
SLOW_PER_PLACE = 1
# Large pictures in progress, for each place. Photographs of phones are large, so many may wait, but
# their requests hold some of the 256 places in the queue of the model.
LARGE_PER_PLACE = 32
# Memory of one picture while it is decoded: 50 million pixels of an ordinary JPEG file take 200 MB.
MAX_PICTURE_BYTES = 256 << 20
# Room for a picture or its pixels in each direction; the kernel may allow less.
SOCKET_BYTES = 1 << 20
NICEST = 19


class _LargePicture(Exception):
    pass


class _Child:
    """One decoder process and its socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._handle: int | None = None
        self._pid = 0
        self.aside = self.refused = False

    async def until_ready(self) -> None:
        """Wait for the start of the process.

        Raises:
            OSError, EOFError: The process has ended.
        """
        if self._handle is None:
            self._pid = struct.unpack("<I", await self._receive(4))[0]
            self._handle = os.pidfd_open(self._pid)

    async def decode(
        self, settings: bytes, data: bytes | memoryview, pixels: memoryview
    ) -> str | None:
        """Write the pixels of a picture; return why the decoder refuses it, None if it does not.

        Raises:
            OSError, EOFError: The process has ended.
            _LargePicture: The picture is large, and this decoder is not for large ones.
        """
        loop = asyncio.get_running_loop()
        head = REQUEST.pack(self.aside, len(settings), len(data)) + settings
        await loop.sock_sendall(self._socket, head + data if len(data) < SOCKET_BYTES else head)
        if len(data) >= SOCKET_BYTES:
            await loop.sock_sendall(self._socket, data)
        kind, length = REPLY.unpack(await self._receive(REPLY.size))
        if kind == PIXELS and length == pixels.nbytes:
            await self._receive_into(pixels)
            return None
        if kind == LARGE:
            raise _LargePicture
        if kind == PIXELS or length > MAX_TEXT_BYTES:
            raise EOFError("the decoder does not follow the protocol")
        return (await self._receive(length)).decode(errors="replace")

    def step_aside(self) -> None:
        self.aside = True
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, self._pid, NICEST)

    def end(self) -> None:
        """Kill the process, whatever it does, and close its socket."""
        if self._handle is not None:
            with suppress(OSError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)
            os.close(self._handle)
            self._handle = None
        self._socket.close()

    def kill(self) -> None:
        """Kill the process; its reader sees the end of the socket."""
        self.refused = True
        if self._handle is not None:
            signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    async def _receive(self, length: int) -> bytes:
        data = bytearray(length)
        await self._receive_into(memoryview(data))
        return bytes(data)

    async def _receive_into(self, view: memoryview) -> None:
        loop = asyncio.get_running_loop()
        while view:
            count = await loop.sock_recv_into(self._socket, view)
            if not count:
                raise EOFError("the decoder has ended")
            view = view[count:]


class Decoder:
    """A pool of processes that decode pictures with the function that all stages use."""

    def __init__(self, places: int, *, max_pixels: int, max_wait: float) -> None:
        """Start the processes; `max_wait` is the maximum expected wait for one in seconds."""
        self._places = places
        self._max_pixels = max_pixels
        self._max_wait = max_wait
        self._pending = 0
        self._slow = 0
        # Large pictures have decoders of their own, so that others do not wait for them.
        self._waiting = 0
        self._large = asyncio.Semaphore(places)
        self._seconds_per_picture = 0.0
        self._template: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._idle: asyncio.Queue[_Child] = asyncio.Queue()
        for _ in range(places):
            self._idle.put_nowait(self._new_child())

    def check_capacity(self) -> None:
        """Raise an error if a picture would wait too long for a process.

        Raises:
            QueueFull: The expected wait exceeds the limit.
        """
        wait = self._pending * self._seconds_per_picture / self._places
        if self._pending > self._places and wait > self._max_wait:
            raise QueueFull("too many pictures are waiting for decoding", wait)

    async def decode(
        self, files: Sequence[bytes | memoryview], preprocessing: Preprocessing, deadline: float
    ) -> UInt8Array:
        """Return the pixels, uint8 (N, H, W, 3), of the contents of N image files.

        At `deadline`, a time of the event loop's clock, or when this is cancelled, the processes
        that decode these files are killed.

        Raises:
            DeadlineExceeded: The deadline passed.
            QueueFull: Too many slow pictures are being decoded.
            RequestError: A file cannot be decoded.
        """
        pixels = np.empty((len(files), *preprocessing.size, 3), np.uint8)
        settings = pickle.dumps(preprocessing)
        places = asyncio.Semaphore(self._places)  # one request cannot fill the slow places

        async def decode_one(number: int) -> None:
            async with places:
                reason = await self._decode(settings, files[number], pixels[number].data.cast("B"))
            if reason is not None:
                raise RequestError(f"file {number + 1}: {reason}" if len(files) > 1 else reason)

        left = deadline - asyncio.get_running_loop().time()
        self._pending += len(files)
        jobs = [asyncio.ensure_future(decode_one(number)) for number in range(len(files))]
        try:
            timeout = max(left, 0.0) if left < np.inf else None
            done, running = await asyncio.wait(
                jobs, timeout=timeout, return_when=asyncio.FIRST_EXCEPTION
            )
            for job in jobs:  # in order, so that the first damaged file is named
                if job in done:
                    job.result()
            if running:
                raise DeadlineExceeded("the deadline passed before the picture was decoded")
        finally:
            self._pending -= len(files)
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)
        return pixels

    def close(self) -> None:
        """End all processes: the template ends them when its socket is closed."""
        if self._control is not None:
            self._control.close()
        if self._template is not None:
            self._template.wait()
            self._template = None
        while not self._idle.empty():
            self._idle.get_nowait().end()

    async def _decode(
        self, settings: bytes, data: bytes | memoryview, pixels: memoryview
    ) -> str | None:
        for last in (False, True):
            child = await self._idle.get()
            try:
                try:
                    return await self._decode_with(child, settings, data, pixels)
                except _LargePicture:
                    if self._waiting >= LARGE_PER_PLACE * self._places:
                        raise QueueFull("too many large pictures are waiting") from None
                    async with self._large_place():
                        child = self._new_child()
                        child.aside = True
                        self._slow += 1
                        return await self._decode_with(child, settings, data, pixels)
            except (OSError, EOFError):
                if child.refused:
                    raise QueueFull("too many pictures take long to decode") from None
                # It may have ended while it was idle, so the picture is tried again.
                if last or child.aside:
                    break
        return "the image needs too much time or memory to be decoded"

    @asynccontextmanager
    async def _large_place(self) -> AsyncIterator[None]:
        self._waiting += 1
        self._pending -= 1  # small pictures do not wait for it
        try:
            async with self._large:
                yield
        finally:
            self._waiting -= 1
            self._pending += 1

    async def _decode_with(
        self, child: _Child, settings: bytes, data: bytes | memoryview, pixels: memoryview
    ) -> str | None:
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle | None = None
        sound = False
        try:
            await child.until_ready()
            if child.aside:
                child.step_aside()
            else:
                timer = loop.call_later(SLOW_SECONDS, self._step_aside, child)
            start = loop.time()
            reason = await child.decode(settings, data, pixels)
            sound = True
        except _LargePicture:
            sound = True
            raise
        finally:
            if timer is not None:
                timer.cancel()
            self._release(child, sound=sound)
        if reason is None and not child.aside:
            seconds = loop.time() - start
            self._seconds_per_picture += SMOOTHING * (seconds - self._seconds_per_picture)
        return reason

    def _step_aside(self, child: _Child) -> None:
        """Give the place of a slow picture to others, or end it if too many are slow."""
        if self._slow >= (1 + SLOW_PER_PLACE) * self._places:
            child.kill()
            return
        self._slow += 1
        child.step_aside()
        self._idle.put_nowait(self._new_child())

    def _release(self, child: _Child, *, sound: bool) -> None:
        if sound and not child.aside:
            self._idle.put_nowait(child)
            return
        child.end()
        if child.aside:
            self._slow -= 1
        elif self._template is not None:
            self._idle.put_nowait(self._new_child())

    def _new_child(self) -> _Child:
        ours, theirs = socket.socketpair()
        with theirs:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
            ours.setblocking(False)
            try:
                assert self._control is not None
                socket.send_fds(self._control, [b"f"], [theirs.fileno()])
            except (AssertionError, OSError):  # the first one, or the template was killed
                self._start_template()
                assert self._control is not None
                socket.send_fds(self._control, [b"f"], [theirs.fileno()])
        return _Child(ours)

    def _start_template(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._template is not None:
            self._template.wait()
        self._control, theirs = socket.socketpair()
        arguments = [theirs.fileno(), self._max_pixels, MAX_PICTURE_BYTES]
        with theirs:
            self._template = subprocess.Popen(
                [sys.executable, "-m", decoder_process.__name__, *map(str, arguments)],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"}, pass_fds=[theirs.fileno()],
            )  # fmt: skip
