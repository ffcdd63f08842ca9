"""Differences between the versions of ONNX Runtime."""

from __future__ import annotations

import threading

import numpy as np
import onnxruntime
import pytest

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.golden import Float32Array
from resdeploy.bundle.manifest import Encoding
from resdeploy.errors import BackendError
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.runtime.backends.base import OpenOptions
from resdeploy.runtime.backends.onnxruntime.cpu import (
    OnnxRuntimeCpu,
    artifacts,
    open_artifact,
    rounds_float16,
)
from resdeploy.runtime.backends.onnxruntime.session import SessionBackend, installed_version


@pytest.mark.parametrize(
    ("version", "rounds"),
    [
        ("1.23.2", False),
        ("1.29.0", False),
        ("1.30.0", True),
        ("1.32.0", True),
        ("2.0.0.dev1", True),
        ("1.9", False),
        ("unknown", False),
    ],
)
def test_float16_is_rounded_from_1_30_on(version: str, rounds: bool) -> None:
    assert rounds_float16(version) is rounds
    assert artifacts(version) == (
        ("int8-cpu", "fp32", "fp16", "int8", "int8-dla") if rounds else ("int8-cpu", "fp32", "fp16")
    )


def test_returns_the_installed_version() -> None:
    assert installed_version() == onnxruntime.__version__


def test_old_versions_reject_float16_encodings(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.23.2")
    with pytest.raises(BackendError, match=r"1\.23\.2 cannot run the tensorrt encoding"):
        open_artifact(tiny_bundle, tiny_bundle.artifact("int8"), OpenOptions())
    with pytest.raises(BackendError, match=r"1\.23\.2 cannot run the dla encoding"):
        OnnxRuntimeCpu(tiny_bundle.read("int8.onnx"), Encoding.DLA)
    open_artifact(tiny_bundle, tiny_bundle.artifact("int8-cpu"), OpenOptions()).close()


@pytest.mark.parametrize(("threads", "streams"), [(None, 2), (1, 2), (2, 2), (4, 3)])
def test_streams_divide_a_batch_and_give_the_same_bits(
    tiny_bundle: Bundle, threads: int | None, streams: int
) -> None:
    artifact, golden = tiny_bundle.artifact("int8-cpu"), tiny_bundle.golden()
    others = set(threading.enumerate())
    backend = open_artifact(tiny_bundle, artifact, OpenOptions(threads=threads, streams=streams))
    sizes: list[int] = []
    original = SessionBackend.run

    def run(self: SessionBackend, part: UInt8Array) -> Float32Array:
        sizes.append(len(part))
        return original(self, part)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SessionBackend, "run", run)
        for count in (1, 2, 8):
            logits = backend.run(golden.images[:count])
            np.testing.assert_array_equal(logits, golden.bit_exact[artifact.name][:count])
    expected = [len(p) for n in (1, 2, 8) for p in np.array_split(range(n), min(n, streams))]
    assert sorted(sizes) == sorted(expected)
    assert set(threading.enumerate()) > others
    backend.close()
    assert set(threading.enumerate()) == others
    with pytest.raises(BackendError, match="the session was closed"):
        backend.run(golden.images[:2])


def test_rejects_bytes_that_are_no_graph() -> None:
    with pytest.raises(BackendError, match="cannot load the graph: ") as caught:
        OnnxRuntimeCpu(b"not a graph", Encoding.FLOAT)
    assert "\n" not in str(caught.value)
