"""A checkpoint and the ONNX file that PyTorch's exporter makes of it give the same bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx.numpy_helper import to_array

from resdeploy.bundle.bundle import Bundle, open_bundle
from resdeploy.export.graph.to_onnx import export_program
from resdeploy.export.pipeline import ExportConfig, export
from resdeploy.train.checkpoint.load import load_checkpoint
from tests.samples import SIZE


def constants_of(bundle: Bundle, file: str) -> list[np.ndarray]:
    """Return the constants of a graph in the order in which its nodes read them."""
    graph = onnx.load_from_string(bundle.read(file)).graph
    found = {tensor.name: to_array(tensor) for tensor in graph.initializer}
    return [found[name] for node in graph.node for name in node.input if name in found]


def test_a_checkpoint_and_its_onnx_file_give_the_same_graphs(
    tiny_checkpoint: Path, image_data: Path, tmp_path: Path
) -> None:
    network = load_checkpoint(tiny_checkpoint).network()
    program = export_program(network, torch.zeros(2, 3, SIZE, SIZE), "the network")
    file = tmp_path / "tiny.onnx"
    file.write_bytes(ir.to_proto(program.model).SerializeToString())
    bundles = []
    for source, name in ((tiny_checkpoint, "weights"), (file, "graph")):
        export(
            ExportConfig(
                source=source, output=tmp_path / name, image_size=SIZE, int8=True, fp16=True,
                calibrator="max", calibration_data=image_data,
            )
        )  # fmt: skip
        bundles.append(open_bundle(tmp_path / name))
    weights, graph = bundles
    assert not weights.manifest.is_graph
    assert graph.manifest.is_graph
    for artifact in weights.manifest.artifacts:
        pairs = [constants_of(bundle, artifact.file) for bundle in bundles]
        assert len(pairs[0]) == len(pairs[1])
        for first, second in zip(*pairs):
            np.testing.assert_array_equal(first, second)
    exact = [bundle.golden().bit_exact["int8-cpu"] for bundle in bundles]
    np.testing.assert_array_equal(exact[0], exact[1])
