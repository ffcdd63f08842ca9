"""Tests of equalised graphs: the same outputs, with more similar ranges of channels."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from resdeploy.bundle.manifest import Encoding
from resdeploy.calibration.equalization_factors import channel_factors
from resdeploy.calibration.observer import channel_peaks
from resdeploy.export.graph.equalization import ChannelGroup, channel_groups, equalize
from resdeploy.export.graph.to_onnx import to_bytes, to_onnx, with_outputs
from resdeploy.runtime.backends.onnxruntime.cpu import OnnxRuntimeCpu
from resdeploy.statistics import sqnr_db
from resdeploy.train.model.architecture import Architecture, Shortcut
from tests.export.conftest import Exported
from tests.samples import make_classifier


def graph(text: str) -> ir.Graph:
    return ir.from_proto(onnx.parser.parse_model(text)).graph


def logits(model: ir.Model, images: np.ndarray) -> np.ndarray:
    backend = OnnxRuntimeCpu(to_bytes(model), Encoding.FLOAT)
    result = backend.run(images)
    backend.close()
    return result


def test_groups_are_the_stages_and_the_insides_of_blocks(resnet34: Exported) -> None:
    groups = channel_groups(resnet34.model.graph)
    assert len(groups) == 4 + 16
    stem = next(group for group in groups if "conv1" in group.writers)
    assert set(stem.writers) == {"conv1", *(f"layer1.{i}.conv2" for i in range(3))}
    assert set(stem.readers) == {
        *(f"layer1.{i}.conv1" for i in range(3)), "layer2.0.conv1", "layer2.0.downsample.0",
    }  # fmt: skip
    last = next(group for group in groups if "fc" in group.readers)
    assert set(last.writers) == {
        "layer4.0.downsample.0", *(f"layer4.{i}.conv2" for i in range(3)),
    }  # fmt: skip
    inside = next(group for group in groups if group.writers == ("layer3.2.conv1",))
    assert inside.readers == ("layer3.2.conv2",)
    assert inside.tensors == ("layer3.2.conv1", "layer3.2.relu1")


def test_a_shortcut_that_pads_channels_is_not_scaled() -> None:
    model = to_onnx(make_classifier(Architecture(classes=3, shortcut=Shortcut.A)), 32)
    groups = channel_groups(model.graph)
    streams = [group for group in groups if len(group.writers) > 1]
    # Each padding connects two stages, so only the tensors inside blocks can be scaled.
    assert not streams
    assert len(groups) == 16


@pytest.mark.parametrize(
    "body",
    [
        "moved = Sigmoid(wide)",
        "moved = Add(wide, one)",
        "moved = Flatten<axis = 1>(wide)",
    ],
    ids=["not homogeneous", "constant added", "spatial axes flattened"],
)
def test_tensors_of_other_nodes_are_not_scaled(body: str) -> None:
    text = f"""
    <ir_version: 9, opset_import: ["" : 20]>
    small (float[N,2,4,4] x) => (float[N,2,4,4] y)
    <float[2,2,1,1] w = {{1.0, 1.0, 1.0, 1.0}}, float one = {{1.0}}>
    {{
       wide = Conv(x, w)
       {body}
       y = Identity(moved)
    }}
    """
    assert channel_groups(graph(text)) == ()


def test_equalisation_keeps_the_outputs_and_reduces_the_spread(resnet34: Exported) -> None:
    model, images = resnet34.model, resnet34.images[:16]
    groups = channel_groups(model.graph)
    generator = np.random.default_rng(0)
    # Give the channels different ranges first, as in trained networks.
    unequal = equalize(
        model,
        {
            group: np.exp2(generator.uniform(-3, 0, 512)).astype(np.float32)[: width(model, group)]
            for group in groups
        },
    )
    tensors = [group.tensors[-1] for group in groups]
    before = channel_peaks(with_outputs(unequal, tensors), tensors, [images])
    factors = {group: channel_factors([before[group.tensors[-1]]]) for group in groups}
    equalized = equalize(unequal, factors)
    after = channel_peaks(with_outputs(equalized, tensors), tensors, [images])
    # The only error is the float32 rounding of the weights, about 1e-7 of each weight.
    reference = logits(model, images)
    assert np.median(sqnr_db(reference, logits(unequal, images))) > 110
    assert np.median(sqnr_db(reference, logits(equalized, images))) > 110
    # STRENGTH and SMALLEST_SHARE limit the reduction.
    assert spread(after) < 0.9 * spread(before)


def test_equalisation_of_the_family_keeps_the_outputs(member: Exported) -> None:
    groups = channel_groups(member.model.graph)
    grouped = {
        str(node.name)
        for node in member.model.graph
        if node.op_type == "Conv" and node.attributes.get_int("group", 1) > 1
    }
    # The grouped 3x3 convolution of each of the three blocks can be scaled before and after it.
    assert len(grouped) in (0, 3)
    assert grouped <= {name for group in groups for name in group.readers}
    assert grouped <= {name for group in groups for name in group.writers}
    assert groups
    generator = np.random.default_rng(0)
    factors = {
        group: np.exp2(generator.uniform(-3, 0, width(member.model, group))).astype(np.float32)
        for group in groups
    }
    changed = logits(equalize(member.model, factors), member.images[:16])
    # The only error is the float32 rounding of the weights, about 1e-7 of each weight.
    assert np.median(sqnr_db(logits(member.model, member.images[:16]), changed)) > 110


def test_the_original_graph_is_not_changed(resnet34: Exported) -> None:
    before = to_bytes(resnet34.model)
    group = channel_groups(resnet34.model.graph)[0]
    half = np.full(width(resnet34.model, group), 0.5, np.float32)
    assert to_bytes(equalize(resnet34.model, {group: half})) != before
    assert to_bytes(resnet34.model) == before


def width(model: ir.Model, group: ChannelGroup) -> int:
    """Return the number of channels of a group."""
    writer = next(node for node in model.graph if node.name == group.writers[0])
    shape = writer.inputs[1].shape  # type: ignore[union-attr]
    assert shape is not None
    return int(shape[0])  # type: ignore[arg-type]


def spread(peaks: dict[str, np.ndarray]) -> float:
    """Return the mean over tensors of the standard deviation of log2 of active channels' peaks."""
    channels = [peak.max(axis=0) for peak in peaks.values()]
    return float(np.mean([np.log2(peak[peak > 0.01 * peak.max()]).std() for peak in channels]))
