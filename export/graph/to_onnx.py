"""A trained network as an ONNX graph whose nodes are named after the modules they come from.

`layer1.0.conv1` is a node and the tensor it gives, in every graph of the bundle. Placement,
calibration files and reports speak of tensors by these names.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch
from onnxscript import opset20 as op
from torch.nn.utils.fusion import fuse_conv_bn_eval

from resdeploy.bundle.manifest import INPUT_NAME, OUTPUT_NAME
from resdeploy.errors import ExportError
from resdeploy.train.model.resnet import Classifier, normed_convolutions

if TYPE_CHECKING:
    from collections.abc import Sequence

# Float16 scales need operator set 19 or later, and JetPack 6 has TensorRT 10.3: newer is no gain.
OPSET = 20
IR_VERSION = 9
# Modules that become one node each; the node takes the module's name alone.
SINGLE_NODE = ("Conv", "Gemm", "Relu", "MaxPool", "GlobalAveragePool")


def to_onnx(classifier: Classifier, image_size: int) -> ir.Model:
    """Export `classifier` with batch norm folded and a dynamic batch.

    The graph reads `images`, uint8 (batch, image_size, image_size, 3), and gives `logits`,
    float32 (batch, classes). `classifier` itself is left as it was.

    Raises:
        ExportError: PyTorch's exporter refused, or its graph is not the one expected.
    """
    folded = fold_batch_norm(classifier)
    # A factor per column, not only per channel: where ONNX Runtime turns the graph to NHWC, it
    # works in runs of the last two axes, and runs of three numbers took 6 % of the INT8 latency.
    for name, factor in list(folded.normalize.named_buffers()):
        row = factor.expand(-1, -1, -1, image_size).contiguous()
        folded.normalize.register_buffer(name, row)
    # Two images: with one, the exporter would take the batch for a constant.
    example = torch.zeros((2, image_size, image_size, 3), dtype=torch.uint8)
    with _quiet_exporter():
        try:
            program = torch.onnx.export(
                folded,
                (example,),
                dynamo=True,
                optimize=False,
                verbose=False,
                opset_version=OPSET,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                custom_translation_table={torch.ops.aten.mean.dim: _global_average_pool},
            )
        except torch.onnx.OnnxExporterError as error:
            raise ExportError(
                f"PyTorch could not export the network: {str(error).splitlines()[0]}",
                "install the versions in constraints.txt",
            ) from error
    assert program is not None  # dynamo=True without a file name returns the program
    model = program.model
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.IdentityEliminationPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.ShapeInferencePass()(model)
    name_after_modules(model.graph)
    _drop_metadata(model)
    model.ir_version = IR_VERSION
    model.producer_name = "resdeploy"
    model.graph.name = classifier.network.architecture.name
    return model


def fold_batch_norm(classifier: Classifier) -> Classifier:
    """A copy for inference in which every convolution has absorbed the norm behind it, in FP32."""
    folded = copy.deepcopy(classifier).float().cpu().eval()
    for name, convolution, norm_name, norm in list(normed_convolutions(folded)):
        folded.set_submodule(name, fuse_conv_bn_eval(convolution, norm))
        folded.set_submodule(norm_name, torch.nn.Identity())
    return folded


def to_bytes(model: ir.Model) -> bytes:
    """The file's content, after the checker found nothing wrong with it.

    Raises:
        ExportError: the graph breaks a rule of ONNX, or its versions are not the pinned ones.
    """
    proto = ir.to_proto(model)
    versions = (proto.ir_version, {entry.domain: entry.version for entry in proto.opset_import})
    if versions != (IR_VERSION, {"": OPSET}):
        raise ExportError(
            f"the graph needs IR and operator versions {versions}, not {IR_VERSION} and {OPSET}",
            "install the versions in constraints.txt",
        )
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"the graph is not valid ONNX: {str(error).splitlines()[0]}", "please report this"
        ) from error
    return cast("bytes", proto.SerializeToString(deterministic=True))


def with_outputs(model: ir.Model, tensors: Sequence[str]) -> bytes:
    """The same graph with more outputs, for looking at its activations."""
    observed = model.clone()
    values = {value.name: value for node in observed.graph for value in node.outputs}
    observed.graph.outputs.extend(values[tensor] for tensor in tensors)
    return cast("bytes", ir.to_proto(observed).SerializeToString())


def name_after_modules(graph: ir.Graph) -> None:
    """Give nodes, their outputs and the weights the names of the network's modules."""
    seen: Counter[str] = Counter()
    for node in graph:
        # Such as ['', 'network', 'network.layer1', ..., 'network.layer1.0.conv1', 'conv2d_1'].
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "['', '']")
        module = scopes.strip("[]").replace("'", "").split(", ")[-2]
        module = module.removeprefix("network").removeprefix(".")
        single = node.op_type in SINGLE_NODE and module
        name = module if single else f"{module}.{node.op_type.lower()}".lstrip(".")
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"
        if not node.outputs[0].is_graph_output():
            node.outputs[0].name = node.name
    for value in list(graph.initializers.values()):
        assert value.name is not None
        graph.initializers.pop(value.name)
        if "." in value.name:
            value.name = value.name.removeprefix("network.")
        else:  # a constant of the exporter's, such as the bounds of a slice
            use = next(iter(value.uses()))
            value.name = f"{use.node.name}.input{use.idx}"
        graph.initializers[value.name] = value


def _global_average_pool(x: Any, dim: Sequence[int], keepdim: bool = False) -> Any:
    # The network averages over H and W only; as a pool, integer engines can run it.
    pooled: Any = op.GlobalAveragePool(x)
    return op.Flatten(pooled, axis=1)


def _drop_metadata(model: ir.Model) -> None:
    # The exporter records stack traces, which hold the paths of whoever exported.
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter warns about torchvision's absence and its own deprecations."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
