"""Tests of reading files of torch.save: equal to torch.load, and nothing in them is executed."""

from __future__ import annotations

import argparse
import collections
import copyreg
import datetime
import enum
import io
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from resdeploy.errors import CheckpointError
from resdeploy.train.checkpoint.inert_pickle import Placeholder
from resdeploy.train.checkpoint.torch_file import read_torch_file
from tests.train.checkpoint import hostile_files
from tests.train.checkpoint.hostile_files import (
    ACTS,
    ARCHIVES,
    BOMBS,
    archive,
    legacy,
    storage,
    tensor,
)

DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64,
)  # fmt: skip
FORMATS: list[dict[str, Any]] = [
    {}, *({"pickle_protocol": n} for n in (3, 4, 5)), {"_use_new_zipfile_serialization": False},
]  # fmt: skip


def save(path: Path, content: object, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


# Files equal to what torch.load returns


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Return a tensor of any dtype and shape; also a view, a parameter, or one without elements."""
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    dtype = draw(st.sampled_from(DTYPES))
    torch.manual_seed(draw(st.integers(0, 99)))
    tensor = (torch.randn(shape) * 10).to(dtype)
    view = draw(st.sampled_from(("whole", "transposed", "sliced", "parameter")))
    if view == "transposed" and tensor.ndim > 1:
        return tensor.transpose(0, -1)
    if view == "sliced" and tensor.ndim:
        return tensor[1:]
    if view == "parameter":
        return nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
    return tensor


contents = st.recursive(
    tensors() | st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])) | st.binary(min_size=1),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner)
    | st.dictionaries(st.text(max_size=5) | st.integers(-99, 99), inner, max_size=3)
    .map(collections.OrderedDict),
    max_leaves=8,
)  # fmt: skip


def assert_same(read: Any, expected: Any) -> None:
    if isinstance(expected, Tensor):
        assert type(read) is Tensor
        torch.testing.assert_close(read, expected.detach(), rtol=0, atol=0, equal_nan=True)
    elif isinstance(expected, dict):
        assert list(read) == list(expected)
        for key in expected:
            assert_same(read[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert type(read) is type(expected)
        assert len(read) == len(expected)
        for one, other in zip(read, expected):
            assert_same(one, other)
    else:
        assert read == expected
        assert type(read) is type(expected)


@settings(max_examples=25)
@given(content=contents, options=st.sampled_from([FORMATS[0], FORMATS[-1]]))
def test_equals_torch_load(
    tmp_path_factory: pytest.TempPathFactory, content: Any, options: dict[str, Any]
) -> None:
    path = save(tmp_path_factory.getbasetemp() / "random.pth", content, **options)
    assert_same(read_torch_file(path), torch.load(path, weights_only=True))


@pytest.mark.parametrize("options", FORMATS)
def test_reads_every_format(tmp_path: Path, options: dict[str, Any]) -> None:
    state = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).state_dict()
    content = {
        "state": state,
        "set": {1},
        "bytes": b"\xff",
        "text": "é",
    }
    assert_same(read_torch_file(save(tmp_path / "a.pth", content, **options)), content)


def test_tensors_of_one_storage_share_it(tmp_path: Path) -> None:
    base = torch.arange(6.0)
    first, second = read_torch_file(save(tmp_path / "a.pth", [base, base[2:]]))
    second[0] = 9
    assert first[2] == 9


def test_a_part_of_a_legacy_storage(tmp_path: Path) -> None:
    part = storage(6, "0", b"ctorch\nFloatStorage\n", ("part", 2, 3))
    values = struct.pack("<q6f", 6, *range(6))
    (tmp_path / "a.pth").write_bytes(legacy(tensor(part, 1, (2,), (1,)), ["0"], values))
    assert read_torch_file(tmp_path / "a.pth").tolist() == [3, 4]


# Foreign objects


class Colour(enum.Enum):
    RED = 1


class Settings(dict[str, int]):
    """A mapping of the user's own."""


def activation() -> None:
    """Stand for a function that a file names."""


@pytest.mark.parametrize("options", FORMATS)
def test_foreign_objects_are_placeholders_with_their_content(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    mapping = Settings(pixels=32)
    mapping.note = "x"  # type: ignore[attr-defined]
    content = {
        "args": argparse.Namespace(lr=0.1),
        "path": Path("/a/b"),
        "date": datetime.date(2026, 11, 28),
        "colour": Colour.RED,
        "mapping": mapping,
        "queue": collections.deque([1, 2]),
        "function": activation,
        "class": nn.ReLU,
        "scalar": np.float64(0.5),
        "array": np.zeros(3),
        "size": torch.Size([1, 2]),
        "default": collections.defaultdict(list, {"a": [1]}),
    }
    read = read_torch_file(save(tmp_path / "a.pth", content, **options))
    foreign = {key: value for key, value in read.items() if isinstance(value, Placeholder)}
    assert {key: value.name.split(".")[0] for key, value in foreign.items()} == {
        "args": "argparse", "path": "pathlib", "date": "datetime", "colour": "tests",
        "mapping": "tests", "queue": "collections", "function": "tests", "class": "torch",
        "scalar": "numpy", "array": "numpy",
    }  # fmt: skip
    assert read["args"].attributes() == {"lr": 0.1}
    assert read["path"].args == ("/", "a", "b")
    assert read["colour"].args == (1,)
    assert read["mapping"].items == {"pixels": 32}
    assert read["mapping"].attributes() == {"note": "x"}
    assert read["queue"].items == [1, 2]
    assert read["default"] == {"a": [1]}
    assert read["size"] == (1, 2)


@pytest.mark.parametrize(
    ("tensor", "name"),
    [
        (torch.eye(2).to_sparse(), "sparse tensor"),
        (torch.ones(1).expand(5), "expanded tensor"),
        (torch.empty(2, device="meta"), "tensor without values"),
        (torch.ones(2, dtype=torch.complex64).conj(), "conjugated or negated tensor"),
    ],
)
def test_names_tensors_that_are_not_dense(tmp_path: Path, tensor: Tensor, name: str) -> None:
    assert read_torch_file(save(tmp_path / "a.pth", tensor)).name == name


@pytest.mark.filterwarnings("ignore:.*quantize:UserWarning")
@pytest.mark.parametrize("options", [FORMATS[0], FORMATS[-1]])
def test_names_quantised_tensors(tmp_path: Path, options: dict[str, Any]) -> None:
    quantise: Any = torch.quantize_per_tensor  # it has no types
    tensor = quantise(torch.ones(3), 0.1, 0, torch.qint8)
    assert read_torch_file(save(tmp_path / "a.pth", tensor, **options)).name == "quantised tensor"


# Hostile files


@pytest.fixture(scope="module")
def readings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, float, list[str]]]:
    """Read all hostile files in another process; return message, seconds and events of each."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, instructions in ACTS.items():
        (folder / f"{name}.plain.pth").write_bytes(b"\x80\x02" + instructions + b".")
        (folder / f"{name}.zip.pth").write_bytes(archive(instructions))
    for name, data in BOMBS.items():
        (folder / f"{name}.pth").write_bytes(data)
    for name, make in ARCHIVES.items():
        (folder / f"{name}.pth").write_bytes(make())
    work = tmp_path_factory.mktemp("work")
    root = Path(hostile_files.__file__).parents[3]
    result = subprocess.run(
        [sys.executable, "-m", hostile_files.__name__, str(folder)],
        check=True, capture_output=True, text=True, cwd=work,
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert list(work.iterdir()) == []  # an executed file would create one
    lines = map(json.loads, result.stdout.splitlines())
    return {name: (message, seconds, events) for name, message, seconds, events in lines}


@pytest.mark.parametrize(
    "name", [*(f"{act}.{form}" for act in ACTS for form in ("plain", "zip")), *BOMBS, *ARCHIVES]
)
def test_a_hostile_file_is_one_line_and_nothing_is_executed(
    readings: dict[str, tuple[str, float, list[str]]], name: str
) -> None:
    message, seconds, events = readings[name]
    assert f"{name}.pth" in message
    assert not message.startswith(("FAILED", "accepted"))
    assert "\n" not in message
    assert events == []
    assert seconds < 5  # processor time; the slowest needs 1 s on the machine of development


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("system.zip", r"os\.system; no code in it was executed"),
        ("state-dict.plain", "no code in it was executed"),
        ("sets", "too many instructions"),
        ("many-members", "its directory of members has 4800000 bytes"),
        ("overlapping-members", "its storages are larger than the file"),
        ("compressed-storage", "is compressed, which PyTorch never does"),
        ("tensor-beyond-its-storage", "reaches beyond its storage"),
        ("tensor-before-its-storage", "impossible shape"),
        ("tensor-of-an-overflowing-size", "expanded tensor"),
        ("storage-elsewhere", r"without data/\.\./\.\./\.\./etc/passwd"),
        ("member-outside", "members outside of the folder a/"),
        ("no-pickle", r"a ZIP archive without data\.pkl"),
        ("big-endian", "not little-endian"),
        ("legacy-storage-cut-off", "one of its storages is cut off"),
        ("legacy-storage-without-content", "it lacks the content of some storages"),
        ("deep-types", "its pickle is damaged after byte"),
    ],
)
def test_the_cause_is_named(
    readings: dict[str, tuple[str, float, list[str]]], name: str, cause: str
) -> None:
    assert re.search(cause, readings[name][0])


def test_two_members_of_the_same_name_are_refused(tmp_path: Path) -> None:
    data = archive(pickle.dumps(1, 2)[2:-1], twin_0=b"a", twin_1=b"b").replace(b"twin/1", b"twin/0")
    (tmp_path / "a.pth").write_bytes(data)
    with pytest.raises(CheckpointError, match="two of its members have the same name"):
        read_torch_file(tmp_path / "a.pth")


def test_pythons_registry_of_extensions_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(archive(b"\x82\xf0(tR"))
    copyreg.add_extension("os", "getcwd", 240)
    try:
        read = read_torch_file(tmp_path / "a.pth")
    finally:
        copyreg.remove_extension("os", "getcwd", 240)
    assert isinstance(read, Placeholder)


def test_memory_is_that_of_the_file(tmp_path: Path) -> None:
    size = 4 << 20
    content = [torch.zeros(size // 4) for _ in range(8)]
    for options in (FORMATS[0], FORMATS[-1]):
        path = save(tmp_path / "a.pth", content, **options)
        tracemalloc.start()
        read = read_torch_file(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(read) == 8
        # The storages, one of them a second time while it is copied, and the pickle's objects.
        assert peak < 9 * size + (1 << 20)


@pytest.mark.parametrize("options", [FORMATS[0], FORMATS[-1]])
def test_a_cut_file_is_damaged_at_every_length(tmp_path: Path, options: dict[str, Any]) -> None:
    torch.save({"weight": torch.zeros(3)}, stream := io.BytesIO(), **options)
    data = stream.getvalue()
    for length in range(1, len(data), 37):
        (tmp_path / "a.pth").write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"is not an intact file of torch\.save: ."):
            read_torch_file(tmp_path / "a.pth")
