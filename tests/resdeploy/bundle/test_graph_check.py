"""A graph is checked before an engine sees it: its operators, shapes, size and interface."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resdeploy.bundle.bundle import Bundle, open_bundle
from resdeploy.bundle.graph_check import OPERATORS, check_onnx
from resdeploy.bundle.manifest import MANIFEST
from resdeploy.errors import BundleError
from resdeploy.filesystem import sha256
from tests.samples import SIZE as TINY_SIZE

onnx = pytest.importorskip("onnx")
helper = onnx.helper
SIZE, CLASSES = 8, 4


def make(*nodes: Any, weights: dict[str, Any] | None = None, **changes: Any) -> bytes:
    """Return a graph whose nodes lead from `images` to `logits`."""
    inputs = changes.get("inputs", ["batch", SIZE, SIZE, 3])
    outputs = changes.get("outputs", ["batch", CLASSES])
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("images", changes.get("dtype", 2), inputs)],
        [helper.make_tensor_value_info("logits", 1, outputs)],
        [onnx.numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    opset = helper.make_opsetid("", changes.get("opset", 20))
    return helper.make_model(graph, opset_imports=[opset]).SerializeToString()  # type: ignore[no-any-return]


def node(operator: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(operator, inputs.split(), [output], **attributes)


TAIL = [
    node("GlobalAveragePool", "y", "pool"),
    node("Flatten", "pool", "flat"),
    node("Gemm", "flat w", "logits"),
]
HEAD = [node("Cast", "images", "cast", to=1), node("Transpose", "cast", "x", perm=[0, 3, 1, 2])]
W = {"w": np.zeros((3, CLASSES), np.float32)}


def check(data: bytes) -> None:
    check_onnx(data, opset=20, image_size=(SIZE, SIZE), classes=CLASSES)


def test_accepts_a_small_graph() -> None:
    check(make(*HEAD, node("Relu", "x", "y"), *TAIL, weights=W))


def test_accepts_every_graph_of_a_bundle_and_names_only_operators_in_use(
    tiny_bundle: Bundle,
) -> None:
    for artifact in tiny_bundle.manifest.artifacts:
        tiny_bundle.read(artifact.file)


def ones(*shape: int) -> Any:
    return np.ones(shape, np.float32)


def integers(*values: int) -> Any:
    return np.array(values, np.int64)


def chain(count: int, make_node: Callable[[str, str], Any]) -> list[Any]:
    """Return nodes that lead from `x` to `y`, each of which reads the output of the last."""
    names = ["x", *(f"t{i}" for i in range(count - 1)), "y"]
    return [make_node(before, after) for before, after in itertools.pairwise(names)]


BOMBS: dict[str, tuple[Sequence[Any], dict[str, Any]]] = {
    "padding": ([node("MaxPool", "x", "y", kernel_shape=[1, 1], pads=[60_000] * 4)], {}),
    "pads of a Pad": (
        [node("Pad", "x p", "y")], {"p": np.array([0, 0, 1 << 40, 0, 0, 0, 0, 0], np.int64)}
    ),
    "broadcast": (
        [node("Add", "x a", "z"), node("Add", "z b", "y")],
        {"a": ones(1, 1, 100_000, 1), "b": ones(1, 1, 1, 100_000)},
    ),
    "joined": (chain(40, lambda a, b: node("Concat", f"{a} {a}", b, axis=1)), {}),
    "weights computed many times": (
        [
            *(node("Relu", "k", f"k{i}") for i in range(1000)),
            node("Conv", "x k", "y"),
        ],
        {"k": ones(3, 3, 50, 50)},
    ),
    "growing convolutions": (
        chain(100, lambda a, b: node("Conv", f"{a} k", b, pads=[100] * 4)), {"k": ones(3, 3, 3, 3)}
    ),
    "empty": ([node("Conv", "x k", "y")], {"k": ones(3, 3, 9, 9)}),
    "no stride": ([node("MaxPool", "x", "y", kernel_shape=[1, 1], strides=[0, 0])], {}),
    "negative pads": ([node("MaxPool", "x", "y", kernel_shape=[1, 1], pads=[-9] * 4)], {}),
    "automatic pads": (
        [node("MaxPool", "x", "y", kernel_shape=[1, 1], auto_pad="SAME_UPPER")], {}
    ),
    "other channels": ([node("Conv", "x k", "y")], {"k": ones(3, 2, 1, 1)}),
    "unknown operator": ([node("Expand", "x s", "y")], {"s": np.full(4, 1 << 40, np.int64)}),
    "loop without a graph": ([node("Loop", "x x", "y")], {}),
    "missing input": ([node("Relu", "nothing", "y")], {}),
    "two outputs": ([helper.make_node("MaxPool", ["x"], ["y", "i"], kernel_shape=[1, 1])], {}),
    "equal names": ([node("Relu", "x", "x"), node("Relu", "x", "y")], {}),
    "attribute of another type": ([node("Concat", "x x", "y", axis="one")], {}),
    "a part without an end": ([node("Slice", "x i", "y")], {"i": integers(0)}),
    "a part of more axes": ([node("Slice", "x i j", "y")], {"i": integers(0), "j": integers(1, 1)}),
    "a part backwards": (
        [node("Slice", "x i j i k", "y")],
        {"i": integers(0), "j": integers(1), "k": integers(-1)},
    ),
    "an axis that is no number of one": ([node("Squeeze", "x i", "y")], {"i": integers(1)}),
    "an axis that does not exist": ([node("Unsqueeze", "x i", "y")], {"i": integers(9)}),
    "blocks of more channels": ([node("DepthToSpace", "x", "y", blocksize=2)], {}),
    "three operands": ([helper.make_node("Max", ["x", "x", "x"], ["y"])], {}),
    "no attribute": ([node("Transpose", "x", "y")], {}),
}  # fmt: skip


@pytest.mark.parametrize(("nodes", "weights"), BOMBS.values(), ids=BOMBS)
def test_refuses_graphs_that_ask_for_memory_or_do_not_fit(
    nodes: Sequence[Any], weights: dict[str, Any]
) -> None:
    with pytest.raises(ValueError) as raised:
        check(make(*HEAD, *nodes, *TAIL, weights={**W, **weights}))
    assert len(str(raised.value)) < 250


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": ["batch", SIZE, SIZE, 1]},
        {"inputs": ["batch", 2 * SIZE, SIZE, 3]},
        {"inputs": [1, SIZE, SIZE, 3]},
        {"inputs": ["batch", SIZE, SIZE]},
        {"dtype": 1},
        {"outputs": ["batch", CLASSES + 1]},
        {"outputs": [1 << 40, CLASSES]},
        {"opset": 19},
    ],
    ids=str,
)
def test_refuses_another_interface_than_that_of_the_manifest(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        check(make(*HEAD, node("Relu", "x", "y"), *TAIL, weights=W, **changes))


def test_refuses_logits_of_another_shape() -> None:
    with pytest.raises(ValueError, match="shape"):
        check(make(*HEAD, node("Relu", "x", "y"), *TAIL, weights={"w": ones(3, CLASSES + 1)}))


def test_shapes_agree_with_those_of_onnx(tiny_bundle: Bundle) -> None:
    """The independent implementation is the inference of shapes of the package onnx."""
    from resdeploy.bundle import graph_check
    from resdeploy.bundle.onnx_reader import read_onnx

    for artifact in tiny_bundle.manifest.artifacts:
        model = onnx.load_from_string(tiny_bundle.read(artifact.file))
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
        model.graph.ClearField("value_info")
        model.graph.output[0].type.tensor_type.ClearField("shape")
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True, strict_mode=True)
        expected = {
            value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
            for value in [*inferred.graph.value_info, *inferred.graph.output]
        }
        graph = read_onnx(tiny_bundle.read(artifact.file))
        shapes = {name: weight.shape for name, weight in graph.weights.items()}
        shapes["images"] = expected["images"] = (1, TINY_SIZE, TINY_SIZE, 3)
        for entry in graph.nodes:
            inputs = [shapes[name] for name in entry.inputs]
            shape = OPERATORS[entry.operator](entry, inputs, graph.weights)
            graph_check._add(shapes, entry.outputs[0], shape)
            assert shape == expected[entry.outputs[0]], entry


def test_every_way_to_a_graph_checks_it(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """A consistent bundle with a hostile graph; its manifest has the right sha256."""
    import json
    import shutil

    copy = shutil.copytree(tiny_bundle.path, tmp_path / "copy.bundle")
    model = onnx.load(copy / "fp32.onnx")
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    (copy / "fp32.onnx").write_bytes(data := model.SerializeToString())
    document = json.loads((copy / MANIFEST).read_text())
    document["artifacts"][0] |= {"bytes": len(data), "sha256": sha256(data)}
    (copy / MANIFEST).write_text(json.dumps(document))
    bundle = open_bundle(copy)
    with pytest.raises(BundleError, match="outside of the file"):
        bundle.read("fp32.onnx")
    with pytest.raises(BundleError, match="outside of the file"), bundle.checked_path("fp32.onnx"):
        pass


def test_the_checked_bytes_are_those_that_are_loaded(tiny_bundle: Bundle, tmp_path: Path) -> None:
    import shutil

    copy = open_bundle(shutil.copytree(tiny_bundle.path, tmp_path / "copy.bundle"))
    file = copy.path / "fp32.onnx"
    data = file.read_bytes()
    with copy.checked_path("fp32.onnx") as path:
        with file.open("r+b") as stream:  # in place: the same inode
            stream.write(b"changed")
        assert path.read_bytes() == data
