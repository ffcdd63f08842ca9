"""Tests of the prediction of integer kernels."""

from __future__ import annotations

from collections import Counter

import onnx
import onnx_ir as ir
import pytest

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.graph_check import check_onnx
from resdeploy.bundle.manifest import Encoding
from resdeploy.calibration.ranges import Range
from resdeploy.cli.explain import coverage_text
from resdeploy.export.graph.coverage import Coverage, coverage
from resdeploy.export.graph.float_layers import layers_of
from resdeploy.export.graph.placement import place
from resdeploy.export.graph.to_onnx import OPSET, to_bytes, to_onnx
from resdeploy.export.quantization.recipe import QuantizationRecipe
from resdeploy.train.model.architecture import Architecture, Shortcut
from tests.export.conftest import Exported
from tests.samples import CLASSES, FAMILY, SIZE, make_classifier

BOTH = (Encoding.TENSORRT, Encoding.CPU)
ALL = (*BOTH, Encoding.DLA)
FILES = {Encoding.TENSORRT: "int8.onnx", Encoding.CPU: "int8-cpu.onnx"}
NORMALISATION = ("normalize.cast", "normalize.transpose", "normalize.mul", "normalize.add")


@pytest.fixture(scope="module")
def resnet34() -> ir.Model:
    return to_onnx(make_classifier(Architecture(classes=10)), SIZE)


def coverage_with(model: ir.Model, encoding: Encoding, *in_float: str) -> Coverage:
    tensors = {edge.range_of for edge in place(model.graph, encoding)}
    nodes = [layer.nodes for layer in layers_of(model, encoding) if layer.name in in_float]
    recipe = QuantizationRecipe(
        encoding=encoding, calibrator="none",
        ranges=dict.fromkeys(tensors, Range(low=-1.0, high=1.0)),
        in_float=frozenset().union(*nodes),
    )  # fmt: skip
    return coverage(recipe.apply(model).graph, encoding)


@pytest.mark.parametrize("encoding", ALL)
def test_all_of_resnet34_runs_in_integers(resnet34: ir.Model, encoding: Encoding) -> None:
    found = coverage_with(resnet34, encoding)
    assert (found.int8_convs, found.convs) == (36, 36)
    assert (found.fused_additions, found.additions) == (16, 16)


def test_float_regions_are_the_normalisation_the_pooling_and_casts(resnet34: ir.Model) -> None:
    tensorrt = coverage_with(resnet34, Encoding.TENSORRT).float_regions
    assert [region.nodes for region in tensorrt] == [
        (*NORMALISATION, "normalize.add.half.cast"),
        ("avgpool", "avgpool.flatten"),
        ("logits.cast",),
    ]
    assert tensorrt[1].dtype == "float16"
    (front,) = coverage_with(resnet34, Encoding.CPU).float_regions
    assert front.nodes == (*NORMALISATION, "normalize.add.pack")
    assert front.dtype == "float32"


def test_fp32_is_one_float_region(resnet34: ir.Model) -> None:
    found = coverage(resnet34.graph, Encoding.TENSORRT)
    assert (found.int8_convs, found.fused_additions, len(found.float_regions)) == (0, 0, 1)


def test_a_convolution_in_float_prevents_only_its_own_fusion(resnet34: ir.Model) -> None:
    found = coverage_with(resnet34, Encoding.TENSORRT, "layer3.2.conv2")
    assert (found.int8_convs, found.fused_additions) == (35, 15)  # an addition was fused into it
    assert ("layer3.2.conv2", "layer3.2.add", "layer3.2.relu2") in [
        region.nodes for region in found.float_regions
    ]
    other = coverage_with(resnet34, Encoding.TENSORRT, "layer3.2.conv1")
    assert (other.int8_convs, other.fused_additions) == (35, 16)


def test_a_shortcut_in_float_leaves_all_convolutions_in_int8(resnet34: ir.Model) -> None:
    found = coverage_with(resnet34, Encoding.TENSORRT, "layer2.1.add")
    assert (found.int8_convs, found.fused_additions) == (36, 15)
    on_cpu = coverage_with(resnet34, Encoding.CPU, "layer2.0.add")
    assert (on_cpu.int8_convs, on_cpu.fused_additions) == (36, 12)


def test_a_cpu_convolution_with_a_float_output_is_not_an_integer_kernel(resnet34: ir.Model) -> None:
    model = resnet34.clone()
    tensors = {edge.range_of for kind in BOTH for edge in place(model.graph, kind)}
    ranges = dict.fromkeys(tensors, Range(low=-1.0, high=1.0))
    # The placement is that of TensorRT, the rules are those of CPUs.
    for_tensorrt = QuantizationRecipe(encoding=Encoding.TENSORRT, calibrator="none", ranges=ranges)
    found = coverage(for_tensorrt.apply(model, half=False).graph, Encoding.CPU)
    # The output of the second convolution of each of the 16 blocks is float.
    assert (found.int8_convs, found.fused_additions) == (36 - 16, 0)


@pytest.mark.parametrize("shortcut", list(Shortcut))
@pytest.mark.parametrize("encoding", ALL)
def test_all_variants_run_in_integers(shortcut: Shortcut, encoding: Encoding) -> None:
    model = to_onnx(
        make_classifier(Architecture(classes=3, blocks=(1, 1, 1, 1), shortcut=shortcut)), SIZE
    )
    found = coverage_with(model, encoding)
    assert found.int8_convs == found.convs
    assert found.fused_additions == found.additions == (0 if shortcut is Shortcut.PLAIN else 4)


@pytest.mark.parametrize("encoding", ALL)
def test_the_family_runs_in_integers(member: Exported, encoding: Encoding) -> None:
    model = member.quantised(encoding)
    found = coverage(model.graph, encoding)
    operators = Counter(node.op_type for node in member.model.graph)
    assert found.int8_convs == found.convs == operators["Conv"]
    assert found.fused_additions == found.additions == 3
    check_onnx(  # what a bundle does before an engine reads the graph
        to_bytes(model), opset=OPSET, image_size=member.images.shape[1:3], classes=len(CLASSES)
    )  # fmt: skip


def test_a_float_pooling_of_two_kinds_is_one_region() -> None:
    model = to_onnx(make_classifier(FAMILY["grouped-concat"]), SIZE)
    head = coverage_with(model, Encoding.TENSORRT).float_regions[1]
    poolings = ("avgpool.max", "avgpool.average")
    flattened = [f"{pooling}.flatten" for pooling in poolings]
    assert set(head.nodes) == {*poolings, *flattened, "avgpool.concat"}
    assert len(coverage_with(model, Encoding.CPU).float_regions) == 1  # the normalisation


def test_the_manifest_has_the_same_counts(tiny_bundle: Bundle) -> None:
    for artifact in tiny_bundle.manifest.artifacts:
        if artifact.encoding is Encoding.FLOAT:
            continue
        graph = ir.from_proto(onnx.load_from_string(tiny_bundle.read(artifact.file))).graph
        found = coverage(graph, artifact.encoding)
        assert (found.convs, found.int8_convs) == (artifact.convs, artifact.int8_convs)
        assert "12 of 12 convolutions" in coverage_text(found)
