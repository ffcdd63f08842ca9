"""The strict reader of ONNX files agrees with the package onnx, or refuses the file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resdeploy.bundle import onnx_reader
from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.onnx_reader import MAX_NODES, Weight, read_onnx

onnx = pytest.importorskip("onnx")
helper = onnx.helper


def tiny_model() -> Any:
    """Return a model with a convolution."""
    weights = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[2, 2], pads=[0, 0, 0, 0])],
        "tiny",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 2, 3, 3])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def test_reads_what_the_package_onnx_reads(tiny_bundle: Bundle) -> None:
    for artifact in tiny_bundle.manifest.artifacts:
        data = (tiny_bundle.path / artifact.file).read_bytes()
        ours, model = read_onnx(data), onnx.load_from_string(data)
        assert ours.opset == model.opset_import[0].version
        assert [
            (node.operator, node.inputs, node.outputs, node.attributes) for node in ours.nodes
        ] == [
            (
                node.op_type,
                tuple(node.input),
                tuple(node.output),
                {
                    attribute.name: tuple(value) if isinstance(value, list) else value
                    for attribute in node.attribute
                    for value in [helper.get_attribute_value(attribute)]
                },
            )
            for node in model.graph.node
        ]
        assert list(ours.weights) == [weight.name for weight in model.graph.initializer]
        for weight in model.graph.initializer:
            expected = Weight(weight.data_type, tuple(weight.dims), memoryview(weight.raw_data))
            assert ours.weights[weight.name] == expected
        (value,) = ours.inputs
        shape = model.graph.input[0].type.tensor_type.shape.dim
        assert value.shape == tuple(dim.dim_param or dim.dim_value for dim in shape)


def external(model: Any, location: str = "weights.bin") -> None:
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "8"), ("length", "96")):
        entry = weight.external_data.add()
        entry.key, entry.value = key, value


def location_only(model: Any) -> None:
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL


def constant_outside(model: Any) -> None:
    tensor = onnx.TensorProto(name="c", data_type=1, dims=[1])
    tensor.external_data.add(key="location", value="/etc/passwd")
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))


def loop(model: Any) -> None:
    model.graph.node.append(helper.make_node("Loop", ["", ""], ["z"], body=model.graph))


def graphs(model: Any) -> None:
    attribute = model.graph.node[0].attribute.add(name="g", type=onnx.AttributeProto.GRAPHS)
    attribute.graphs.add(name="inner")


def function(model: Any) -> None:
    model.functions.add(name="f", domain="mine")


def training(model: Any) -> None:
    model.training_info.add()


def sparse(model: Any) -> None:
    model.graph.sparse_initializer.add().values.name = "s"


def add_domain(model: Any) -> None:
    model.opset_import.add(domain="com.microsoft", version=1)


def node_domain(model: Any) -> None:
    model.graph.node[0].domain = "com.microsoft"


def typed_data(model: Any) -> None:
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.float_data.extend([0.0] * 24)


def huge_shape(model: Any) -> None:
    model.graph.initializer[0].dims[:] = [1 << 62, 4]


def negative_shape(model: Any) -> None:
    model.graph.initializer[0].dims[:] = [-2, -12]


def empty_product(model: Any) -> None:
    model.graph.initializer[0].dims[0] = 3


def strings(model: Any) -> None:
    model.graph.initializer[0].data_type = onnx.TensorProto.STRING


def equal_names(model: Any) -> None:
    model.graph.initializer.append(model.graph.initializer[0])


def many_nodes(model: Any) -> None:
    model.graph.node.extend(helper.make_node("Relu", ["y"], [f"{i}"]) for i in range(MAX_NODES))


def long_name(model: Any) -> None:
    model.graph.node[0].op_type = "C" * 10_000


def two_types(model: Any) -> None:
    model.graph.node[0].attribute[0].i = 7


def two_attributes(model: Any) -> None:
    model.graph.node[0].attribute.append(model.graph.node[0].attribute[0])


def reference(model: Any) -> None:
    model.graph.node[0].attribute[0].ref_attr_name = "outer"


HOSTILE: dict[str, Callable[[Any], None]] = {
    change.__name__: change
    for change in (
        external, location_only, constant_outside, loop, graphs, function, training, sparse,
        add_domain, node_domain, typed_data, huge_shape, negative_shape, empty_product, strings,
        equal_names, many_nodes, long_name, two_types, two_attributes, reference,
    )
}  # fmt: skip


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_parts_that_no_export_writes_are_refused(change: Callable[[Any], None]) -> None:
    model = tiny_model()
    read_onnx(model.SerializeToString())
    change(model)
    with pytest.raises(ValueError) as raised:
        read_onnx(model.SerializeToString())
    assert len(str(raised.value)) < 200


def test_an_address_in_memory_is_refused() -> None:
    """OpenVINO reads such a weight from the memory of the process that loads the graph."""
    model = tiny_model()
    external(model, "*/_ORT_MEM_ADDR_/*")
    with pytest.raises(ValueError, match="outside of the file"):
        read_onnx(model.SerializeToString())


def test_messages_that_occur_twice_are_refused() -> None:
    """Parsers of protobuf join them, so the last one alone is not what an engine reads."""
    data = tiny_model().SerializeToString()
    with pytest.raises(ValueError, match="graph twice"):
        read_onnx(data + data)
    model = tiny_model()
    more = onnx.ModelProto()
    more.graph.input.add(name="").type.tensor_type.shape.dim.add(dim_value=5)
    joined = model.graph.input[0].SerializeToString() + more.graph.input[0].SerializeToString()
    start = data.index(model.graph.input[0].SerializeToString())
    assert onnx.ValueInfoProto.FromString(joined).type.tensor_type.shape.dim[-1].dim_value == 5
    with pytest.raises(ValueError):
        read_onnx(data[: start - 1] + bytes([len(joined)]) + joined)


def test_a_field_of_another_type_is_refused() -> None:
    """Parsers of protobuf skip it, so an engine would read an earlier value."""
    node = helper.make_node("Resize", ["x", "w"], ["y"]).SerializeToString()
    forged = node + bytes([4 << 3 | 5]) + b"Relu"
    assert onnx.NodeProto.FromString(forged).op_type == "Resize"
    graph = bytes([1 << 3 | 2, len(forged)]) + forged
    with pytest.raises(ValueError, match="another type"):
        read_onnx(bytes([7 << 3 | 2, len(graph)]) + graph)


@pytest.mark.parametrize("field", [b"\x6a\x00", b"\x0a\x00"], ids=["ignored", "nodes"])
def test_many_small_fields_are_refused(field: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_reader, "MAX_GRAPH_FIELDS", 100)
    data = tiny_model().SerializeToString()
    read_onnx(data)
    with pytest.raises(ValueError, match="fields"):
        read_onnx(data + bytes([7 << 3 | 2, 120]) + field * 60)


def test_groups_and_endless_numbers_are_refused() -> None:
    for data in (b"\x0b\x0c", b"\x08" + b"\xff" * 11, b"\x3a\x80\x80\x80\x80\x7f", b"\x08"):
        with pytest.raises(ValueError):
            read_onnx(data)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_mutated_file_is_refused_or_read_as_onnx_reads_it(
    data: st.DataObject,
) -> None:
    content = bytearray(tiny_model().SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        ours = read_onnx(bytes(content))
    except ValueError:
        return
    model = onnx.load_from_string(bytes(content))
    assert [node.operator for node in ours.nodes] == [node.op_type for node in model.graph.node]
    assert [node.inputs for node in ours.nodes] == [tuple(n.input) for n in model.graph.node]
    for weight in model.graph.initializer:
        assert ours.weights[weight.name].data == weight.raw_data
        assert not weight.external_data


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        read_onnx(data)
