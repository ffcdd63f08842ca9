"""The functions that a fuzzer calls: each gives bytes to a parser of foreign files or requests.

A parser may refuse bytes with an error of the project (`ResdeployError`, a `RequestError` of the
server) or with a ValueError where its docstring says so. Any other exception is a fault.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resdeploy.bundle.calibration_record import RecipeRecords
from resdeploy.bundle.golden import read_golden
from resdeploy.bundle.graph_check import check_onnx
from resdeploy.bundle.manifest import Manifest
from resdeploy.errors import ResdeployError
from resdeploy.images.decode import DecodingLimits, read_rgb
from resdeploy.images.preprocessing_files import read_preprocessing_file
from resdeploy.json_documents import decode, parse
from resdeploy.runtime.serving.http.uploads import read_uploads
from resdeploy.runtime.serving.open_inference import parse_request
from resdeploy.runtime.serving.request_errors import RequestError

SIZE, CLASSES = 8, 3
# A picture of more pixels says nothing new about a decoder, and takes the fuzzer's time.
MAX_PIXELS = 1 << 16


def fuzz_manifest(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        parse(Manifest, decode(dict[str, Any], data))


def fuzz_calibration(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        decode(RecipeRecords, data)


def fuzz_golden(data: bytes) -> None:
    # `Bundle.golden` makes a BundleError of every exception, but running out of memory would show.
    try:
        read_golden(data, SIZE, CLASSES, 2)
    except MemoryError:
        raise
    except Exception:
        pass


def fuzz_graph(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        check_onnx(data, opset=20, image_size=(SIZE, SIZE), classes=CLASSES)


def fuzz_checkpoint(data: bytes) -> None:
    from resdeploy.train.checkpoint.load import load_checkpoint

    _with_file("weights.pt", data, load_checkpoint)


def fuzz_program(data: bytes) -> None:
    from resdeploy.export.source.program_file import read_program

    with contextlib.suppress(ResdeployError):
        read_program(data, Path("net.pt2"))


def fuzz_safetensors(data: bytes) -> None:
    from resdeploy.train.checkpoint.load import load_checkpoint

    _with_file("weights.safetensors", data, load_checkpoint)


def fuzz_shard(data: bytes) -> None:
    from resdeploy.train.data.shards import image_content, read_shards

    def read(path: Path) -> None:
        for file in read_shards(path.parent).files:
            image_content(file)

    _with_file("0.tar", data, read)


def fuzz_preprocessing(data: bytes) -> None:
    _with_file("config.json", data, read_preprocessing_file)


def fuzz_picture(data: bytes) -> None:
    with contextlib.suppress(ResdeployError):
        read_rgb(data, limits=DecodingLimits(pixels=MAX_PIXELS))


def fuzz_request(data: bytes) -> None:
    """The first byte says how much of the body is JSON; the rest is the body."""
    body = data[1:]
    length = None if data[:1] in (b"", b"\0") else len(body) * data[0] // 255
    with contextlib.suppress(RequestError):
        parse_request(body, length, SIZE, CLASSES)


def fuzz_form(data: bytes) -> None:
    """The first line is the Content-Type; the rest is the body."""
    head, _, body = data.partition(b"\n")
    with contextlib.suppress(RequestError):
        read_uploads(head.decode("latin-1"), body, 64)


def _with_file(name: str, data: bytes, function: Callable[[Path], object]) -> None:
    """Call a function with the path of a file in memory."""
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=memory) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / name
        path.write_bytes(data)
        with contextlib.suppress(ResdeployError):
            function(path)


TARGETS: dict[str, Callable[[bytes], None]] = {
    name.removeprefix("fuzz_"): function
    for name, function in sorted(globals().items())
    if name.startswith("fuzz_")
}
