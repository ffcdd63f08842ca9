"""Layers whose results show which products the integer kernels of a processor saturate.

The bias of each output channel makes its exact result 128, so any other result was saturated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from resdeploy.calibration.weight_rounding import LARGEST_PAIR
from resdeploy.export.graph.saturation import added_pairs

EXACT = 128
SIDE = 12  # oneDNN has other kernels for rows of at most four pixels
# Shapes (inputs / groups, rows, columns) and groups. ONNX Runtime has direct convolutions for
# multiples of four channels; the classifier has no rows and columns.
LAYERS: dict[str, tuple[tuple[int, ...], int]] = {
    "2x2-of-8": ((8, 2, 2), 1),
    "2x4-of-4": ((4, 2, 4), 1),
    "1x2-of-12": ((12, 1, 2), 1),
    "1x3-of-6": ((6, 1, 3), 1),
    "1x1-of-16": ((16, 1, 1), 1),
    "1x1-of-5": ((5, 1, 1), 1),
    "3x3-of-3": ((3, 3, 3), 1),
    "3x5-of-1": ((1, 3, 5), 1),
    "3x3-of-4-in-groups": ((4, 3, 3), 4),
    "3x3-of-3-in-groups": ((3, 3, 3), 2),
    "classifier": ((20,), 1),
}
# Programs that run a graph; their arguments are the graph, its inputs, the results and, for
# ONNX Runtime, `exact` to add a session with exact kernels.
ONNX_RUNTIME = """
import sys
import numpy as np
import onnxruntime
inputs, results = dict(np.load(sys.argv[2])), {}
for kind in ("plain", *sys.argv[4:]):
    options = onnxruntime.SessionOptions()
    if kind == "exact":
        options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(
        sys.argv[1], options, providers=["CPUExecutionProvider"]
    )
    for output, values in zip(session.get_outputs(), session.run(None, inputs)):
        results[f"{kind} {output.name}"] = values
np.savez(sys.argv[3], **results)
"""
OPENVINO = """
import sys
import numpy as np
import openvino
core = openvino.Core()
model = core.compile_model(core.read_model(sys.argv[1]), "CPU")
results = model(dict(np.load(sys.argv[2])))
np.savez(sys.argv[3], **{f"plain {o.any_name}": values for o, values in results.items()})
"""


@dataclass(frozen=True, slots=True)
class KernelResults:
    """Results of a program, by kind of session and name of the output."""

    saturated: dict[str, npt.NDArray[np.bool_]]
    """True for each output channel with a wrong result."""

    def check_rule(self) -> None:
        """Check that the rule has every pair found, all of them are found where kernels agree on
        the pairs, and that the largest weights of the rule give exact results.
        """
        for layer, (shape, _) in LAYERS.items():
            found, rule = self.pairs(layer), rule_pairs(layer)
            assert found == rule if shape[0] % 2 == 0 else found <= rule, layer
        assert self.inexact("plain", "largest") == []

    def inexact(self, session: str, weights: str) -> list[str]:
        """Return the layers with a wrong result."""
        return [layer for layer in LAYERS if self.saturated[f"{session} {layer} {weights}"].any()]

    def pairs(self, layer: str) -> set[tuple[int, int]]:
        """Return the pairs of weights that the plain kernels of a layer add in 16 bits.

        A pair counts only if it saturates with both signs and in every group.
        """
        shape, groups = LAYERS[layer]
        found = self.saturated[f"plain {layer} pairs"].reshape(groups, 2, -1)
        assert (found == found[0, 0]).all()
        indices = combinations(range(int(np.prod(shape))), 2)
        return {pair for pair, hit in zip(indices, found[0, 0], strict=True) if hit}


def run_kernels(folder: Path, run: Callable[[list[str]], None]) -> KernelResults:
    """Write the graph of all layers, and run it with a function that takes three files."""
    graph, inputs = layers_graph()
    files = [folder / "layers.onnx", folder / "inputs.npz", folder / "results.npz"]
    files[0].write_bytes(graph)
    np.savez(files[1], allow_pickle=False, **inputs)
    run([str(file) for file in files])
    results = np.load(files[2])
    return KernelResults({
        name: (np.moveaxis(results[name], 1, 0) != EXACT).reshape(results[name].shape[1], -1).any(1)
        for name in results.files
    })  # fmt: skip


def rule_pairs(layer: str) -> set[tuple[int, int]]:
    """Return the pairs of the rule, each with the smaller index first."""
    pairs = added_pairs((1, *LAYERS[layer][0]))
    return {(int(first), int(second)) for first, second in np.sort(pairs, axis=1)}


def layers_graph() -> tuple[bytes, dict[str, npt.NDArray[np.uint8]]]:
    """Return a graph with two layers of each shape, and their inputs."""
    generator = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, npt.NDArray[np.generic]] = {}
    inputs: dict[str, npt.NDArray[np.uint8]] = {}
    for name, (shape, groups) in LAYERS.items():
        everywhere = np.full(groups * shape[0], 255, np.uint8)
        _add(nodes, constants, inputs, f"{name} pairs", _pairs(shape, groups), everywhere, groups)
        mixed = np.where(generator.random(len(everywhere)) < 0.8, 255, generator.integers(0, 256))
        weight = _largest(shape, groups, generator)
        _add(nodes, constants, inputs, f"{name} largest", weight, mixed.astype(np.uint8), groups)
    uint8 = onnx.TensorProto.UINT8
    graph = helper.make_graph(
        nodes, "layers",
        [helper.make_tensor_value_info(n, uint8, array.shape) for n, array in inputs.items()],
        [helper.make_tensor_value_info(n.removesuffix(" in"), uint8, None) for n in inputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 20)]
    model: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    return model, inputs


def _pairs(shape: tuple[int, ...], groups: int) -> npt.NDArray[np.int8]:
    """Return a weight whose output channels hold each pair of weights, just beyond the rule."""
    indices = np.array(list(combinations(range(int(np.prod(shape))), 2)))
    weight = np.zeros((len(indices), int(np.prod(shape))), np.int8)
    np.put_along_axis(weight, indices, [[LARGEST_PAIR // 2, LARGEST_PAIR // 2 + 1]], axis=1)
    return np.tile(
        np.concatenate([weight, -weight]).reshape(-1, *shape), (groups, *[1] * len(shape))
    )


def _largest(
    shape: tuple[int, ...], groups: int, generator: np.random.Generator
) -> npt.NDArray[np.int8]:
    """Return random weights in which most pairs are as large as the rule allows."""
    weight = generator.integers(-127, 128, (64 * groups, int(np.prod(shape))))
    weight[::2] = np.abs(weight[::2])
    for first, second in added_pairs((1, *shape)):
        signs = np.sign(weight[:, second])
        rest = np.where(signs * weight[:, first] > 0, LARGEST_PAIR - np.abs(weight[:, first]), 127)
        weight[:, second] = signs * np.minimum(np.abs(weight[:, second]), rest)
    return weight.astype(np.int8).reshape(-1, *shape)


def _add(
    nodes: list[onnx.NodeProto],
    constants: dict[str, npt.NDArray[np.generic]],
    inputs: dict[str, npt.NDArray[np.uint8]],
    name: str,
    weight: npt.NDArray[np.int8],
    activations: npt.NDArray[np.uint8],
    groups: int,
) -> None:
    """Append a quantised layer whose input channels are constant; all scales are one."""
    sums = weight.reshape(groups, -1, weight.shape[1], int(np.prod(weight.shape[2:]))).sum(
        3, dtype=np.int64
    )
    exact = np.einsum("goi,gi->go", sums, activations.reshape(groups, -1).astype(np.int64))
    channels = len(weight)
    is_convolution = weight.ndim > 2
    positions = (1, len(activations), SIDE, SIDE) if is_convolution else (8, len(activations))
    shaped = activations.reshape(1, -1, *[1] * (len(positions) - 2))
    inputs[f"{name} in"] = np.broadcast_to(shaped, positions).copy()
    constants |= {
        f"{name} one": np.array(1, np.float32), f"{name} zero": np.array(0, np.uint8),
        f"{name} weight": weight, f"{name} ones": np.ones(channels, np.float32),
        f"{name} zeros": np.zeros(channels, np.int8),
        f"{name} bias": (EXACT - exact.ravel()).astype(np.int32),
        f"{name} zeros32": np.zeros(channels, np.int32),
    }  # fmt: skip
    attribute: dict[str, Any] = {"group": groups} if is_convolution else {"transB": 1}

    def node(kind: str, tensors: list[str], output: str, **attributes: Any) -> None:
        named = [f"{name} {tensor}" for tensor in tensors]
        nodes.append(helper.make_node(kind, named, [output], f"{output} node", **attributes))

    node("DequantizeLinear", ["in", "one", "zero"], f"{name} x")
    node("DequantizeLinear", ["weight", "ones", "zeros"], f"{name} w", axis=0)
    node("DequantizeLinear", ["bias", "ones", "zeros32"], f"{name} b", axis=0)
    node("Conv" if is_convolution else "Gemm", ["x", "w", "b"], f"{name} y", **attribute)
    node("QuantizeLinear", ["y", "one", "zero"], name)
