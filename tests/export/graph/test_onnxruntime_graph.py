"""Tests of ONNX Runtime's optimised INT8 graphs: integer kernels, and a harmful optimiser."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from resdeploy.bundle.manifest import Encoding
from resdeploy.export.graph.placement import place
from resdeploy.export.graph.qdq import activation_parameters
from resdeploy.export.graph.residual_scales import has_aligned_scales
from resdeploy.export.graph.to_onnx import to_bytes
from resdeploy.runtime.backends.onnxruntime.cpu import OnnxRuntimeCpu, session_options
from resdeploy.runtime.backends.onnxruntime.session import DISABLED_OPTIMIZER
from resdeploy.statistics import sqnr_db
from resdeploy.train.model.architecture import Architecture, Shortcut
from tests.export.conftest import Exported, export_network
from tests.samples import make_classifier


def optimised_kinds(graph: bytes, folder: Path) -> Counter[str]:
    """Return the operators of the graph after ONNX Runtime's optimisation."""
    options = session_options(Encoding.CPU, threads=1)
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(
        graph, options, providers=["CPUExecutionProvider"], disabled_optimizers=[DISABLED_OPTIMIZER]
    )
    model = onnx.load(folder / "optimised.onnx")
    return Counter(node.op_type for node in model.graph.node)


def test_36_of_36_convolutions_run_in_integers(resnet34: Exported, tmp_path: Path) -> None:
    kinds = optimised_kinds(to_bytes(resnet34.quantised(Encoding.CPU)), tmp_path)
    assert kinds["QLinearConv"] == 36
    assert kinds["QLinearAdd"] == 16
    assert kinds["QGemm"] == 1
    assert not {"Conv", "FusedConv", "Gemm", "Relu"} & set(kinds)


def test_no_tensor_between_the_convolutions_is_float(resnet34: Exported, tmp_path: Path) -> None:
    kinds = optimised_kinds(to_bytes(resnet34.quantised(Encoding.CPU)), tmp_path)
    assert kinds["QuantizeLinear"] == 1  # after the normalisation
    assert kinds["DequantizeLinear"] <= 1  # before the logits


@pytest.mark.parametrize("shortcut", [Shortcut.A, Shortcut.C, Shortcut.PLAIN])
def test_the_papers_variants_run_in_integers(shortcut: Shortcut, tmp_path: Path) -> None:
    architecture = Architecture(classes=3, blocks=(1, 1, 1, 1), shortcut=shortcut)
    exported = export_network(make_classifier(architecture))
    kinds = optimised_kinds(to_bytes(exported.quantised(Encoding.CPU)), tmp_path)
    assert kinds["QLinearConv"] == 13 if shortcut is Shortcut.C else 9
    assert not {"Conv", "FusedConv"} & set(kinds)


def test_the_family_runs_in_integers_with_the_same_bits(member: Exported, tmp_path: Path) -> None:
    model = member.quantised(Encoding.CPU)
    kinds = optimised_kinds(to_bytes(model), tmp_path)
    operators = Counter(node.op_type for node in member.model.graph)
    assert kinds["QLinearConv"] == operators["Conv"]
    assert kinds["QGemm"] == operators["Gemm"]
    assert kinds["QLinearConcat"] == operators["Concat"]
    # After the normalisation, and after the padding of option A, which has no integer kernel.
    assert kinds["QuantizeLinear"] == 1 + operators["Pad"]
    assert not {"Conv", "FusedConv", "Gemm", "Relu", "Concat"} & set(kinds)
    edges = place(member.model.graph, Encoding.CPU)
    scales = activation_parameters(member.model.graph, edges, member.ranges, Encoding.CPU)
    assert has_aligned_scales(member.model.graph, edges, scales)
    results = [
        logits_with(to_bytes(model), images, [DISABLED_OPTIMIZER], session_options(Encoding.CPU, n))
        for n, images in ((1, member.images), (2, member.images), (1, member.images[:7]))
    ]
    exact = onnxruntime.SessionOptions()
    exact.add_session_config_entry("session.x64quantprecision", "1")
    results += [
        logits_with(to_bytes(model), member.images, [], options) for options in (None, exact)
    ]
    for found in results:
        np.testing.assert_array_equal(found, results[0][: len(found)])
    # Another scale, zero point or group of channels gives at most 5 dB.
    assert np.median(sqnr_db(member.pytorch(member.images), results[0])) > 20


def logits_with(
    graph: bytes,
    images: np.ndarray,
    disabled: Sequence[str],
    options: onnxruntime.SessionOptions | None = None,
) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        graph, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(disabled)
    )
    (logits,) = session.run(None, {"images": images})
    return np.asarray(logits)


def test_the_disabled_optimiser_reduces_accuracy() -> None:
    """If this fails, ONNX Runtime was fixed, and DISABLED_OPTIMIZER can be removed."""
    # With small weights and larger biases, typical of weight decay, the scale of a bias (scale of
    # the input times scale of the weight) is below the smallest float16.
    classifier = make_classifier()
    for module in classifier.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.mul_(0.02)
    exported = export_network(classifier)
    graph = to_bytes(exported.quantised(Encoding.TENSORRT))
    expected = exported.pytorch(exported.images)
    good = logits_with(graph, exported.images, [DISABLED_OPTIMIZER])
    bad = logits_with(graph, exported.images, [])
    good_db, bad_db = (np.median(sqnr_db(expected, logits)) for logits in (good, bad))
    assert good_db > 20
    assert bad_db < good_db - 6
    used = OnnxRuntimeCpu(graph, Encoding.TENSORRT).run(exported.images)
    assert np.median(sqnr_db(expected, used)) > good_db - 1  # the order of sums differs
    options = session_options(Encoding.TENSORRT, None)
    np.testing.assert_array_equal(
        used, logits_with(graph, exported.images, [DISABLED_OPTIMIZER], options)
    )
