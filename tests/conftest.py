"""What many tests need: tiny networks, pictures on disk, one bundle of each kind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resdeploy.bundle import Bundle, open_bundle
from resdeploy.export.pipeline import ExportConfig, export
from resdeploy.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from resdeploy.train.architecture import Architecture
from resdeploy.train.model import Classifier, ResNet

ROOT = Path(__file__).resolve().parent.parent
SIZE = 32
CLASSES = ("blue", "green", "red")
COLOURS = {"blue": (30, 60, 220), "green": (40, 200, 60), "red": (220, 50, 40)}
TINY = Architecture(classes=len(CLASSES), blocks=(1, 1, 1, 1))


@pytest.fixture(autouse=True)
def _private_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Every test works in a folder of its own, and none touches the user's cache."""
    cache = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def randomised(network: ResNet, seed: int = 0) -> ResNet:
    """The network with batch-norm statistics unlike those of a fresh one, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.2, 0.2),
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 1.5),
            ):
                assert tensor is not None
                tensor.data.uniform_(low, high, generator=generator)
    return network.eval()


def make_classifier(architecture: Architecture = TINY, seed: int = 0) -> Classifier:
    """A network with random weights, as it is deployed."""
    torch.manual_seed(seed)
    network = randomised(ResNet(architecture), seed)
    return Classifier(network, IMAGENET_MEAN, IMAGENET_STD).eval()


def write_images(folder: Path, per_class: int, *, seed: int, size: int = SIZE) -> None:
    """`folder/CLASS/*.png`: noisy pictures of one colour each, which a network learns at once."""
    generator = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            noise = generator.normal(0, 40, (size, size, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index:03d}.png")


@pytest.fixture(scope="session")
def image_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `train/` (20 pictures a class) and `val/` (8); do not change it."""
    folder = tmp_path_factory.mktemp("images") / "data"
    write_images(folder / "train", 20, seed=0)
    write_images(folder / "val", 8, seed=1)
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A torchvision-style .pth file of a small network with three classes."""
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pth"
    torch.save(make_classifier().network.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def tiny_bundle(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, image_data: Path
) -> Bundle:
    """A bundle with all four graphs of the small network; do not change it."""
    folder = tmp_path_factory.mktemp("bundle")
    labels = folder / "labels.txt"
    labels.write_text("\n".join(CLASSES))
    config = ExportConfig(
        source=tiny_checkpoint,
        output=folder / "tiny.bundle",
        image_size=SIZE,
        labels=labels,
        fp16=True,
        int8=True,
        calibration_data=image_data,
        calibration_images=32,
    )
    return open_bundle(export(config).bundle)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of large files that are not in the repository; tests skip without it."""
    folder = Path(os.environ.get("RESDEPLOY_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "cifar10-resnet34.safetensors").is_file():
        pytest.skip("no development data: set RESDEPLOY_DATA to its folder")
    return folder
