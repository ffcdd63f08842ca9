"""Tests of the weights of the graph for CPUs that are rounded on calibration images."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from resdeploy.bundle.manifest import Encoding
from resdeploy.calibration.observer import activations, run_feeds
from resdeploy.export.graph.placement import WEIGHTED
from resdeploy.export.graph.qdq import RoundedWeights, stored_weights
from resdeploy.export.graph.saturation import check_no_saturation
from resdeploy.export.graph.to_onnx import to_bytes, with_outputs
from resdeploy.export.quantization import compensation
from resdeploy.export.quantization.compensation import (
    FEWEST_IMAGES,
    compensated_weights,
    input_rows,
    layer_cost,
)
from resdeploy.export.quantization.recipe import QuantizationRecipe
from resdeploy.export.quantization.simulate import round_at, run_graph, sites_of
from resdeploy.images.preprocessing import Channels, Preprocessing
from resdeploy.progress import silent
from resdeploy.statistics import sqnr_db
from tests.export.conftest import Exported, export_network
from tests.samples import FAMILY, TINY, make_classifier

GRAY = Preprocessing(image_size=32, channels=Channels.GRAY, mean=(0.5,), std=(0.25,))
NETWORKS = {"basic": dataclasses.replace(TINY, width=16), **FAMILY}


@dataclasses.dataclass(frozen=True)
class Case:
    """Network with its recipe, whose weights are rounded on images."""

    exported: Exported
    alone: QuantizationRecipe
    recipe: QuantizationRecipe
    runs: Counter[str]
    """Number of passes over all images through each layer, while the weights were rounded."""

    @property
    def rounded(self) -> RoundedWeights:
        assert self.recipe.rounded is not None
        return self.recipe.rounded


@pytest.fixture(scope="module", params=["basic", "grouped-concat", "gray-five-stages"])
def case(request: pytest.FixtureRequest) -> Case:
    architecture = NETWORKS[request.param]
    preprocessing = GRAY if architecture.input_channels == 1 else None
    exported = export_network(make_classifier(architecture, preprocessing=preprocessing), 32)
    recipe = QuantizationRecipe(encoding=Encoding.CPU, calibrator="max", ranges=exported.ranges)
    rounded, runs = rounded_and_runs(exported, recipe)
    return Case(exported, recipe, dataclasses.replace(recipe, rounded=rounded), runs)


def rounded_and_runs(
    exported: Exported, recipe: QuantizationRecipe, **limits: int
) -> tuple[RoundedWeights | None, Counter[str]]:
    runs = Counter[str]()

    def counted(graph: bytes, *args: Any) -> Iterator[tuple[str, Any]]:
        nodes = onnx.load_from_string(graph).graph.node
        runs.update(node.name for node in nodes if node.op_type in WEIGHTED)
        return run_feeds(graph, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{compensation.__name__}.run_feeds", counted)
        for name, limit in limits.items():
            patch.setattr(f"{compensation.__name__}.{name}", limit)
        return compensated_weights(exported.model, recipe, exported.images, silent), runs


def test_no_layer_runs_twice(case: Case) -> None:
    """The cost grows with the number of layers, and not with its square."""
    assert set(case.runs.values()) == {1}


@pytest.mark.parametrize("case", ["grouped-concat"], indirect=True)
def test_activations_that_do_not_fit_are_computed_again(case: Case) -> None:
    found, runs = rounded_and_runs(case.exported, case.alone, MOST_KEPT=0)
    assert max(runs.values()) > 1
    assert found is not None
    for name, (integers, scales) in case.rounded.weights.items():
        np.testing.assert_array_equal(found.weights[name][0], integers)
        np.testing.assert_array_equal(found.weights[name][1], scales)


def test_no_pair_saturates_and_the_logits_are_closer_to_those_of_fp32(case: Case) -> None:
    model, images = case.exported.model, case.exported.images
    reference = run_graph(model, Encoding.FLOAT, images)
    medians = []
    for recipe in (case.alone, case.recipe):
        quantised = recipe.apply(model)
        check_no_saturation(quantised.graph)
        logits = run_graph(quantised, Encoding.CPU, images)
        medians.append(float(np.median(sqnr_db(reference, logits))))
    assert medians[1] > medians[0]


@pytest.mark.parametrize("encoding", [Encoding.CPU, Encoding.TENSORRT, Encoding.DLA])
def test_the_written_graph_gives_the_same_weights_and_graph_again(
    case: Case, encoding: Encoding
) -> None:
    model, recipe = case.exported.model, dataclasses.replace(case.recipe, encoding=encoding)
    quantised = recipe.apply(model)
    stored = stored_weights(model, quantised)
    assert stored.weights.keys() == case.rounded.weights.keys()
    for name, (integers, scales) in case.rounded.weights.items():
        np.testing.assert_array_equal(stored.weights[name][0], integers)
        # Exact in TensorRT's graph, too, although its scales are float16.
        np.testing.assert_array_equal(stored.weights[name][1], scales)
    again = dataclasses.replace(recipe, rounded=stored)
    assert to_bytes(again.apply(model)) == to_bytes(quantised)


def test_these_weights_are_better_in_the_graph_for_tensorrt_too(case: Case) -> None:
    """Compare the noise of the weights alone, because that of activations is larger here."""
    model, images = case.exported.model, case.exported.images
    reference = run_graph(model, Encoding.FLOAT, images)
    medians = []
    for cpu in (case.alone, case.recipe):
        recipe = dataclasses.replace(cpu, encoding=Encoding.TENSORRT)
        sites = {site for site in sites_of(model, recipe) if site.weight}
        graph = round_at(model, recipe, sites, recipe.weights(model))
        logits = run_graph(graph, Encoding.FLOAT, images)
        medians.append(float(np.median(sqnr_db(reference, logits))))
    assert medians[1] > medians[0]


def test_a_simulation_with_all_sites_has_the_logits_of_the_graph(case: Case) -> None:
    model, quantised = case.exported.model, case.recipe.apply(case.exported.model)
    recipe = dataclasses.replace(case.recipe, rounded=stored_weights(model, quantised))
    simulated = round_at(model, recipe, sites_of(model, recipe), recipe.weights(model))
    images = case.exported.images[:8]
    logits = run_graph(quantised, Encoding.FLOAT, images)
    again = run_graph(simulated, Encoding.FLOAT, images)
    assert np.median(sqnr_db(logits, again)) > 100  # sums may be in another order


def test_layers_in_float_keep_their_weights(case: Case) -> None:
    model = case.exported.model
    name = next(str(node.name) for node in model.graph if node.op_type in WEIGHTED)
    recipe = dataclasses.replace(case.recipe, in_float=frozenset([name]))
    kept = recipe.apply(model).graph.initializers[f"{name}.weight"].const_value
    original = model.graph.initializers[f"{name}.weight"].const_value
    assert kept is not None
    assert original is not None
    np.testing.assert_array_equal(kept.numpy(), original.numpy())


def test_a_layer_is_rounded_on_its_own_inputs(case: Case) -> None:
    """Compare the rows of inputs with PyTorch's unfolding of the same activations."""
    model, images = case.exported.model, case.exported.images
    for node in model.graph:
        if node.op_type != "Conv":
            continue
        assert node.inputs[0] is not None
        tensor = str(node.inputs[0].name)
        graph = with_outputs(model, [tensor])
        [(_, values)] = activations(graph, [tensor], [images[:3]])
        kernel = node.inputs[1].shape.numpy()[2:]  # type: ignore[union-attr]
        pads, strides = (node.attributes.get_ints(name) for name in ("pads", "strides"))
        assert pads is not None
        assert strides is not None
        top, left, bottom, right = pads
        padded = torch.nn.functional.pad(torch.from_numpy(values), (left, right, top, bottom))
        columns = torch.nn.functional.unfold(
            padded, kernel, stride=tuple(strides)
        )  # (N, C kh kw, P)
        expected = columns.numpy().transpose(0, 2, 1)
        rows = input_rows(values, node, 10**6, np.random.default_rng(0))
        for image, found in zip(expected, rows.reshape(expected.shape)):  # in any order
            assert sorted(row.tobytes() for row in found) == sorted(row.tobytes() for row in image)
        some = input_rows(values, node, 2, np.random.default_rng(0)).reshape(
            3, -1, expected.shape[2]
        )
        for image, found in zip(expected, some):
            assert {row.tobytes() for row in found} <= {row.tobytes() for row in image}


def test_few_images_leave_each_weight_rounded_alone(case: Case) -> None:
    images = case.exported.images[: FEWEST_IMAGES - 1]
    assert compensated_weights(case.exported.model, case.alone, images, silent) is None


def test_the_costs_of_layers_are_in_proportion_to_their_times() -> None:
    """Processor times of a ResNet-18's layers on 120 images of 128 pixels, see `layer_cost`."""
    seconds = {64: 0.29, 128: 0.70, 256: 1.75, 512: 7.0}  # 3x3 convolutions of stride 1
    side = {64: 32, 128: 16, 256: 8, 512: 4}
    costs = {}
    for channels in seconds:
        weight = ir.Value(name="weight", shape=ir.Shape([channels, channels, 3, 3]))
        shape = ir.Shape(["N", channels, side[channels], side[channels]])
        output = ir.Value(name="output", shape=shape)
        costs[channels] = layer_cost(ir.Node("", "Conv", [None, weight], outputs=[output]), 120)
    for channels, found in seconds.items():
        assert costs[channels] / costs[512] == pytest.approx(found / seconds[512], rel=0.4)
