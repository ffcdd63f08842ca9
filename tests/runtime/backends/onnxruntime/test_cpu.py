"""Differences between the versions of ONNX Runtime."""

from __future__ import annotations

import onnxruntime
import pytest

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.manifest import Encoding
from resdeploy.errors import BackendError
from resdeploy.runtime.backends.base import OpenOptions
from resdeploy.runtime.backends.onnxruntime.cpu import (
    OnnxRuntimeCpu,
    artifacts,
    open_artifact,
    rounds_float16,
)
from resdeploy.runtime.backends.onnxruntime.session import installed_version


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


def test_rejects_bytes_that_are_no_graph() -> None:
    with pytest.raises(BackendError, match="cannot load the graph: ") as caught:
        OnnxRuntimeCpu(b"not a graph", Encoding.FLOAT)
    assert "\n" not in str(caught.value)
