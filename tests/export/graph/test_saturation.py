"""Tests of the pairs of weights that kernels add in 16 bits, with the kernels of both engines."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from resdeploy.export.graph.saturation import added_pairs, check_no_saturation, saturating_pairs
from tests.int8_kernels import ONNX_RUNTIME, OPENVINO, layers_graph, run_kernels


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((5, 4), [(0, 1), (2, 3)]),
        ((5, 4, 1, 2), [(0, 2), (4, 6), (1, 3), (5, 7)]),
        ((5, 3, 1, 2), [(0, 2), (2, 4), (4, 1), (1, 3), (3, 5)]),
        ((5, 1, 2, 2), [(0, 1), (1, 2), (2, 3), (0, 2), (2, 1), (1, 3)]),
    ],
    ids=["classifier", "even", "odd", "one"],
)
def test_neighbours_along_the_channels_are_added(
    shape: tuple[int, ...], expected: list[tuple[int, int]]
) -> None:
    np.testing.assert_array_equal(added_pairs(shape), expected)


@pytest.mark.parametrize(
    ("first", "second", "saturates"),
    [
        (127, 1, False), (127, 2, True), (-127, -1, False), (-64, -65, True), (127, -127, False),
        (0, -128, False), (-128, -128, True),
    ],
)  # fmt: skip
def test_pairs_of_one_sign_saturate_beyond_128(first: int, second: int, saturates: bool) -> None:
    products = (
        255 * np.maximum([first, second], 0).sum(),
        255 * np.minimum([first, second], 0).sum(),
    )
    assert saturates == (products[0] > 32767 or products[1] < -32768)
    weight = np.array([[0, 0], [first, second]], np.int8)
    np.testing.assert_array_equal(
        saturating_pairs(weight), [(1, 0, 1)] if saturates else np.empty((0, 3))
    )


def graph_of(pattern: str) -> ir.Graph:
    """Return the graph of the layers whose names contain a word."""
    model = onnx.load_model_from_string(layers_graph()[0])
    kept = [node for node in model.graph.node if pattern in node.name]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return ir.serde.deserialize_model(model).graph


def test_a_graph_beyond_the_rule_is_an_internal_error() -> None:
    check_no_saturation(graph_of("largest"))
    with pytest.raises(AssertionError, match="2x2-of-8 pairs y node: 32 pairs of weights may"):
        check_no_saturation(graph_of("pairs"))


def test_a_weight_of_minus_128_is_an_internal_error() -> None:
    graph = graph_of("largest")
    stored = graph.initializers["classifier largest weight"]
    assert stored.const_value is not None
    integers = stored.const_value.numpy().copy()
    integers[0] = 0
    integers[0, 0] = -128
    stored.const_value = ir.tensor(integers)
    with pytest.raises(AssertionError, match="classifier largest y node: 0 pairs"):
        check_no_saturation(graph)


def test_onnx_runtime_is_exact_within_the_rule(tmp_path: Path) -> None:
    def run(files: list[str]) -> None:
        subprocess.run([sys.executable, "-c", ONNX_RUNTIME, *files, "exact"], check=True)

    results = run_kernels(tmp_path, run)
    assert results.inexact("plain", "largest") == results.inexact("exact", "largest") == []
    assert results.inexact("exact", "pairs") == []


@pytest.mark.parametrize("instructions", ["AVX2", "AVX512_CORE"])
def test_openvino_without_vnni_adds_the_pairs_of_the_rule(
    tmp_path: Path, instructions: str
) -> None:
    """The variable limits oneDNN to the instructions of older processors."""
    pytest.importorskip("openvino")
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("x86 only")

    def run(files: list[str]) -> None:
        environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": instructions}
        subprocess.run([sys.executable, "-c", OPENVINO, *files], check=True, env=environment)

    run_kernels(tmp_path, run).check_rule()
