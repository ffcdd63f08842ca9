"""Processes that decode pictures, and their template: what cannot be cancelled can be killed.

    python -m resdeploy.runtime.serving.decoder_process SOCKET PIXELS BYTES

The server starts one template, which imports everything once. For each byte with a socket that it
receives, it forks a decoder, which costs milliseconds and shares its memory. A decoder answers the
requests that it receives on its socket, one by one, with the layouts `REQUEST` and `REPLY`. All end
when the server ends. Sources: fork(2), setrlimit(2), setitimer(2), unix(7).
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

from PIL import Image

from resdeploy.errors import ImageError
from resdeploy.images.formats import HEAD_BYTES, format_of
from resdeploy.images.loading import load_image
from resdeploy.images.preprocessing import Preprocessing
from resdeploy.images.structure import read_structure

REQUEST = struct.Struct("<?II")
"""True if the picture may be large, and the lengths of the pickled pre-processing and the picture,
which follow."""
REPLY = struct.Struct("<BI")
"""One of the constants below, and the length of the pixels or of the text that follows."""
PIXELS, REFUSED, LARGE = 0, 1, 2
# Smaller pictures take at most about 0.1 s.
LARGE_PIXELS = 4_000_000
# Processor time of one picture. 50 million pixels take about 2 s on a slow core.
CPU_SECONDS = 10.0
# Besides the decoded picture: its file, which is twice in memory, and the interpreter.
OTHER_BYTES = 160 << 20
MAX_TEXT_BYTES = 2000
# The kernel ends a decoder before the server if memory is exhausted: proc(5), oom_score_adj.
OUT_OF_MEMORY_SCORE = "1000"


def main() -> None:
    """Fork a decoder for each socket that arrives; end all of them when the server has ended."""
    handle, max_pixels, max_bytes = map(int, sys.argv[1:])
    os.setpgid(0, 0)  # so that Ctrl-C in a terminal stops the server only, which then ends this
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a service manager signals every process
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended decoders need no wait
    warnings.simplefilter("ignore")
    Image.init()
    gc.freeze()
    control = socket.socket(fileno=handle)
    while True:
        byte, (*handles,), _, _ = socket.recv_fds(control, 1, 1)
        if not byte:
            os.killpg(0, signal.SIGKILL)
        if os.fork() == 0:
            control.close()
            _limit_memory(max_bytes)
            with suppress(OSError, EOFError), socket.socket(fileno=handles[0]) as connection:
                _answer(connection, max_pixels)
            os._exit(0)
        os.close(handles[0])


def _limit_memory(max_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit = max_bytes + OTHER_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OUT_OF_MEMORY_SCORE)


def _answer(connection: socket.socket, max_pixels: int) -> None:
    stream = connection.makefile("rb", buffering=1 << 16)
    connection.sendall(struct.pack("<I", os.getpid()))
    while head := stream.read(REQUEST.size):
        may_be_large, settings, size = REQUEST.unpack(head)
        preprocessing = _unpickle(stream.read(settings))
        data = stream.read(size)
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # SIGPROF ends the process
        kind, content = PIXELS, b""
        try:
            structure = read_structure(data, format_of(data[:HEAD_BYTES]))
            if not may_be_large and LARGE_PIXELS < structure.width * structure.height <= max_pixels:
                kind = LARGE
            else:
                content = load_image(data, preprocessing, max_pixels).tobytes()
        except ImageError as error:
            text = str(error) if str(error).startswith("the image") else f"the image {error}"
            kind, content = REFUSED, text.encode(errors="replace")[:MAX_TEXT_BYTES]
        except MemoryError:
            kind, content = REFUSED, b"the image needs more memory than one picture may use"
        signal.setitimer(signal.ITIMER_PROF, 0)
        connection.sendall(REPLY.pack(kind, len(content)) + content)
        del data, content


@lru_cache(maxsize=64)
def _unpickle(data: bytes) -> Preprocessing:
    """Return what the server sent; a decoder never sends a pickle back."""
    value = pickle.loads(data)
    assert isinstance(value, Preprocessing)
    return value


if __name__ == "__main__":
    main()
