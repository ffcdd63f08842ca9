"""Live modules of PyTorch as sources."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import resdeploy
from resdeploy.bundle.bundle import open_bundle
from resdeploy.bundle.manifest import GoldenReference
from resdeploy.errors import CheckpointError, ExportError
from resdeploy.export.module_export import export_module
from resdeploy.export.source.module import module_network
from resdeploy.images.preprocessing import Preprocessing
from resdeploy.result_files.verification import Rule
from resdeploy.statistics import Verdict
from tests.samples import CLASSES, SIZE

SETTINGS = Preprocessing(image_size=SIZE, mean=(0.5,) * 3, std=(0.5,) * 3)


class Residual(nn.Module):
    """An inverted residual of MobileNetV2: 1x1, depthwise 3x3, 1x1, and the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 4 * channels
        self.layers = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), nn.BatchNorm2d(wide),
            nn.ReLU6(), nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        layers: Tensor = self.layers(x)
        return x + layers


def make_module(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(), Residual(8),
        Residual(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5),
        nn.Linear(8, len(CLASSES)),
    )  # fmt: skip
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.2)  # type: ignore[union-attr]
            part.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return module


def test_the_graph_computes_what_the_module_does() -> None:
    module = make_module()
    classifier = module_network(module, SETTINGS, CLASSES, "mine").classifier(SETTINGS)
    assert module.training  # the module itself is not changed
    images = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)
    values = torch.from_numpy((images / 255 - 0.5) / 0.5).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        expected = make_module().eval()(values).numpy()
    # The normalisation is one product and one sum here, whose last bits differ.
    np.testing.assert_allclose(classifier.logits(images), expected, rtol=1e-4, atol=1e-5)
    assert classifier.reference is GoldenReference.PYTORCH


@pytest.mark.parametrize("module", [nn.Conv2d(3, 8, 3), nn.Linear(4, 2)])
def test_a_module_that_classifies_no_images_is_refused(module: nn.Module) -> None:
    with pytest.raises((CheckpointError, ExportError), match=r"has the shape|could not export"):
        module_network(module, SETTINGS, None)


def test_labels_must_fit() -> None:
    with pytest.raises(ExportError, match="there are 1 labels, but Sequential has 3 classes"):
        module_network(make_module(), SETTINGS, ["a"])


def test_a_module_becomes_a_bundle_whose_graphs_are_verified(
    image_data: Path, tmp_path: Path
) -> None:
    result = export_module(
        make_module(), tmp_path / "net.bundle",
        preprocessing=SETTINGS, labels=CLASSES, calibration=image_data, int8=True, fp16=True,
        calibrator="max",
    )  # fmt: skip
    manifest = open_bundle(tmp_path / "net.bundle").manifest
    assert (manifest.model["name"], manifest.model["kind"]) == ("Sequential", "graph")
    assert manifest.golden.reference is GoldenReference.PYTORCH
    assert {artifact.name for artifact in result.artifacts} == {"fp32", "fp16", "int8", "int8-cpu"}
    for artifact in result.artifacts:
        if artifact.precision.value == "int8":
            assert artifact.int8_convs == artifact.convs == 7
    assert set(open_bundle(tmp_path / "net.bundle").golden().bit_exact) == {"int8-cpu"}
    with resdeploy.load(tmp_path / "net.bundle") as model:
        assert model.labels == CLASSES
        picture = next((image_data / "val" / "red").iterdir())
        assert model.predict(picture)[0].label in CLASSES


def test_functions_in_float_promise_no_equal_bits(image_data: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.SiLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, len(CLASSES)),
    )  # fmt: skip
    export_module(
        module, tmp_path / "net.bundle",
        preprocessing=SETTINGS, labels=CLASSES, calibration=image_data, int8=True, calibrator="max",
    )  # fmt: skip
    # A processor's own approximation of a sigmoid changes which integer is nearest.
    assert open_bundle(tmp_path / "net.bundle").golden().bit_exact == {}
    result = resdeploy.verify(tmp_path / "net.bundle", precision="int8").results[0]
    assert (result.rule, result.verdict) == (Rule.SQNR, Verdict.REPRODUCED)
