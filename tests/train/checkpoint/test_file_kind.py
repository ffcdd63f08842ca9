"""Tests of naming files that are not checkpoints."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from PIL import Image
from safetensors.torch import save

from resdeploy.errors import CheckpointError
from resdeploy.train.checkpoint.file_kind import (
    describe_foreign_file,
    refuse_foreign_file,
    refuse_missing,
)


def numpy_array() -> bytes:
    np.save(stream := io.BytesIO(), np.zeros(3))
    return stream.getvalue()


def numpy_archive() -> bytes:
    np.savez(stream := io.BytesIO(), weight=np.zeros(3))
    return stream.getvalue()


def zipped(name: str) -> bytes:
    with zipfile.ZipFile(stream := io.BytesIO(), "w") as archive:
        archive.writestr(name, "{}")
    return stream.getvalue()


def tarred(name: str) -> bytes:
    with tarfile.open(fileobj=(stream := io.BytesIO()), mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    return stream.getvalue()


def onnx_graph(producer: str) -> bytes:
    model: onnx.ModelProto = helper.make_model(helper.make_graph([], "g", [], []))
    model.producer_name = producer
    return bytes(model.SerializeToString())


def image(form: str) -> bytes:
    Image.new("RGB", (8, 8)).save(stream := io.BytesIO(), form)
    return stream.getvalue()


# The first bytes of a SavedModel: its version, a MetaGraphDef of 600 bytes, its MetaInfoDef.
SAVED_MODEL = b"\x08\x01\x12\xd8\x04\n\x05*\x03tag" + bytes(600)
# A GraphDef: a NodeDef of 20 bytes with a name and an operation.
GRAPH = b"\n\x14\n\x05input\x12\x0bPlaceholder"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"", "an empty file"),
        (bytes(4096), "a file of zeros"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "only a pointer of Git"),
        (b"\n  <!DOCTYPE HTML>\n<html>\xc3\xa9", "an HTML page"),
        (b"<HTML><body>404</body></HTML>", "an HTML page"),
        (b'<?xml version="1.0"?><net name="r"/>', "an XML document"),
        (b'{"error": "not found"}', "a JSON document"),
        (b"Not Found\n", "a text file"),
        (b"\n", "a text file"),
        (onnx_graph("pytorch"), "an ONNX graph"),
        (onnx_graph(""), "an ONNX graph"),
        (SAVED_MODEL, "a SavedModel of TensorFlow"),
        (GRAPH, "a graph of TensorFlow"),
        (b"\x1c\0\0\0TFL3\x14\0", "a network of TensorFlow Lite"),
        (b"\x89HDF\r\n\x1a\n\0", "an HDF5 file"),
        (zipped("metadata.json"), "a network of Keras"),
        (zipped("[Content_Types].xml"), "a document"),
        (zipped("model/data/weights/weight_0"), r"a program of torch\.export"),
        (zipped("serialized_exported_program.json"), r"a program of torch\.export"),
        (numpy_array(), "a file of NumPy arrays"),
        (numpy_archive(), "a file of NumPy arrays"),
        (gzip.compress(b"weights"), "a compressed file"),
        (b"\xfd7zXZ\0", "a compressed file"),
        (tarred("model.pth"), "a tar archive"),
        (tarred("sys_info"), r"a file of PyTorch 0\.1"),
        (b"vtrt\0\0\0\0\x02", "an engine of TensorRT"),
        (b"GGUF\x03\0\0\0", "a GGUF file"),
        (image("JPEG"), "an image"),
        (image("PNG"), "an image"),
        (image("BMP"), "an image"),
        (b"%PDF-1.7\n%\xe2\xe3", "a PDF document"),
        (b"\x7fELF\x02\x01\x01", "a program"),
    ],
    # Some of the contents hold the time, and every worker must collect the same names.
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_names_a_file_by_its_content(tmp_path: Path, data: bytes, name: str) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(data)
    with pytest.raises(
        CheckpointError, match=rf"model\.pth is not a checkpoint: it is {name}"
    ) as e:
        refuse_foreign_file(path)
    assert e.value.hint
    assert str(e.value).endswith(str(describe_foreign_file(path)))


def torch_file(legacy: bool) -> bytes:
    state = {"weight": torch.zeros(3)}
    torch.save(state, stream := io.BytesIO(), _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def torch_script() -> bytes:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), stream := io.BytesIO())
    return stream.getvalue()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch_file(legacy=False),
        lambda: torch_file(legacy=True),
        torch_script,
        lambda: save({"weight": torch.zeros(3)}),
    ],
)
def test_a_checkpoint_is_not_foreign(tmp_path: Path, make: Callable[[], bytes]) -> None:
    (tmp_path / "model").write_bytes(make())
    assert describe_foreign_file(tmp_path / "model") is None


def test_the_reason_of_the_system_is_kept(
    tmp_path: Path, refuse_to_open: Callable[[Path], None]
) -> None:
    refuse_to_open(tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth cannot be read: Permission denied"):
        describe_foreign_file(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("neighbour", "proposed"),
    [("photos/cat.jpg", False), ("photos/model.json", True), ("photos.onnx", True)],
)
def test_only_what_may_be_weights_is_proposed(
    tmp_path: Path, neighbour: str, proposed: bool
) -> None:
    (tmp_path / neighbour).parent.mkdir(exist_ok=True)
    (tmp_path / neighbour).touch()
    with pytest.raises(CheckpointError, match="there is no checkpoint") as caught:
        refuse_missing(tmp_path / "photoz.pth")
    assert ("did you mean" in str(caught.value.hint)) is proposed
