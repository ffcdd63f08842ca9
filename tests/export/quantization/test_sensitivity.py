"""Tests of the sensitivity to a tensor, with graphs in which only that tensor is quantised."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.manifest import Encoding, FileRecord
from resdeploy.cli.explain import explanation_text
from resdeploy.errors import BundleError
from resdeploy.export.graph.qdq import integer_weights
from resdeploy.export.graph.to_onnx import to_bytes
from resdeploy.export.noise_analysis import explain
from resdeploy.export.quantization.recipe import read_recipe
from resdeploy.export.quantization.simulate import round_at, run_graph, sites_of
from resdeploy.filesystem import sha256
from resdeploy.runtime.backends.onnxruntime.cpu import OnnxRuntimeCpu
from resdeploy.statistics import sqnr_db

BOTH = (Encoding.TENSORRT, Encoding.CPU)


@pytest.fixture(params=BOTH, ids=lambda encoding: encoding.value)
def encoding(request: pytest.FixtureRequest) -> Encoding:
    chosen: Encoding = request.param
    return chosen


def fp32(bundle: Bundle) -> ir.Model:
    return ir.from_proto(onnx.load_from_string(bundle.read("fp32.onnx")))


def test_rounding_at_no_site_gives_fp32_and_at_all_sites_int8(
    tiny_bundle: Bundle, encoding: Encoding
) -> None:
    images = tiny_bundle.golden().images
    model, recipe = fp32(tiny_bundle), read_recipe(tiny_bundle, encoding)
    weights = recipe.weights(model)
    unrounded = run_graph(round_at(model, recipe, (), weights), Encoding.FLOAT, images)
    np.testing.assert_array_equal(unrounded, run_graph(model, Encoding.FLOAT, images))
    quantised = recipe.apply(fp32(tiny_bundle), half=False)
    int8_logits = run_graph(quantised, Encoding.FLOAT, images)
    sites = sites_of(model, recipe)
    rounded = run_graph(round_at(model, recipe, sites, weights), Encoding.FLOAT, images)
    assert np.median(sqnr_db(int8_logits, rounded)) > 100  # sums may be in another order
    assert to_bytes(model) == tiny_bundle.read("fp32.onnx")  # the argument was not changed


def test_rounding_at_one_site_quantises_one_tensor(tiny_bundle: Bundle) -> None:
    tensor = "layer2.0.relu1"
    images = tiny_bundle.golden().images
    recipe = read_recipe(tiny_bundle, Encoding.TENSORRT)
    ranges = recipe.ranges
    model = fp32(tiny_bundle)
    weights = integer_weights(model, Encoding.TENSORRT)
    own = {site for site in sites_of(model, recipe) if site.tensor == tensor}
    alone = run_graph(round_at(model, recipe, own, weights), Encoding.FLOAT, images)
    # The expected graph quantises this activation with Div, Round, Clip and Mul.
    nodes = {node.name: node for node in model.graph}
    scale = np.float32(np.float16(ranges[tensor].high / 127))
    if scale < ranges[tensor].high / 127:
        scale = np.float32(np.nextafter(np.float16(scale), np.float16(np.inf)))
    parameters = [
        ir.Value(
            name=f"p{index}", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([]),
            const_value=ir.tensor(np.array(number, np.float32)),
        )
        for index, number in enumerate((scale, -127.0, 127.0))
    ]  # fmt: skip
    for parameter in parameters:
        model.graph.initializers.add(parameter)
    step, low, high = parameters
    value = nodes[tensor].outputs[0]
    divide = ir.node("Div", [value, step])
    whole = ir.node("Round", divide.outputs)
    clipped = ir.node("Clip", [whole.outputs[0], low, high])
    restored = ir.node("Mul", [clipped.outputs[0], step])
    for use in list(value.uses()):
        if use.node is not divide:
            use.node.replace_input_with(use.idx, restored.outputs[0])
    model.graph.insert_after(nodes[tensor], [divide, whole, clipped, restored])
    expected_logits = OnnxRuntimeCpu(to_bytes(model), Encoding.FLOAT).run(images)
    reference = run_graph(fp32(tiny_bundle), Encoding.FLOAT, images)
    # The logits are far closer to each other than to FP32, so the quantisation is the same.
    assert np.median(sqnr_db(expected_logits, alone)) > np.median(sqnr_db(reference, alone)) + 15


def test_every_quantised_tensor_is_explained_once(tiny_bundle: Bundle, encoding: Encoding) -> None:
    result = explain(tiny_bundle, encoding=encoding, images=4)
    names = [layer.tensor for layer in result.layers]
    assert len(names) == len(set(names))
    weights = [layer for layer in result.layers if layer.kind == "weight"]
    assert len(weights) == 13  # 12 convolutions and the classifier
    model = fp32(tiny_bundle)
    expected = {edge.range_of for edge in read_recipe(tiny_bundle, encoding).edges(model)}
    assert {layer.tensor for layer in result.layers if layer.kind == "activation"} == expected


@pytest.mark.slow
@pytest.mark.parametrize("worst", BOTH, ids=lambda encoding: encoding.value)
def test_the_worst_graph_is_explained(tiny_bundle: Bundle, worst: Encoding) -> None:
    artifacts = tuple(
        dataclasses.replace(
            artifact,
            quality=None,
            parity=dataclasses.replace(
                artifact.parity,
                agreement=99.5,
                sqnr_db=31.0 if artifact.encoding is worst else 32.0,
            ),
        )
        for artifact in tiny_bundle.manifest.artifacts
    )
    manifest = dataclasses.replace(tiny_bundle.manifest, artifacts=artifacts)
    result = explain(Bundle(tiny_bundle.path, manifest), images=1)
    assert (result.encoding, result.is_worst) == (worst, True)
    assert result.remedy.encoding is worst
    assert "the least accurate INT8 graph" in explanation_text(result)
    needless = dataclasses.replace(result.remedy, options=(), mixture=None)
    text = explanation_text(dataclasses.replace(result, remedy=needless), True)
    assert "No action is needed" not in text
    assert "the warning about this graph has its own remedy" in text
    other = BOTH[1 - BOTH.index(worst)]
    chosen = explain(Bundle(tiny_bundle.path, manifest), encoding=other, images=1)
    assert (chosen.encoding, chosen.is_worst) == (other, False)


def test_the_most_sensitive_tensor_comes_first(tiny_bundle: Bundle) -> None:
    result = explain(tiny_bundle, images=4)
    alone = [layer.sqnr_alone_db for layer in result.layers]
    assert alone == sorted(alone)
    assert alone[-1] > result.sqnr_db
    assert result.images == 4
    assert all(np.isfinite(layer.gain_db) for layer in result.layers)


def test_a_range_that_clips_everything_is_found(tiny_bundle: Bundle, tmp_path: Path) -> None:
    victim = "layer3.0.relu1"
    copy = shutil.copytree(tiny_bundle.path, tmp_path / "copy.bundle")
    document = json.loads((copy / "calibration.json").read_text())
    document["tensorrt"]["ranges"][victim]["high"] /= 50
    data = json.dumps(document).encode()
    (copy / "calibration.json").write_bytes(data)
    files = {
        **tiny_bundle.manifest.files,
        "calibration.json": FileRecord(bytes=len(data), sha256=sha256(data)),
    }
    bundle = Bundle(copy, dataclasses.replace(tiny_bundle.manifest, files=files))
    result = explain(bundle, encoding=Encoding.TENSORRT, images=8)
    assert result.layers[0].tensor == victim
    assert result.layers[0].gain_db > 3
    assert result.encoding is Encoding.TENSORRT
    assert explanation_text(result).splitlines()[4].startswith(victim)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"tensorrt": {"calibrator": "max", "ranges": 3}}']
)
def test_a_damaged_calibration_json_is_an_error(
    tiny_bundle: Bundle, tmp_path: Path, text: str
) -> None:
    (tmp_path / "calibration.json").write_text(text)
    record = FileRecord(bytes=len(text), sha256=sha256(text.encode()))
    manifest = dataclasses.replace(
        tiny_bundle.manifest, files={**tiny_bundle.manifest.files, "calibration.json": record}
    )
    with pytest.raises(BundleError, match="cannot be used"):
        read_recipe(Bundle(tmp_path, manifest), Encoding.TENSORRT)


def test_a_bundle_without_int8_is_an_error_with_a_hint(tiny_bundle: Bundle) -> None:
    first = tiny_bundle.manifest.artifacts[:1]
    bundle = Bundle(tiny_bundle.path, dataclasses.replace(tiny_bundle.manifest, artifacts=first))
    with pytest.raises(BundleError, match="holds no int8 graph"):
        explain(bundle)
