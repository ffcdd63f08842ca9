"""Decoding of pictures in processes, which are killed when a deadline passes or a client leaves."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import lru_cache

import numpy as np

from resdeploy.images import decoder_process as protocol
from resdeploy.images.decoder_process import REPLY, REQUEST
from resdeploy.images.preprocessing import Preprocessing, UInt8Array
from resdeploy.machine.python_process import python_command
from resdeploy.runtime.serving.config import TOKEN_VARIABLE
from resdeploy.runtime.serving.interruptible import interruptible
from resdeploy.runtime.serving.request_errors import (
    DeadlineExceeded,
    QueueFull,
    RequestError,
    Unavailable,
)

# Weight of the newest picture in the moving mean of the decoding time.
SMOOTHING = 0.1
# Large pictures in progress, for each place. Photographs of phones are large, so many may wait, but
# their requests hold some of the 256 places in the queue of the model.
LARGE_PER_PLACE = 32
# Memory of all large pictures together while they are decoded, beside their files. One of 50
# million pixels takes 200 MB. Each place takes at most LARGE_BYTES more.
LARGE_PICTURES_BYTES = 192 << 20
# The event loop cannot keep more busy, and 16 MiB for each of them suit a container of 2 GiB.
MAX_PLACES = 16
# Room for a picture or its pixels in each direction; the kernel may allow less.
SOCKET_BYTES = 1 << 20
NO_PROCESS = "no process can be started to decode the picture"
_pickled = lru_cache(maxsize=64)(pickle.dumps)
Memory = Callable[[int], Awaitable[None]]


class _LargePicture(Exception):
    pass


class _Child:
    """One decoder process and its socket; None if there is no handle for one."""

    def __init__(self, connection: socket.socket | None) -> None:
        self._connection = connection
        self._handle: int | None = None
        self.started = False
        self.memory = 0

    async def until_ready(self) -> None:
        """Wait for the start of the process.

        Raises:
            OSError, EOFError: The process has ended, or could not be started.
        """
        if not self.started:
            self._handle = os.pidfd_open(*struct.unpack("<I", await self._receive(4)))
            self.started = True

    async def decode(
        self,
        settings: bytes,
        data: bytes | memoryview,
        pixels: memoryview,
        memory: Memory | None,
    ) -> str | None:
        """Write the pixels of a picture; return why the decoder refuses it, None if it does not.

        For a large picture, it waits in `memory` for the bytes that it needs, if given.

        Raises:
            OSError, EOFError: The process has ended.
            _LargePicture: The picture is large, and `memory` is not given.
        """
        head = REQUEST.pack(memory is not None, len(settings), len(data)) + settings
        for part in [head + data] if len(data) < SOCKET_BYTES else [head, data]:
            await self._send(part)
        kind, length = REPLY.unpack(await self._receive(REPLY.size))
        if kind != protocol.NEEDS or memory is None or length > LARGE_PICTURES_BYTES:
            return await self._result(kind, length, pixels)
        await memory(length)
        self.memory = length
        await self._send(b"d")
        kind, length = REPLY.unpack(await self._receive(REPLY.size))
        return await self._result(kind, length, pixels)

    def end(self, ended: Callable[[int], None] = lambda memory: None) -> None:
        """Kill the process, whatever it does, and close its socket.

        `ended` is called with the memory that it took when this is free: pidfd_open(2).
        """
        if (handle := self._handle) is not None:
            with suppress(OSError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            loop = asyncio.get_running_loop()
            # With the lowest priority and on a busy machine, its end may take seconds.
            loop.add_reader(handle, self._forget, handle, ended)
            self._handle = None
        if self._connection is not None:
            self._connection.close()

    def _forget(self, handle: int, ended: Callable[[int], None]) -> None:
        asyncio.get_running_loop().remove_reader(handle)
        os.close(handle)
        ended(self.memory)

    @property
    def _socket(self) -> socket.socket:
        if self._connection is None:
            raise EOFError
        return self._connection

    async def _result(self, kind: int, length: int, pixels: memoryview) -> str | None:
        if kind == protocol.PIXELS and length == pixels.nbytes:
            await self._fill(pixels)
            return None
        if kind == protocol.LARGE:
            raise _LargePicture
        if kind != protocol.REFUSED or length > protocol.MAX_TEXT_BYTES:
            raise EOFError("the decoder does not follow the protocol")
        return (await self._receive(length)).decode(errors="replace")

    async def _send(self, data: bytes | memoryview) -> None:
        await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def _receive(self, length: int) -> bytearray:
        data = bytearray(length)
        await self._fill(memoryview(data))
        return data

    async def _fill(self, view: memoryview) -> None:
        while view:
            count = await asyncio.get_running_loop().sock_recv_into(self._socket, view)
            if not count:
                raise EOFError
            view = view[count:]


class Decoder:
    """A pool of processes that decode pictures with the function that all stages use."""

    def __init__(self, places: int, *, max_pixels: int, max_wait: float) -> None:
        """Start the processes; `max_wait` is the maximum expected wait for one in seconds."""
        self._places = places = min(places, MAX_PLACES)
        self._max_pixels = max_pixels
        self._max_wait = max_wait
        self._pending = 0
        self._closed = False
        # Large pictures have decoders of their own, so that others do not wait for them.
        self._waiting = 0
        self._large = asyncio.Semaphore(places)
        self._free_bytes = LARGE_PICTURES_BYTES
        self._freed, self._turn = asyncio.Event(), asyncio.Lock()
        self._seconds_per_picture = 0.0
        self._template: subprocess.Popen[bytes] | None = None
        self._control = socket.socket()
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
    ) -> tuple[UInt8Array, list[str | None]]:
        """Return the pixels of the files that can be decoded, and for each file why it cannot.

        The pixels are uint8 (N, H, W, 3), in the order of the N files whose reason is None.

        At `deadline`, a time of the event loop's clock, or when this is cancelled, the processes
        that decode these files are killed.

        Raises:
            DeadlineExceeded: The deadline passed.
            QueueFull: Too many large pictures wait.
            Unavailable: No process can be started.
            RequestError: No file can be decoded.
        """
        pixels = np.empty((len(files), *preprocessing.size, 3), np.uint8)
        settings = _pickled(preprocessing)
        places = asyncio.Semaphore(self._places)  # one request cannot fill the queue

        async def decode_one(number: int) -> str | None:
            async with places:
                return await self._decode(settings, files[number], pixels[number].data.cast("B"))

        late = DeadlineExceeded("the deadline passed before the picture was decoded")
        self._pending += len(files)
        jobs: list[asyncio.Future[str | None]] = []
        try:
            with interruptible(deadline, late):
                if len(files) == 1:
                    reasons = [await decode_one(0)]
                else:
                    jobs += [asyncio.ensure_future(decode_one(n)) for n in range(len(files))]
                    reasons = list(await asyncio.gather(*jobs))
        finally:
            self._pending -= len(files)
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)
        decoded = [reason is None for reason in reasons]
        if not any(decoded):
            raise RequestError(f"file 1: {reasons[0]}" if len(files) > 1 else reasons[0])
        return pixels if all(decoded) else pixels[decoded], reasons

    def close(self) -> None:
        """End all processes: the template ends them when its socket is closed."""
        self._closed = True
        self._control.close()
        if self._template is not None:
            self._template.wait()
        while not self._idle.empty():
            self._idle.get_nowait().end()

    async def _decode(
        self, settings: bytes, data: bytes | memoryview, pixels: memoryview
    ) -> str | None:
        for _ in range(self._places + 1):  # all that are idle may have ended
            child, sound = await self._idle.get(), False
            try:
                await child.until_ready()
                start = time.monotonic()
                reason = await child.decode(settings, data, pixels, None)
                sound = True
            except _LargePicture:
                sound = True
                break
            except EOFError:
                if child.started:  # it was killed while it decoded
                    break
            except OSError:
                pass
            else:
                seconds = time.monotonic() - start
                self._seconds_per_picture += SMOOTHING * (seconds - self._seconds_per_picture)
                return reason
            finally:
                if not sound:
                    child.end()
                    child = self._new_child()
                self._idle.put_nowait(child)
        else:
            raise Unavailable(NO_PROCESS)
        if self._waiting >= LARGE_PER_PLACE * self._places:
            raise QueueFull("too many large pictures are waiting")
        self._waiting += 1
        self._pending -= 1  # small pictures do not wait for it
        try:
            async with self._large:
                return await self._decode_large(settings, data, pixels)
        finally:
            self._waiting -= 1
            self._pending += 1

    async def _decode_large(
        self, settings: bytes, data: bytes | memoryview, pixels: memoryview
    ) -> str | None:
        child = self._new_child()
        try:
            await child.until_ready()
            return await child.decode(settings, data, pixels, self._take_memory)
        except (OSError, EOFError):
            if not child.started:
                raise Unavailable(NO_PROCESS) from None
            return "the image needs too much time or memory to be decoded"
        finally:
            child.end(self._return_memory)

    async def _take_memory(self, needed: int) -> None:
        """Wait, in order, until other large pictures leave so many bytes."""
        async with self._turn:
            while self._free_bytes < needed:
                self._freed.clear()
                await self._freed.wait()
            self._free_bytes -= needed

    def _return_memory(self, needed: int) -> None:
        self._free_bytes += needed
        self._freed.set()

    def _new_child(self) -> _Child:
        """Return a new process; one that cannot be started seems to end at once."""
        if self._closed:
            return _Child(None)
        try:
            ours, theirs = socket.socketpair()
        except OSError:
            return _Child(None)
        with theirs, suppress(OSError):
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
            ours.setblocking(False)
            try:
                socket.send_fds(self._control, [b"f"], [theirs.fileno()])
            except OSError:  # the first one, or the template was killed
                self._start_template()
                socket.send_fds(self._control, [b"f"], [theirs.fileno()])
        return _Child(ours)

    def _start_template(self) -> None:
        self._control.close()
        if self._template is not None:
            self._template.kill()  # it may be stopped, or no longer hear the socket
            self._template.wait()
        self._control, theirs = socket.socketpair()
        self._control.setblocking(False)
        arguments = theirs.fileno(), self._max_pixels, LARGE_PICTURES_BYTES
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", TOKEN_VARIABLE: ""}
        with theirs:
            self._template = subprocess.Popen(
                python_command(protocol.__name__, *arguments),
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                env=environment, pass_fds=[theirs.fileno()],
            )  # fmt: skip
