"""Export of a trained network to ONNX, with nodes named after the modules of the network.

For example, `layer1.0.conv1` is the name of a node and of its output in every graph of the bundle.
Placement, calibration files and reports use these names.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch
from onnxscript import opset20 as op

from resdeploy.bundle.manifest import INPUT_NAME, OUTPUT_NAME
from resdeploy.errors import ExportError, one_line_reason, remedy_for
from resdeploy.images.preprocessing import ImageSize, Preprocessing, height_and_width
from resdeploy.train.model.resnet import (
    Classifier,
    Normalize,
    normed_convolutions,
    rgb_normalisation,
    with_rgb_weights,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

# Float16 scales need operator set 19 or later. For TensorRT 10.3 of JetPack 6, a set newer than 20
# has no advantage.
OPSET = 20
IR_VERSION = 9
VERSIONS_HINT = "install the versions in constraints.txt, and report the error if it persists"
# Nodes of these types represent a whole module, so their name is that of the module.
SINGLE_NODE = ("Conv", "Gemm", "Relu", "MaxPool", "GlobalAveragePool")


def to_onnx(classifier: Classifier, image_size: ImageSize) -> ir.Model:
    """Export `classifier` with folded batch norm and a dynamic batch size.

    The graph computes `logits`, float32 (batch, classes), from `images`, uint8 RGB (batch, height,
    width, 3). `classifier` is not changed.

    Raises:
        ExportError: PyTorch's exporter failed.
    """
    folded = with_rgb_weights(fold_batch_norm(classifier))
    _repeat_factors(folded.normalize, image_size)
    model = _export(folded, image_size)
    model.graph.name = classifier.network.architecture.name
    return model


def normalisation_to_onnx(preprocessing: Preprocessing) -> ir.Model:
    """Return the graph of a normalisation, uint8 (batch, height, width, 3) to (batch, C, H, W).

    For BGR, it gives the channels as RGB: the weights that read them must be flipped.

    Raises:
        ExportError: PyTorch's exporter failed.
    """
    normalize = rgb_normalisation(Normalize(preprocessing))
    _repeat_factors(normalize, preprocessing.image_size)
    outer = torch.nn.Sequential(OrderedDict(normalize=normalize))
    return _export(outer, preprocessing.image_size)


def _repeat_factors(normalize: Normalize, image_size: ImageSize) -> None:
    """Repeat the factors of the normalisation for each column, in place.

    ONNX Runtime's NHWC kernels then work on runs of whole rows. With runs of three numbers, they
    took 6 % of the INT8 latency.
    """
    _, width = height_and_width(image_size)
    for name, factor in list(normalize.named_buffers()):
        normalize.register_buffer(name, factor.expand(-1, -1, -1, width).contiguous())


def _export(module: torch.nn.Module, image_size: ImageSize) -> ir.Model:
    """Return the graph of a module that reads uint8 images (batch, height, width, 3)."""
    height, width = height_and_width(image_size)
    # With a batch of one, the exporter would make the batch size a constant.
    example = torch.zeros((2, height, width, 3), dtype=torch.uint8)
    model = export_program(module, example, "the network", optimize=False).model
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.IdentityEliminationPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.ShapeInferencePass()(model)
    name_after_modules(model.graph)
    clear_metadata(model)
    model.ir_version = IR_VERSION
    model.producer_name = "resdeploy"
    return model


def export_program(
    module: torch.nn.Module | torch.export.ExportedProgram, example: torch.Tensor | None, name: str,
    *, optimize: bool = True,
) -> torch.onnx.ONNXProgram:  # fmt: skip
    """Return the ONNX program of a module with one input, whose first axis is the batch.

    A program of `torch.export` needs no example, and keeps the sizes that it was traced with.

    Raises:
        ExportError: PyTorch's exporter failed.
    """
    with _quiet_exporter():
        try:
            program = torch.onnx.export(
                module,
                () if example is None else (example,),
                dynamo=True,
                optimize=optimize,
                verbose=False,
                opset_version=OPSET,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_shapes=None if example is None else ({0: torch.export.Dim("batch")},),
                custom_translation_table={
                    torch.ops.aten.mean.dim: _global_average_pool,
                    torch.ops.aten.div.Tensor_mode: _divide_integers,
                    torch.ops.aten.amax.default: _global_max_pool,
                }
                if not optimize
                else None,
            )
        except Exception as error:  # of the exporter, and of the module itself
            cause = error.__cause__ or error  # the error itself describes only the exporter's steps
            raise ExportError(
                f"PyTorch {torch.__version__} could not export {name}: {one_line_reason(cause)}",
                remedy_for(cause, VERSIONS_HINT),
            ) from error
    assert program is not None  # is None only if a file name was passed
    return program


def fold_batch_norm(classifier: Classifier) -> Classifier:
    """Return a float32 copy in which every batch norm is folded into its convolution."""
    folded = copy.deepcopy(classifier).float().cpu().eval()
    for _, convolution, norm_name, norm in list(normed_convolutions(folded)):
        _fold(convolution, norm)
        folded.set_submodule(norm_name, torch.nn.Identity())
    return folded


def _fold(convolution: torch.nn.Conv2d, norm: torch.nn.BatchNorm2d) -> None:
    """Fold a batch norm into its convolution, in place.

    The operations and their order are those of PyTorch's exporter (onnxscript, rewriter/rules/
    common/_fuse_batchnorm.py), so that a checkpoint and its ONNX file give the same bits. They are
    computed with NumPy, whose square roots are exact to the last bit, unlike those of PyTorch.
    """
    state = {name: tensor.numpy() for name, tensor in norm.state_dict().items()}
    weight = convolution.weight.detach().numpy()
    bias = 0 if convolution.bias is None else convolution.bias.detach().numpy()
    factor = state["weight"] / np.sqrt(state["running_var"] + np.float32(norm.eps))
    folded = (bias - state["running_mean"]) * factor + state["bias"]
    convolution.weight.data = torch.from_numpy(weight * factor.reshape(-1, 1, 1, 1))
    convolution.bias = torch.nn.Parameter(torch.from_numpy(folded))


def to_bytes(model: ir.Model) -> bytes:
    """Check a model with ONNX's checker and serialise it.

    Raises:
        ExportError: The graph is not valid ONNX, or its versions are not the pinned ones.
    """
    proto = ir.to_proto(model)
    versions = (proto.ir_version, {entry.domain: entry.version for entry in proto.opset_import})
    if versions != (IR_VERSION, {"": OPSET}):
        raise ExportError(
            f"the graph has the IR and operator set versions {versions}, but {IR_VERSION} and "
            f"{OPSET} are required",
            VERSIONS_HINT,
        )
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"the graph is not valid ONNX: {one_line_reason(error)}", VERSIONS_HINT
        ) from error
    return cast("bytes", proto.SerializeToString(deterministic=True))


def with_outputs(model: ir.Model, tensors: Sequence[str]) -> bytes:
    """Return the serialised model with additional outputs, which expose its activations."""
    observed = model.clone()
    values = ir.convenience.create_value_mapping(observed.graph)
    observed.graph.outputs.extend(values[tensor] for tensor in tensors)
    return cast("bytes", ir.to_proto(observed).SerializeToString())


def name_after_modules(graph: ir.Graph) -> None:
    """Name nodes, their outputs and the weights after the modules of the network."""
    counts: Counter[str] = Counter()
    for node in graph:
        # For example ['', 'network', 'network.layer1', ..., 'network.layer1.0.conv1', 'conv2d_1'].
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "['', '']")
        module = scopes.strip("[]").replace("'", "").split(", ")[-2]
        module = module.removeprefix("network").removeprefix(".")
        is_module = node.op_type in SINGLE_NODE and module
        name = module if is_module else f"{module}.{node.op_type.lower()}".lstrip(".")
        counts[name] += 1
        node.name = name if counts[name] == 1 else f"{name}_{counts[name]}"
        if not node.outputs[0].is_graph_output():
            node.outputs[0].name = node.name
    names = []
    for name, value in graph.initializers.items():
        use = next(iter(value.uses()))
        # Names without a dot are the exporter's constants, such as the bounds of a slice.
        constant = f"{use.node.name}.input{use.idx}"
        names.append(name.removeprefix("network.") if "." in name else constant)
    ir.convenience.rename_values(list(graph.initializers.values()), names)


def _global_average_pool(x: Any, dim: Sequence[int], keepdim: bool = False) -> Any:
    # All means of the network are over H and W. Engines have integer kernels for poolings only.
    pooled: Any = op.GlobalAveragePool(x)
    return op.Flatten(pooled, axis=1)


def _divide_integers(dividend: Any, divisor: Any, rounding_mode: str) -> Any:
    # ONNX divides integers with truncation, which the general translation does in float.
    assert rounding_mode == "trunc"
    quotient: Any = op.Div(dividend, divisor)
    return quotient


def _global_max_pool(x: Any, dim: Sequence[int], keepdim: bool = False) -> Any:
    # All maxima of the network are over H and W. Only MaxPool has integer kernels in every engine.
    pooled: Any = op.MaxPool(x, kernel_shape=list(x.shape[2:]))
    return op.Flatten(pooled[0], axis=1)


def clear_metadata(model: ir.Model) -> None:
    """Remove the exporter's metadata: its stack traces contain paths of the exporting machine."""
    passes.ClearMetadataAndDocStringPass()(model)  # keeps that of the model and of values
    model.metadata_props.clear()
    for value in ir.convenience.create_value_mapping(model.graph).values():
        value.metadata_props.clear()


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Suppress the exporter's warnings about a missing torchvision and its own deprecations."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
