"""A worker that runs one training loop: `python -m benchmarks.training.loops LOOP DATA SIZE BATCH`.

`reference` is a plain PyTorch loop: a DataLoader that returns normalised floats, images decoded by
Pillow, FP32, eager mode and unfused SGD. `resdeploy-fp32` and `resdeploy` are the steps of
`resdeploy train`. All loops use random crops and mirrored images of the same data.
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
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from resdeploy.benchmark_process.worker_loop import run_worker
from resdeploy.images.class_folders import read_image_folder
from resdeploy.images.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from resdeploy.train.config import TrainingConfig
from resdeploy.train.data.augment import Augmentation
from resdeploy.train.data.dataset import (
    BatchPlan,
    EpochImages,
    load_batches,
    read_splits,
)
from resdeploy.train.data.workers import default_workers
from resdeploy.train.distributed import Process
from resdeploy.train.initialization import initial_network
from resdeploy.train.model.architecture import Architecture
from resdeploy.train.model.resnet import ResNet
from resdeploy.train.step import Learner

LOOPS = ("reference", "resdeploy-fp32", "resdeploy")
MIN_AREA = 0.35
LR = 0.01
EPOCHS = 10_000  # more than a benchmark reaches
WARM_UP_STEPS = 5
MEASURED_STEPS = 15  # steps in which the time of waiting for images is measured

Step = Callable[[], float]
"""Function that trains one step and returns the seconds for which it waited for images."""


def device() -> torch.device:
    """Return the GPU if there is one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class ReferenceImages(Dataset[tuple[Tensor, int]]):
    """The training images of the reference loop: random crops, normalised float32 (3, H, W)."""

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
        crop_width = min(width, round(math.sqrt(area * ratio)))
        crop_height = min(height, round(math.sqrt(area / ratio)))
        left = int(torch.randint(width - crop_width + 1, ()))
        upper = int(torch.randint(height - crop_height + 1, ()))
        crop = image.crop((left, upper, left + crop_width, upper + crop_height))
        crop = crop.resize((self.size, self.size), Image.Resampling.BILINEAR)
        if torch.rand(()) < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(crop)).permute(2, 0, 1).float() / 255
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
        return (pixels - mean) / std, self.images.labels[index]


def reference_step(data: Path, image_size: int, batch_size: int) -> Step:
    """Return a function that trains one step of the plain loop."""
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
        start = time.perf_counter()
        pixels, labels = next(batches)
        waited = time.perf_counter() - start
        loss = F.cross_entropy(network(pixels.to(device())), labels.to(device()))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss.item()
        return waited

    return step


def resdeploy_step(data: Path, image_size: int, batch_size: int, *, bf16: bool | None) -> Step:
    """Return a function that trains one step as `resdeploy train` does."""
    preprocessing = Preprocessing.standard(image_size)
    images = read_splits(data).train
    config = TrainingConfig(
        data=str(data), image_size=image_size, batch_size=batch_size, bf16=bf16,
        label_smoothing=0.0,
    )  # fmt: skip
    network = initial_network(config, images.classes).network
    learner = Learner(config, network, preprocessing, Process(0, 1, device()))
    learner.train_mode()
    plan = BatchPlan(batch_size=batch_size, shuffle=True, workers=default_workers())
    augmentation = Augmentation(flip=True, min_area=MIN_AREA)
    epochs = [
        EpochImages(images, preprocessing, augmentation, epoch=number) for number in range(EPOCHS)
    ]
    whole = min(batch_size, len(images.files))  # as the plain loop drops a partial batch
    batches = (batch for batch in load_batches(epochs, plan) if len(batch.labels) >= whole)
    generator = np.random.default_rng(0)

    def step() -> float:
        start = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - start
        loss = learner.step(batch, LR, generator)
        if device().type == "cpu":
            loss.tolist()
        return waited

    return step


def operations_per_image(image_size: int, classes: int) -> int:
    """Return the operations of a training step per image.

    Only matrix products and convolutions are counted, as two operations per multiply-add. The
    backward pass needs twice as many operations as the forward pass.
    """
    network = ResNet(Architecture(classes=classes)).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, image_size, image_size))
    return 3 * int(counter.get_total_flops())


def prepare_loop() -> tuple[Callable[[], object], dict[str, Any]]:
    """Warm up the loop that the command line names, and return it and facts about it."""
    name, data, size, batch = sys.argv[1:5]
    torch.manual_seed(0)
    if name == "reference":
        step = reference_step(Path(data), int(size), int(batch))
    else:
        bf16 = False if name == "resdeploy-fp32" else None
        step = resdeploy_step(Path(data), int(size), int(batch), bf16=bf16)
    for _ in range(WARM_UP_STEPS):
        step()
    wait()
    start = time.perf_counter()
    waited = sum(step() for _ in range(MEASURED_STEPS))
    wait()
    waiting = waited / (time.perf_counter() - start)
    # The benchmark does not count the first run of each turn. This run must use up the batches
    # that were decoded during the other turns: two per worker (DataLoader's prefetch_factor).
    steps = max(1, 2 * default_workers())

    def run() -> None:
        for _ in range(steps):
            step()
        wait()

    return run, {"waiting": waiting, "torch": torch.__version__, "images": steps * int(batch)}


def wait() -> None:
    """Wait until the GPU has finished its work."""
    if device().type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    run_worker(prepare_loop)
