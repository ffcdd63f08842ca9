"""A network that is known as a graph only: its normal form, and its logits in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import torch
from onnx import GraphProto, ModelProto, TensorProto, helper

from resdeploy.bundle.golden import Float32Array
from resdeploy.bundle.graph_check import check_onnx
from resdeploy.bundle.manifest import GRAPH_KIND, GoldenReference
from resdeploy.errors import CheckpointError, ExportError, one_line_reason
from resdeploy.export.graph.layer_rules import shape_of
from resdeploy.export.graph.normal_form import GRAPH_HINT, normal_form, with_normalisation
from resdeploy.export.graph.to_onnx import OPSET, normalisation_to_onnx, to_bytes
from resdeploy.export.source.onnx_file import CLASSIFIER_HINT, OnnxFile, read_onnx_file
from resdeploy.images.preprocessing import Channels, Preprocessing, UInt8Array, numbers_text
from resdeploy.images.preprocessing_choice import DEFAULT_IMAGE_SIZE, StatedSettings
from resdeploy.images.preprocessing_files import settings_beside
from resdeploy.images.preprocessing_settings import PreprocessingSettings
from resdeploy.train.model.resnet import Normalize

if TYPE_CHECKING:
    import onnx_ir as ir

# Functions that do not change the order of the logits, and that a graph may end in.
PROBABILITIES = ("Softmax", "LogSoftmax", "Sigmoid")
MOVES = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze")  # which may follow them
SUM_TOLERANCE = 1e-3  # of probabilities, in float16 or clipped to a smallest value, too


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphNetwork:
    """A classifier in an ONNX file."""

    file: OnnxFile
    logits_model: ModelProto
    """Graph from float32 images (batch, C, H, W) to logits (batch, K)."""
    classes: int
    notes: tuple[str, ...]
    gives_logits: bool
    """False if the file's own output are probabilities."""
    labels: tuple[str, ...] | None = None
    stated: tuple[StatedSettings, ...] = ()
    """Pre-processing that was stated with the network."""
    run: Callable[[Float32Array], Float32Array] | None = None
    """Function of PyTorch from normalised images (N, C, H, W) to logits (N, K); None if the network
    is known as a graph only."""

    @property
    def path(self) -> Path:
        return self.file.path

    @property
    def sha256(self) -> str:
        return self.file.sha256

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def default_size(self) -> int:
        return DEFAULT_IMAGE_SIZE

    @property
    def default_channels(self) -> Channels:
        return Channels.GRAY if self.file.input.channels == 1 else Channels.RGB

    def stated_settings(self) -> Sequence[StatedSettings]:
        if self.stated:
            return self.stated
        beside = settings_beside(self.path)
        found = [(beside[0], f"{beside[1]} beside the graph")] if beside else []
        size = self.file.input.size
        own = PreprocessingSettings(
            image_size=size[0] if size and size[0] == size[1] else size,
            channels=Channels.GRAY if self.file.input.channels == 1 else None,
        )
        if self.file.input.is_uint8:
            count = self.file.input.channels
            own = PreprocessingSettings(
                image_size=own.image_size, channels=own.channels, value_range=255,
                mean=(0.0,) * count, std=(1.0,) * count,
            )  # fmt: skip
        found.append((own, "the graph"))
        return [StatedSettings(settings=s, place=place, is_checkpoint=True) for s, place in found]

    def facts(self) -> dict[str, Any]:
        return {"name": self.name, "classes": self.classes, "kind": GRAPH_KIND}

    def classifier(self, preprocessing: Preprocessing) -> GraphClassifier:
        """Return the network with its pre-processing.

        Raises:
            CheckpointError: The graph takes another number of channels, another size or raw pixels.
        """
        scale = (preprocessing.value_range, {*preprocessing.mean}, {*preprocessing.std})
        if self.file.input.is_uint8 and scale != (255, {0.0}, {1.0}):
            raise CheckpointError(
                f"{self.path} takes uint8 pixels and normalises them itself, but the "
                f"pre-processing would, too: mean {numbers_text(preprocessing.mean)}, std "
                f"{numbers_text(preprocessing.std)}, values 0 to {preprocessing.value_range}",
                "leave --mean, --std and --value-range out, and a file that states them",
            )
        given, taken = len(preprocessing.mean), self.file.input.channels
        if given != taken:
            raise CheckpointError(
                f"{self.path} takes images of {taken} channels, but the pre-processing gives "
                f"{given}: {preprocessing.channels.value}",
                f"set --channels {'gray' if taken == 1 else 'rgb'}",
            )
        size = self.file.input.size
        if size is not None and tuple(preprocessing.size) != size:
            raise CheckpointError(
                f"{self.path} takes images of {size[0]}x{size[1]} pixels only",
                "leave --image-size out, or export the graph again for the other size",
            )
        return GraphClassifier(self, preprocessing)


def load_graph_network(path: Path) -> GraphNetwork:
    """Read an ONNX file as a network to export.

    Raises:
        CheckpointError: It cannot be read, or is no classifier of images.
        ExportError: Its graph cannot be converted.
    """
    return graph_network(read_onnx_file(path))


def graph_network(file: OnnxFile) -> GraphNetwork:
    """Return the network in a checked ONNX file.

    Raises:
        CheckpointError: Its output has another shape than logits.
        ExportError: Its graph cannot be converted.
    """
    path = file.path
    model, notes = _without_softmax(file)
    height, width = file.input.size or (DEFAULT_IMAGE_SIZE, DEFAULT_IMAGE_SIZE)
    shape = (file.input.channels, height, width)
    batch = file.input.batch
    converted = normal_form(model, shape, path.stem, batch=batch)
    sizes = shape_of(converted.graph.outputs[0])
    if len(sizes) > 2 and sizes[1:].count(1) == len(sizes) - 2:  # such as (batch, classes, 1, 1)
        _flatten_output(model.graph)
        converted = normal_form(model, shape, path.stem, batch=batch)
        sizes = shape_of(converted.graph.outputs[0])
    if len(sizes) != 2 or sizes[1] < 2:
        shown = f"({', '.join('?' if size < 0 else str(size) for size in sizes)})"
        raise CheckpointError(
            f"the output {file.output!r:.60} of {path} has the shape {shown}, and not "
            "(batch, classes)",
            CLASSIFIER_HINT,
        )
    return GraphNetwork(
        file=file, logits_model=model, classes=sizes[1], notes=(*file.notes, *notes),
        gives_logits=not notes,
    )  # fmt: skip


def _without_softmax(file: OnnxFile) -> tuple[ModelProto, tuple[str, ...]]:
    """Return a copy with float images (batch, C, H, W), whose output are logits, and notes."""
    model, notes = ModelProto(), list[str]()
    model.CopyFrom(file.model)
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}
    last = producers.get(file.output)
    while last is not None and last.op_type in MOVES:
        last = producers.get(last.input[0])
    over_images = last is not None and any(a.name == "axis" and a.i == 0 for a in last.attribute)
    if last is not None and last.op_type in PROBABILITIES and not over_images:
        notes.append(
            f"the output is a {last.op_type.lower()}; the logits of the bundle are its input"
            + ", and predictions show a softmax of them" * (last.op_type == "Sigmoid")
        )
        last.op_type = "Identity"
        del last.attribute[:]
    _keep_input(graph, file.input.name)
    value = graph.input[0]
    value.type.tensor_type.elem_type = TensorProto.FLOAT
    if file.input.is_nhwc:
        dimensions = value.type.tensor_type.shape.dim
        batch, height, width, channels = list(dimensions)
        order = (batch, channels, height, width)
        copies = [type(size).FromString(size.SerializeToString()) for size in order]
        del dimensions[:]
        dimensions.extend(copies)
        inner = f"{value.name}.nhwc"
        for node in graph.node:
            node.input[:] = [inner if name == value.name else name for name in node.input]
        transpose = helper.make_node("Transpose", [value.name], [inner], perm=(0, 2, 3, 1))
        graph.node.insert(0, transpose)
    return model, tuple(notes)


def _flatten_output(graph: GraphProto) -> None:
    """Give the output of a graph two axes, in place."""
    (value,) = graph.output
    inner = f"{value.name}.maps"
    for node in graph.node:
        node.input[:] = [inner if name == value.name else name for name in node.input]
        node.output[:] = [inner if name == value.name else name for name in node.output]
    graph.node.append(helper.make_node("Flatten", [inner], [value.name], axis=1))
    value.type.tensor_type.ClearField("shape")


def _keep_input(graph: GraphProto, name: str) -> None:
    """Remove all inputs but one; the others are initialisers, which old files list as inputs."""
    for index in reversed(range(len(graph.input))):
        if graph.input[index].name != name:
            del graph.input[index]


@dataclass(frozen=True, slots=True)
class GraphClassifier:
    """A graph with its pre-processing, whose reference is ONNX Runtime without optimisations."""

    network: GraphNetwork
    preprocessing: Preprocessing

    @property
    def reference(self) -> GoldenReference:
        return GoldenReference.PYTORCH if self.network.run else GoldenReference.SOURCE_GRAPH

    def logits(self, images: UInt8Array) -> Float32Array:
        """Return the logits (N, K) of images (N, H, W, 3), computed one at a time.

        Raises:
            ExportError: ONNX Runtime cannot run the graph, or its output are probabilities.
        """
        normalize = Normalize(self.preprocessing)
        inputs = [normalize(torch.from_numpy(image[None])).numpy() for image in images]
        if self.network.run is not None:
            logits = np.concatenate([self.network.run(values) for values in inputs])
        else:
            logits = self._run_graph(inputs)
        if not np.isfinite(logits).all():
            raise ExportError(
                f"the logits of {self.network.path} are not finite numbers",
                "check that its training did not diverge, and that the file is not damaged",
            )
        sums = logits.sum(axis=1, dtype=np.float64)
        if self.network.gives_logits and logits.min() >= 0 and any(
            np.allclose(sums, total, rtol=SUM_TOLERANCE) for total in (1, 100)
        ):  # fmt: skip
            raise ExportError(
                f"the outputs of {self.network.path} are probabilities, not logits: their sum is "
                f"{sums[0]:.3g} for each image",
                "export the network without the softmax at its end",
            )
        return logits

    def _run_graph(self, inputs: Sequence[Float32Array]) -> Float32Array:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        try:
            session = onnxruntime.InferenceSession(
                self.network.logits_model.SerializeToString(), options,
                providers=["CPUExecutionProvider"],
            )  # fmt: skip
            found = []
            name, batch = self.network.file.input.name, self.network.file.input.batch or 1
            for values in inputs:
                (logits,) = session.run(None, {name: np.repeat(values, batch, axis=0)})
                found.append(np.asarray(logits, dtype=np.float32).reshape(batch, -1)[:1])
        except Exception as error:  # ONNX Runtime has many exception types of its own
            raise ExportError(
                f"ONNX Runtime cannot run {self.network.path}: {one_line_reason(error)}"
            ) from error
        return np.concatenate(found)

    def to_onnx(self) -> ir.Model:
        """Return the graph of a bundle.

        Raises:
            ExportError: The graph cannot be converted, or no engine may run the result.
        """
        height, width = self.preprocessing.size
        shape = (self.network.file.input.channels, height, width)
        network, taken = self.network, self.network.file.input
        body = normal_form(network.logits_model, shape, network.name, batch=taken.batch)
        is_bgr = self.preprocessing.channels is Channels.BGR
        model = with_normalisation(body, normalisation_to_onnx(self.preprocessing), flipped=is_bgr)
        try:  # before the long work of an export
            check_onnx(
                to_bytes(model), opset=OPSET, image_size=(height, width), classes=network.classes
            )
        except ValueError as error:
            raise ExportError(
                f"{network.path} cannot be exported, because resdeploy would not run its graph: "
                f"{error}",
                GRAPH_HINT,
            ) from error
        return model
