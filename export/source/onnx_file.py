"""ONNX files of classifiers from any exporter, read and checked before an engine sees them.

Sources: onnx.proto and docs/ExternalData.md of https://github.com/onnx/onnx.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
)
from onnx.external_data_helper import load_external_data_for_model
from onnx.inliner import inline_local_functions
from onnx.numpy_helper import from_array, to_array

from resdeploy.bundle.onnx_reader import MAX_NODES
from resdeploy.errors import CheckpointError, one_line_reason
from resdeploy.filesystem import read_limited, sha256
from resdeploy.train.checkpoint.file_kind import AN_ONNX_GRAPH, describe_foreign_file

MAX_BYTES = (1 << 31) - 1  # of a message of protobuf
MAX_WEIGHT_BYTES = 4 << 30
OLDEST_OPSET = 11
LONGEST_NAME = 80  # characters of a node's name, which a report shows
OTHER_FLOATS: dict[int, str] = {
    TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16", TensorProto.DOUBLE: "float64"
}  # fmt: skip
CHANNELS = (3, 1)
PLAIN_DOMAINS = ("", "ai.onnx")
QUANTIZED = (
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul",
    "ConvInteger", "MatMulInteger",
)  # fmt: skip
RANDOM = (
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
    "RandomUniformLike",
)  # fmt: skip
# Since this version of the format, weights need not be listed among the inputs.
OLDEST_IR_VERSION = 4
CLASSIFIER_HINT = (
    "export the classifier alone: one input of images (batch, channels, height, width) or (batch, "
    "height, width, channels), and one output (batch, classes)"
)
COPY_HINT = "copy or download the file again, with the files of weights beside it"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInput:
    """The input of a graph for images."""

    name: str
    channels: int
    size: tuple[int, int] | None
    """Height and width in pixels; None if they are not fixed."""
    batch: int | None
    """Number of images of a call; None if any number is possible."""
    is_nhwc: bool
    """True for (batch, height, width, channels)."""
    is_uint8: bool
    """True for pixels from 0 to 255, whose normalisation is a part of the graph."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxFile:
    """A graph in float32 that classifies images."""

    path: Path
    sha256: str
    model: ModelProto
    """Graph with all weights in memory, in float32, without functions and subgraphs."""
    input: ImageInput
    output: str
    """Name of the output."""
    notes: tuple[str, ...]
    """Sentences on what was converted."""


def read_onnx_file(path: Path) -> OnnxFile:
    """Read an ONNX file, with its external weights if it has any.

    Raises:
        CheckpointError: It is damaged, uses something that is not supported, or is no classifier
            of images.
    """
    if (kind := describe_foreign_file(path)) not in (None, AN_ONNX_GRAPH):
        raise CheckpointError(f"{path} is not an ONNX file: it is {kind}", COPY_HINT)
    content = read_limited(path, MAX_BYTES, CheckpointError, "give a smaller file")
    model = ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise CheckpointError(f"{path} is not an ONNX file, or it is damaged", COPY_HINT) from error
    return check_model(path, model, sha256(content))


def check_model(path: Path, model: ModelProto, digest: str) -> OnnxFile:
    """Return a graph in float32, with its weights in memory, if it can be a classifier of images.

    Args:
        path: Path of the file, for messages; its folder may hold external weights.
        model: Content of the file, which is modified.
        digest: SHA-256 of the file.

    Raises:
        CheckpointError: As for `read_onnx_file`.
    """
    _check_versions(path, model)
    model.ir_version = max(model.ir_version, OLDEST_IR_VERSION)
    _read_weights(path, model)
    try:
        model = inline_local_functions(model) if len(model.functions) else model
    except Exception as error:
        reason = one_line_reason(error)
        raise CheckpointError(f"the functions of {path} cannot be inlined: {reason}") from error
    _check_nodes(path, model.graph)
    _sort_nodes(path, model.graph)
    _name_nodes(model.graph)
    _clear_unknown_sizes(model.graph)
    notes = _to_float32(model)
    image = _image_input(path, model.graph)
    return OnnxFile(
        path=path, sha256=digest, model=model, input=image,
        output=_only_output(path, model.graph), notes=notes,
    )  # fmt: skip


def _check_versions(path: Path, model: ModelProto) -> None:
    plain = (entry.version for entry in model.opset_import if entry.domain in PLAIN_DOMAINS)
    versions = sorted(set(plain))
    if not model.graph.node or not versions or not versions[0]:
        raise CheckpointError(f"{path} is not an ONNX file, or it is empty", COPY_HINT)
    if len(versions) > 1:
        raise CheckpointError(
            f"{path} names {len(versions)} versions of the operators: {versions[0]} and "
            f"{versions[-1]}",
            "export the network again with opset_version=20",
        )
    opset, newest = versions[0], onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        raise CheckpointError(
            f"{path} uses version {opset} of the operators; {OLDEST_OPSET} to {newest} are read",
            "export the network again with opset_version=20",
        )


def _read_weights(path: Path, model: ModelProto) -> None:
    """Load the weights in other files, which must be in the folder of the graph."""
    folder, total = path.resolve().parent, 0
    for tensor in _all_tensors(model):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        name = entries.get("location", "")
        file = folder / name
        if not name or Path(name).is_absolute() or folder not in file.resolve().parents:
            raise CheckpointError(
                f"{path} keeps weights outside of its folder: {name!r:.80}",
                "save the graph and its weights into one folder",
            )
        if not file.is_file():
            raise CheckpointError(
                f"{path} keeps weights in {name!r:.80}, which is not there", COPY_HINT
            )
        total += tensor.ByteSize() + int(np.prod(list(tensor.dims), dtype=np.float64)) * 4
        if total > MAX_WEIGHT_BYTES:
            raise CheckpointError(f"{path} has more than {MAX_WEIGHT_BYTES >> 30} GiB of weights")
    try:
        load_external_data_for_model(model, str(folder))
    except Exception as error:  # the library raises its checker's errors, OSError and ValueError
        reason = one_line_reason(error)
        raise CheckpointError(
            f"the weights of {path} cannot be read: {reason}", COPY_HINT
        ) from error


def _all_tensors(model: ModelProto) -> Iterator[TensorProto]:
    pending = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while pending:
        graph = pending.pop()
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        nodes += graph.node
        while nodes:
            for attribute in nodes.pop().attribute:
                if attribute.type == AttributeProto.TENSOR:
                    yield attribute.t
                yield from attribute.tensors
                pending += [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]


def _check_nodes(path: Path, graph: GraphProto) -> None:
    if len(graph.node) > MAX_NODES:
        raise CheckpointError(f"{path} has more than {MAX_NODES:,} nodes")
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            constants.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
    if graph.sparse_initializer or any(
        attribute.HasField("sparse_tensor") for node in graph.node for attribute in node.attribute
    ):
        raise CheckpointError(f"{path} has sparse weights", "save them as plain tensors")
    for node in graph.node:
        if node.domain not in PLAIN_DOMAINS:
            raise CheckpointError(
                f"{path} uses the operator {node.op_type!r:.60} of {node.domain!r:.60}; only those "
                "of ONNX itself are read",
                "export the network without operators of another library"
                if node.domain != "ai.onnx.ml"
                else "resdeploy is for neural networks that classify images",
            )
        if any(a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for a in node.attribute):
            raise CheckpointError(
                f"{path} contains control flow ({node.op_type})",
                "export the network for a fixed image size, without branches or loops",
            )
        if node.op_type in RANDOM or _trains(node, constants):
            raise CheckpointError(
                f"{path} computes something else in each call: its {node.op_type} is that of a "
                "training",
                "export the network in evaluation mode (PyTorch: network.eval())",
            )
        if node.op_type in QUANTIZED:
            raise CheckpointError(
                f"{path} is quantised already ({node.op_type})",
                "give the graph in float32, which resdeploy quantises itself",
            )


def _trains(node: NodeProto, constants: Mapping[str, TensorProto]) -> bool:
    """Return True for a batch norm of the images of a call, and a dropout that drops values."""
    if node.op_type == "BatchNormalization":
        return any(a.name == "training_mode" and a.i for a in node.attribute)
    if node.op_type != "Dropout" or len(node.input) < 3 or not node.input[2]:
        return False
    mode = constants.get(node.input[2])
    return mode is None or bool(to_array(mode).any())


def _sort_nodes(path: Path, graph: GraphProto) -> None:
    """Sort the nodes in place if one comes before another that it reads; engines do that, too."""
    producers = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    read = {
        index: [producers[name] for name in node.input if name in producers]
        for index, node in enumerate(graph.node)
    }
    if all(producer < index for index, producers in read.items() for producer in producers):
        return
    try:
        order = [*TopologicalSorter(read).static_order()]
    except CycleError as error:
        raise CheckpointError(f"{path} is damaged: its nodes form a cycle", COPY_HINT) from error
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    del graph.node[:]
    graph.node.extend(nodes[index] for index in order)


def _name_nodes(graph: GraphProto) -> None:
    """Give each node a name of its own, of printable characters, in place."""
    counts: Counter[str] = Counter()
    for node in graph.node:
        parts = re.findall(r"[\w.-]+", node.name or node.op_type.lower(), re.ASCII)
        name = ".".join(parts)[:LONGEST_NAME] or "node"
        counts[name] += 1
        node.name = name if counts[name] == 1 else f"{name}_{counts[name]}"


def _to_float32(model: ModelProto) -> tuple[str, ...]:
    """Convert all values in other types of float to float32, in place; return a note on them."""
    found: set[str] = set()
    for tensor in _all_tensors(model):
        if tensor.data_type in OTHER_FLOATS:
            found.add(OTHER_FLOATS[tensor.data_type])
            name = tensor.name
            tensor.CopyFrom(from_array(to_array(tensor).astype(np.float32), name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i in OTHER_FLOATS:
                found.add(OTHER_FLOATS[attribute.i])
                attribute.i = TensorProto.FLOAT
    for value in (*model.graph.input, *model.graph.output):
        kind = value.type.tensor_type.elem_type
        if kind in OTHER_FLOATS:
            found.add(OTHER_FLOATS[kind])
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    if not found:
        return ()
    del model.graph.value_info[:]
    return (f"the graph is in {' and '.join(sorted(found))}; it is computed in float32",)


def _clear_unknown_sizes(graph: GraphProto) -> None:
    """Clear the sizes of inputs that an exporter wrote as 0 or -1, in place."""
    for value in graph.input:
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.HasField("dim_value") and dimension.dim_value <= 0:
                dimension.Clear()


def _image_input(path: Path, graph: GraphProto) -> ImageInput:
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs[:5])
        raise CheckpointError(f"{path} has {len(inputs)} inputs ({names:.80})", CLASSIFIER_HINT)
    (value,) = inputs
    kind, sizes = value.type.tensor_type.elem_type, _sizes(value)
    found = [(axis, sizes[axis]) for axis in (1, 3) if len(sizes) == 4 and sizes[axis] in CHANNELS]
    if kind not in (TensorProto.FLOAT, TensorProto.UINT8) or len(found) != 1:
        shape = ", ".join("?" if size is None else str(size) for size in sizes)
        name = TensorProto.DataType.Name(kind).lower()
        raise CheckpointError(
            f"the input {value.name!r:.60} of {path} is {name} ({shape}), and not images with 3 "
            "channels or 1",
            CLASSIFIER_HINT,
        )
    axis, channels = found[0]
    height, width = sizes[2:4] if axis == 1 else sizes[1:3]
    assert channels is not None
    return ImageInput(
        name=value.name,
        channels=channels,
        size=(height, width) if height is not None and width is not None else None,
        batch=sizes[0],
        is_nhwc=axis == 3,
        is_uint8=kind == TensorProto.UINT8,
    )


def _sizes(value: ValueInfoProto) -> list[int | None]:
    """Return the sizes of a tensor; None for those that are not fixed."""
    return [
        dimension.dim_value if dimension.HasField("dim_value") else None
        for dimension in value.type.tensor_type.shape.dim
    ]


def _only_output(path: Path, graph: GraphProto) -> str:
    if len(graph.output) != 1:
        names = ", ".join(value.name for value in graph.output[:5])
        raise CheckpointError(
            f"{path} has {len(graph.output)} outputs ({names:.80}); a classifier has one",
            CLASSIFIER_HINT,
        )
    (value,) = graph.output
    kind = value.type.WhichOneof("value") or "tensor_type"  # it is inferred if it is not stated
    element = value.type.tensor_type.elem_type
    if kind != "tensor_type" or element not in (TensorProto.UNDEFINED, TensorProto.FLOAT):
        name = TensorProto.DataType.Name(element).lower()
        raise CheckpointError(
            f"the output {value.name!r:.60} of {path} is "
            f"{name if kind == 'tensor_type' else kind.removesuffix('_type')}, and not logits in "
            "float",
            CLASSIFIER_HINT,
        )
    return str(value.name)
