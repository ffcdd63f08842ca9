"""Builds of all precisions with TensorRT-RTX, whose parser and builder need no GPU."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from resdeploy.bundle.bundle import Bundle
from resdeploy.errors import BackendError
from resdeploy.progress import silent
from resdeploy.runtime.backends.base import Batches
from resdeploy.runtime.backends.tensorrt import builder
from resdeploy.runtime.backends.tensorrt.build_progress import BuildProgress
from resdeploy.runtime.backends.tensorrt.builder import build_engine
from resdeploy.runtime.backends.tensorrt.inspector import EngineCoverage, count_convolutions
from resdeploy.runtime.backends.tensorrt.options import BuildOptions
from resdeploy.runtime.backends.tensorrt.tensorrt_or_rtx import Flavour, TensorRt, load_tensorrt

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no wheel for this machine")


@pytest.fixture(scope="module")
def rtx() -> TensorRt:
    return load_tensorrt(Flavour.RTX)


def convolutions(bundle: Bundle) -> int:
    return bundle.artifact("fp32").convs


@pytest.mark.parametrize("name", ["fp32", "fp16", "int8"])
def test_every_precision_builds(rtx: TensorRt, tiny_bundle: Bundle, name: str) -> None:
    artifact = tiny_bundle.artifact(name)
    built = build_engine(rtx, tiny_bundle.read(artifact.file), BuildOptions())
    assert len(built.engine) > 1 << 16
    # The counts in the manifest, predicted from the graph, are those of the builder's log.
    assert count_convolutions(built.layers) == EngineCoverage(artifact.convs, artifact.int8_convs)


@pytest.mark.parametrize("batches", [Batches(1, 1, 1), Batches(2, 4, 9)])
def test_builds_for_the_batches_of_the_options(
    rtx: TensorRt, tiny_bundle: Bundle, batches: Batches
) -> None:
    options = BuildOptions(batches=batches, workspace_mib=64)
    assert build_engine(rtx, tiny_bundle.read("fp16.onnx"), options).engine


def test_rtx_gives_no_timing_cache(rtx: TensorRt, tiny_bundle: Bundle) -> None:
    built = build_engine(rtx, tiny_bundle.read("fp32.onnx"), BuildOptions(), timings=b"x")
    assert built.timings is None


def test_progress_adds_up_to_the_total(rtx: TensorRt, tiny_bundle: Bundle) -> None:
    steps: list[int] = []

    @contextmanager
    def record(what: str, total: int) -> Iterator[Callable[[int], None]]:
        assert (what, total) == ("building", 1000)
        yield steps.append

    build_engine(rtx, tiny_bundle.read("int8.onnx"), BuildOptions(), progress=record)
    assert sum(steps) == 1000
    assert min(steps) >= 0


def test_ctrl_c_stops_the_build() -> None:
    """The interrupt is raised only after the builder has stopped."""
    build_progress = BuildProgress()
    stopped = threading.Event()

    def build() -> None:
        build_progress.start("building", None, 1000)
        while build_progress.step("building"):
            time.sleep(0.001)
        stopped.set()

    @contextmanager
    def interrupted(what: str, total: int) -> Iterator[Callable[[int], None]]:
        def advance(done: int) -> None:
            raise KeyboardInterrupt

        yield advance

    with pytest.raises(KeyboardInterrupt):
        builder._build_interruptibly(build, build_progress, interrupted)
    assert stopped.is_set()


def test_memory_check_stops_the_build() -> None:
    build_progress = BuildProgress()
    stopped = threading.Event()

    def build() -> None:
        build_progress.start("building", None, 1000)
        while build_progress.step("building"):
            time.sleep(0.001)
        stopped.set()

    def check_memory() -> None:
        raise BackendError("nearly gone")

    with pytest.raises(BackendError, match="nearly gone"):
        builder._build_interruptibly(build, build_progress, silent, check_memory)
    assert stopped.is_set()


def test_a_real_build_checks_the_memory(rtx: TensorRt, tiny_bundle: Bundle) -> None:
    calls = []

    def check_memory() -> None:
        calls.append(1)

    build_engine(rtx, tiny_bundle.read("int8.onnx"), BuildOptions(), check_memory=check_memory)
    assert calls


def test_raises_the_error_of_the_build() -> None:
    def build() -> None:
        raise MemoryError("of the host")

    with pytest.raises(MemoryError, match="of the host"):
        builder._build_interruptibly(build, BuildProgress(), silent)


# Errors of the parser


def graph(
    nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], name: str = "images"
) -> bytes:
    """Return a graph of `nodes` that map `x`, the images cast to float, to the logits."""
    cast = helper.make_node("Cast", [name], ["x"], name="cast", to=TensorProto.FLOAT)
    body = helper.make_graph(
        [cast, *nodes],
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.UINT8, ["N", 8, 8, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        initializer=[numpy_helper.from_array(array, key) for key, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20)]
    model = helper.make_model(body, opset_imports=opsets, ir_version=9)
    return bytes(model.SerializeToString())


def quantised(zero_point: np.generic) -> bytes:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="quantize"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["logits"], name="dequantize"),
    ]
    return graph(nodes, {"s": np.array(0.1, np.float32), "z": np.array(zero_point)})


INTEGER_BIAS = graph(
    [
        helper.make_node("DequantizeLinear", ["b", "s", "z"], ["bias"], name="bias.dequantize"),
        helper.make_node("Add", ["x", "bias"], ["logits"], name="add"),
    ],
    {
        "b": np.ones(3, np.int32),
        "s": np.array(0.1, np.float32),
        "z": np.array(0, np.int32),
    },
)
UNKNOWN = graph([helper.make_node("Frobnicate", ["x"], ["logits"], name="odd")], {})
UNSUPPORTED = graph([helper.make_node("Unique", ["x"], ["logits"], name="unique")], {})
OTHER_INPUT = graph([helper.make_node("Relu", ["x"], ["logits"], name="relu")], {}, name="input_1")


@pytest.mark.parametrize(
    ("rejected", "sentence", "hint"),
    [
        (
            INTEGER_BIAS,
            "odd.onnx at node bias.dequantize (DequantizeLinear): input has type Int32 but must "
            "have type FP8, FP4, Int4, Int8, or UInt8",
            "needs the bias of a convolution in float",
        ),
        (
            quantised(np.int8(3)),
            "odd.onnx at node quantize (QuantizeLinear): Non-zero zero point is not supported",
            "resdeploy export --int8",
        ),
        (
            quantised(np.uint8(128)),
            "odd.onnx at node quantize (QuantizeLinear): Non-zero zero point is not supported",
            "zero point 0",
        ),
        (
            UNKNOWN,
            "odd.onnx at node odd (Frobnicate): it does not support this operator",
            "--backend onnxruntime-cuda",
        ),
        (
            UNSUPPORTED,
            "odd.onnx at node unique (Unique): it does not support this operator",
            "--backend onnxruntime-cuda",
        ),
        (b"no graph" * 50, "odd.onnx: Failed to parse the ONNX model", "damaged"),
        (b"", "the inputs of odd.onnx are none; only images is allowed", "export"),
        (OTHER_INPUT, "the inputs of odd.onnx are input_1; only images is allowed", "export"),
    ],
    ids=["int32 bias", "int8 zero point", "uint8", "unknown", "unsupported", "garbage", "empty",
         "other input"],
)  # fmt: skip
def test_parser_errors_are_one_sentence_with_a_hint(
    rtx: TensorRt, rejected: bytes, sentence: str, hint: str
) -> None:
    with pytest.raises(BackendError) as caught:
        build_engine(rtx, rejected, BuildOptions(), name="odd.onnx")
    assert str(caught.value).endswith(sentence)
    assert "\n" not in str(caught.value)
    assert hint in str(caught.value.hint)


def test_rejects_int8_cpu_and_names_int8(rtx: TensorRt, tiny_bundle: Bundle) -> None:
    with pytest.raises(BackendError, match="zero point") as caught:
        build_engine(rtx, tiny_bundle.read("int8-cpu.onnx"), BuildOptions())
    assert "use the int8.onnx" in str(caught.value.hint)
