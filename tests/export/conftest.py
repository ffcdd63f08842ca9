"""A real ResNet-34 for all tests of the export."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from resdeploy.bundle.manifest import Encoding
from resdeploy.calibration.calibrators import max_range
from resdeploy.calibration.observer import observe
from resdeploy.calibration.ranges import Range
from resdeploy.export.golden_images import synthetic_images
from resdeploy.export.graph.float16 import to_float16
from resdeploy.export.graph.placement import place
from resdeploy.export.graph.to_onnx import to_onnx, with_outputs
from resdeploy.export.quantization.recipe import QuantizationRecipe
from resdeploy.filesystem import sha256
from resdeploy.images.preprocessing import ImageSize, UInt8Array
from resdeploy.train.model.architecture import Architecture
from resdeploy.train.model.resnet import Classifier
from tests.samples import FAMILY, make_classifier

SIZE = 64
CLASSES = 10
TRACED: dict[str, ir.Model] = {}


@pytest.fixture(autouse=True)
def _traced_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace each network once, because tracing takes longer than the rest of many tests.

    test_to_onnx.py, where every network is traced again, tests that the graphs are the same.
    """
    if request.path.name == "test_to_onnx.py":
        return
    trace = torch.onnx.export

    def remember(network: Any, example: Any, **options: Any) -> Any:
        if not example:  # a program of torch.export, which is traced already
            return trace(network, example, **options)
        parts = [repr(network).encode(), repr(example[0].shape).encode()]
        parts += [value.numpy().tobytes() for value in network.state_dict().values()]
        key = sha256(b"".join(parts))
        if key not in TRACED:
            program = trace(network, example, **options)
            assert program is not None
            TRACED[key] = program.model
        return SimpleNamespace(model=TRACED[key].clone())

    monkeypatch.setattr(torch.onnx, "export", remember)


@dataclass(frozen=True)
class Exported:
    """Network with its FP32 graph, images, and the ranges of its tensors."""

    classifier: Classifier
    model: ir.Model
    images: UInt8Array
    ranges: dict[str, Range]
    graphs: dict[Encoding, ir.Model] = field(default_factory=dict)

    def pytorch(self, images: UInt8Array) -> np.ndarray:
        with torch.inference_mode():
            logits: np.ndarray = self.classifier(torch.from_numpy(images)).numpy()
        return logits

    def quantised(self, encoding: Encoding) -> ir.Model:
        """Return the graph of `int8.onnx`, `int8-cpu.onnx` or `int8-dla.onnx`."""
        if encoding not in self.graphs:  # rounding the weights of ResNet-34 takes seconds
            recipe = QuantizationRecipe(encoding=encoding, calibrator="max", ranges=self.ranges)
            self.graphs[encoding] = recipe.apply(self.model)
        return self.graphs[encoding].clone()

    def half(self) -> ir.Model:
        model = self.model.clone()
        to_float16(model)
        return model


def export_network(classifier: Classifier, image_size: ImageSize = SIZE) -> Exported:
    images = synthetic_images(image_size, 64, seed=0)
    # Scale the logits to +-10, like those of trained networks, so that tolerances are meaningful.
    with torch.inference_mode():
        largest = classifier(torch.from_numpy(images)).abs().max()
        for parameter in classifier.network.fc.parameters():
            parameter.mul_(10 / largest)
    model = to_onnx(classifier, image_size)
    tensors = sorted(
        {
            edge.range_of
            for kind in (Encoding.TENSORRT, Encoding.CPU)
            for edge in place(model.graph, kind)
        }
    )
    batches = [images[i : i + 16] for i in range(0, 64, 16)]
    observed = observe(with_outputs(model, tensors), tensors, batches)
    ranges = {tensor: max_range(found, symmetric=True) for tensor, found in observed.items()}
    return Exported(classifier, model, images, ranges)


@pytest.fixture(scope="session")
def resnet34() -> Exported:
    """Return a shared network, which tests must not modify; `quantised` and `half` copy it."""
    return export_network(make_classifier(Architecture(classes=CLASSES)))


@pytest.fixture(scope="session", params=["v1-a-cifar", "grouped-concat"])
def member(request: pytest.FixtureRequest) -> Exported:
    """Return a small network with parts that ResNet-34 lacks, which tests must not modify."""
    return export_network(make_classifier(FAMILY[request.param]))
