"""Tests of safetensors files whose header claims more than the file holds."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save

from resdeploy.train.checkpoint.safetensors_file import MAX_HEADER_BYTES, read_safetensors


def entry(start: int, end: int, count: int = 1) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [count], "data_offsets": [start, end]}


def file_of(header: dict[str, Any] | bytes, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_tensors_and_metadata(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(save({"x": torch.arange(3)}, {"key": "value"}))
    tensors, metadata = read_safetensors(tmp_path / "a")
    assert tensors["x"].tolist() == [0, 1, 2]
    assert metadata == {"key": "value"}


@pytest.mark.parametrize(
    "data",
    [
        file_of({"x": entry(0, 4), "y": entry(0, 4)}, bytes(4)),
        file_of({"x": entry(0, 4), "y": entry(2, 6)}, bytes(6)),
        file_of({"x": entry(0, 1 << 40, 1 << 38)}, bytes(4)),
        file_of({"x": entry(4, 0)}, bytes(4)),
        file_of({"x": entry(0, 4, 1 << 62)}, bytes(4)),
        file_of({"x": {**entry(0, 4), "dtype": "PICKLE"}}, bytes(4)),
        file_of(b'{"x":' * 5000),
        (1 << 63).to_bytes(8, "little") + b"{",
        (MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{" + bytes(MAX_HEADER_BYTES),
        b"\1",
    ],
    ids=["same bytes", "overlap", "terabyte", "negative", "overflow", "type", "deep", "huge",
         "long header", "cut off"],
)  # fmt: skip
def test_a_header_that_claims_too_much_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(SafetensorError):
        read_safetensors(tmp_path / "a")


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a")
    with pytest.raises(OSError, match="not a regular file"):
        read_safetensors(tmp_path / "a")


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xd5")
    path.write_bytes(save({"x": torch.ones(1)}))
    assert read_safetensors(path)[0]["x"].item() == 1
