"""One training loop, told to run by its owner: `python -m benchmarks.training.loops LOOP DATA ...`.

`reference` is what a careful beginner writes: a DataLoader that hands over normalised floats from
Pillow, FP32, eager, the plain SGD. `resdeploy-fp32` and `resdeploy` are the steps of
`resdeploy train`. All see random crops and mirrored images of the same data.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from resdeploy.bench.worker import run_worker
from resdeploy.images.folder import read_image_folder
from resdeploy.images.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from resdeploy.train.config import TrainingConfig
from resdeploy.train.data.augment import Augmentation
from resdeploy.train.data.dataset import (
    EpochImages,
    Walk,
    default_workers,
    read_splits,
    run_batches,
)
from resdeploy.train.distributed import Process
from resdeploy.train.initialization import initial_network
from resdeploy.train.model.architecture import Architecture
from resdeploy.train.model.resnet import ResNet
from resdeploy.train.step import Learner

LOOPS = ("reference", "resdeploy-fp32", "resdeploy")
MIN_AREA = 0.35
LR = 0.01
EPOCHS = 10_000  # more than anyone waits for
WARM_UP_STEPS = 5
MEASURED_STEPS = 15  # for the share of waiting

Step = Callable[[], float]
"""Take a step; how many seconds of it went by before its images were there."""


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class ReferenceImages(Dataset[tuple[Tensor, int]]):
    """A random part of each image, mirrored or not, as a normalised float32 (3, H, W)."""

    def __init__(self, folder: Path, size: int) -> None:
        self.images = read_image_folder(folder)
        self.size = size

    def __len__(self) -> int:
        return len(self.images.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with Image.open(self.images.files[index]) as file:
            image = file.convert("RGB")
        width, height = image.size
        area = width * height * (MIN_AREA + (1 - MIN_AREA) * float(torch.rand(())))
        ratio = math.exp(math.log(4 / 3) * (2 * float(torch.rand(())) - 1))
        across = min(width, round(math.sqrt(area * ratio)))
        down = min(height, round(math.sqrt(area / ratio)))
        left = int(torch.randint(width - across + 1, ()))
        upper = int(torch.randint(height - down + 1, ()))
        part = image.crop((left, upper, left + across, upper + down))
        part = part.resize((self.size, self.size), Image.Resampling.BILINEAR)
        if torch.rand(()) < 0.5:
            part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(part)).permute(2, 0, 1).float() / 255
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
        return (pixels - mean) / std, self.images.labels[index]


def reference(data: Path, image_size: int, batch_size: int) -> Step:
    images = ReferenceImages(data / "train", image_size)
    network = ResNet(Architecture(classes=len(images.images.classes))).to(device()).train()
    optimizer = torch.optim.SGD(network.parameters(), LR, momentum=0.9, weight_decay=1e-4)
    workers = default_workers()
    loader = DataLoader(
        images, batch_size, shuffle=True, drop_last=True, num_workers=workers,
        persistent_workers=workers > 0, pin_memory=device().type == "cuda",
    )  # fmt: skip
    batches = chain.from_iterable(repeat(loader))

    def step() -> float:
        asked = time.perf_counter()
        pixels, labels = next(batches)
        waited = time.perf_counter() - asked
        loss = F.cross_entropy(network(pixels.to(device())), labels.to(device()))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss.item()
        return waited

    return step


def ours(data: Path, image_size: int, batch_size: int, *, bf16: bool | None) -> Step:
    preprocessing = Preprocessing.standard(image_size)
    images = read_splits(data).train
    config = TrainingConfig(
        data=str(data), image_size=image_size, batch_size=batch_size, bf16=bf16,
        label_smoothing=0.0,
    )  # fmt: skip
    network = initial_network(config, len(images.classes))
    learner = Learner(config, network, preprocessing, Process(0, 1, device()))
    learner.train_mode()
    walk = Walk(batch_size=batch_size, shuffle=True, workers=default_workers())
    augmentation = Augmentation(flip=True, min_area=MIN_AREA)

    epochs = [
        EpochImages(images, preprocessing, augmentation, epoch=number) for number in range(EPOCHS)
    ]
    batches = run_batches(epochs, walk)
    generator = np.random.default_rng(0)

    def step() -> float:
        asked = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - asked
        loss = learner.step(batch, LR, generator)
        if device().type == "cpu":
            loss.tolist()
        return waited

    return step


def operations_per_image(image_size: int, classes: int) -> int:
    """Of a step: forwards, and twice as many backwards; 2 for each product, no others."""
    network = ResNet(Architecture(classes=classes)).eval()
    macs = 0

    def count(module: nn.Conv2d | nn.Linear, inputs: Any, output: Tensor) -> None:
        nonlocal macs
        macs += output.numel() * module.weight[0].numel()

    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    with torch.inference_mode():
        network(torch.zeros(1, 3, image_size, image_size))
    return 3 * 2 * macs


def prepare() -> tuple[Callable[[], object], dict[str, Any]]:
    """What `contender.answer` needs, from the command line's arguments."""
    name, data, size, batch = sys.argv[1:5]
    torch.manual_seed(0)
    if name == "reference":
        step = reference(Path(data), int(size), int(batch))
    else:
        bf16 = False if name == "resdeploy-fp32" else None
        step = ours(Path(data), int(size), int(batch), bf16=bf16)
    for _ in range(WARM_UP_STEPS):
        step()
    wait()
    start = time.perf_counter()
    waited = sum(step() for _ in range(MEASURED_STEPS))
    wait()
    facts = {"waiting": waited / (time.perf_counter() - start), "torch": torch.__version__}
    # Before each turn one run goes uncounted: it takes what was decoded while others had theirs,
    # which is two batches by each process that decodes (DataLoader's prefetch_factor).
    steps = max(1, 2 * default_workers())

    def run() -> None:
        for _ in range(steps):
            step()
        wait()

    return run, {**facts, "images": steps * int(batch)}


def wait() -> None:
    """Until a GPU has done what it was told."""
    if device().type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    run_worker(prepare)
