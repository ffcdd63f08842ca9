"""Small networks and small images that many tests use."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from resdeploy.images.preprocessing import Preprocessing
from resdeploy.train.model.architecture import (
    Architecture,
    BlockType,
    Pooling,
    Shortcut,
    Stem,
)

if TYPE_CHECKING:
    from resdeploy.train.model.resnet import Classifier, ResNet

SIZE = 32
CLASSES = ("blue", "green", "red")
COLOURS = {"blue": (30, 60, 220), "green": (40, 200, 60), "red": (220, 50, 40)}
TINY = Architecture(classes=len(CLASSES), blocks=(1, 1, 1, 1))
# With weights of 1.2 MiB, a sixteenth of TINY's, for tests that write a state at each step or start
# processes that train. Exports are tested with TINY, whose INT8 files have a quarter of the size of
# those in FP32; here names and scales have a larger share.
NARROW = replace(TINY, width=16)
BOTTLENECKS = Architecture(
    classes=len(CLASSES), blocks=(2, 1), width=16, block=BlockType.BOTTLENECK
)
# Small members of the family, each with parts that the others lack.
FAMILY = {
    "bottleneck": BOTTLENECKS,
    "v1-a-cifar": replace(
        BOTTLENECKS, stride_in_1x1=True, shortcut=Shortcut.A, stem=Stem.CIFAR
    ),
    "grouped-concat": replace(
        BOTTLENECKS, width=32, groups=8, group_width=16, shortcut=Shortcut.C,
        pooling=Pooling.MAX_AND_AVERAGE, hidden=(24, 12),
    ),
    "wide-plain": replace(BOTTLENECKS, group_width=128, shortcut=Shortcut.PLAIN),
    "gray-five-stages": Architecture(
        classes=len(CLASSES), blocks=(1, 1, 2, 1, 1), width=8, input_channels=1
    ),
}  # fmt: skip


def randomise_batch_norms(network: ResNet, seed: int = 0) -> ResNet:
    """Set random batch-norm parameters and statistics; return the network in evaluation mode."""
    import torch

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


def make_classifier(
    architecture: Architecture = TINY, seed: int = 0, preprocessing: Preprocessing | None = None
) -> Classifier:
    """Return a network with random weights in the form that is exported."""
    import torch

    from resdeploy.train.model.resnet import Classifier, ResNet

    torch.manual_seed(seed)
    network = randomise_batch_norms(ResNet(architecture), seed)
    return Classifier(network, preprocessing or Preprocessing(image_size=32)).eval()


def rename_folders(data: Path, renamed: Path) -> Path:
    """Write a copy of `data` in which each class folder has the name of the next one."""
    for name, other in zip(CLASSES, (*CLASSES[1:], CLASSES[0])):
        shutil.copytree(data / name, renamed / other)
    return renamed


def fit_network(network: ResNet, images: np.ndarray, labels: Sequence[int]) -> ResNet:
    """Record batch-norm statistics on images (N, H, W, 3), and fit the classifier to the labels.

    With least squares, and without training, the network then predicts these labels.
    """
    import torch

    from resdeploy.train.model.resnet import Normalize

    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the statistics of the only batch
        norm.reset_running_stats()
    head, read = network.last_layer, []
    hook = head.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    with torch.inference_mode():
        inputs = Normalize(Preprocessing(image_size=32))(torch.from_numpy(images))
        network.train()(inputs)
        network.eval()(inputs)
        features = torch.cat([read[-1], torch.ones(len(images), 1)], dim=1)
        targets = torch.eye(len(head.weight))[list(labels)] * 10
        solution = torch.linalg.lstsq(features.double(), targets.double(), driver="gelsd").solution
        head.weight.copy_(solution[:-1].T)
        head.bias.copy_(solution[-1])
    hook.remove()
    return network


def encoded(picture: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """Return the content of an image file."""
    stream = io.BytesIO()
    picture.save(stream, format, **options)
    return stream.getvalue()


def write_images(folder: Path, per_class: int, *, seed: int, size: int = SIZE) -> None:
    """Write `folder/CLASS/*.png`: noisy images of one colour per class, which are easy to learn."""
    generator = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            noise = generator.normal(0, 40, (size, size, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index:03d}.png")
