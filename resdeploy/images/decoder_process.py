"""Processes that decode pictures, and their template: what cannot be cancelled can be killed.

A program starts one template, which imports everything once. For each byte with a socket that it
receives, it forks a decoder, which costs milliseconds and shares its memory. A decoder answers the
requests that it receives on its socket, one by one, with the layouts `REQUEST` and `REPLY`. All end
when the program ends. Sources: fork(2), setrlimit(2), setitimer(2), unix(7).
"""

from __future__ import annotations

import gc
import os
import pickle
import resource
import signal
import socket
import struct
import sys
import warnings
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from resdeploy.errors import ImageError
from resdeploy.images.decode import DecodingLimits
from resdeploy.images.loading import load_image
from resdeploy.images.preprocessing import Preprocessing

REQUEST = struct.Struct("<?II")
"""True if the picture may be large, and the lengths of the pickled pre-processing and the picture,
which follow."""
REPLY = struct.Struct("<BI")
"""One of the constants below, and the length of the pixels or of the text that follows."""
# After NEEDS with the bytes that decoding needs, a decoder waits for one byte.
PIXELS, REFUSED, LARGE, NEEDS = 0, 1, 2, 3
# Smaller pictures take at most about 0.2 s.
LARGE_PIXELS, LARGE_BYTES = 4_000_000, 16 << 20
# Processor time of one picture. 50 million pixels take about 2 s on a slow core. A small picture
# that takes longer ends its process, and is then decoded as a large one.
SMALL_CPU_SECONDS, CPU_SECONDS = 0.5, 10.0
# Besides the decoded picture: its file, which is twice in memory, and the interpreter.
OTHER_BYTES = 160 << 20
MAX_TEXT_BYTES = 2000
# The kernel ends a decoder before the program if memory is exhausted: proc(5), oom_score_adj.
OUT_OF_MEMORY_SCORE = "1000"


class _LargePicture(MemoryError):
    pass


def main() -> None:
    """Fork a decoder for each socket that arrives; end all of them when the program has ended.

    The arguments are the socket, and the maximum of pixels and of bytes for one picture.
    """
    # `decode` and Pillow import the first two with their first pictures.
    from PIL import Image, ImageOps, WebPImagePlugin  # noqa: F401

    handle, max_pixels, max_bytes = map(int, sys.argv[1:4])
    os.setpgid(0, 0)  # so that Ctrl-C in a terminal stops the program only, which then ends this
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a service manager signals every process
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended decoders need no wait
    warnings.simplefilter("ignore")
    Image.preinit()
    gc.freeze()
    control = socket.socket(fileno=handle)
    while True:
        byte, (*handles,), _, _ = socket.recv_fds(control, 1, 1)
        if not byte:
            os.killpg(0, signal.SIGKILL)
        process = None
        with suppress(OSError):  # too many processes: the program sees the end of its socket
            process = os.fork()
        if process == 0:
            control.close()
            _limit_memory(max_bytes + OTHER_BYTES)
            with suppress(OSError, EOFError), socket.socket(fileno=handles[0]) as connection:
                _answer(connection, max_pixels, max_bytes)
            os._exit(0)
        os.close(handles[0])


def _limit_memory(limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OUT_OF_MEMORY_SCORE)


def _answer(connection: socket.socket, max_pixels: int, max_bytes: int) -> None:
    stream = connection.makefile("rb", buffering=1 << 16)
    may_be_large = False

    def admit(pixels: int, memory: int) -> None:
        if may_be_large:
            connection.sendall(REPLY.pack(NEEDS, memory))
            if not stream.read(1):
                os._exit(0)
        elif pixels > LARGE_PIXELS or memory > LARGE_BYTES:
            raise _LargePicture

    limits = DecodingLimits(max_pixels, max_bytes, admit)
    connection.sendall(struct.pack("<I", os.getpid()))
    while head := stream.read(REQUEST.size):
        may_be_large, settings, size = REQUEST.unpack(head)
        preprocessing = _unpickle(stream.read(settings))
        data = stream.read(size)
        seconds = CPU_SECONDS if may_be_large else SMALL_CPU_SECONDS
        signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF ends the process
        if may_be_large:
            os.nice(19)  # it is the only picture of this process
        kind, content = PIXELS, b""
        try:
            content = load_image(data, preprocessing, limits).tobytes()
        except ImageError as error:
            text = str(error) if str(error).startswith("the image") else f"the image {error}"
            text += f"; {error.hint}" if error.hint else ""
            kind, content = REFUSED, text.encode(errors="replace")[:MAX_TEXT_BYTES]
        except _LargePicture:
            kind = LARGE
        except MemoryError:
            kind, content = REFUSED, b"the image needs more memory than one picture may use"
        signal.setitimer(signal.ITIMER_PROF, 0)
        connection.sendall(REPLY.pack(kind, len(content)) + content)
        del data, content


@lru_cache(maxsize=64)
def _unpickle(data: bytes) -> Preprocessing:
    """Return what the program sent; a decoder never sends a pickle back."""
    value = pickle.loads(data)
    assert isinstance(value, Preprocessing)
    return value


if __name__ == "__main__":
    main()
