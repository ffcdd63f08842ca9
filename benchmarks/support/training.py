"""A short training of the networks of the support matrix, so that their statistics are real."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from benchmarks.support.networks import Subject
from resdeploy.calibration.image_set import draw
from resdeploy.images.class_folders import read_image_folder
from resdeploy.images.folder import read_batches
from resdeploy.images.preprocessing import Preprocessing, UInt8Array
from resdeploy.train.model.resnet import Normalize

PREPROCESSING = Preprocessing(image_size=64)
IMAGES = 20_000  # of the training set that are decoded; the steps see no more of them
PEAK_RATE = 2e-3  # of the one-cycle schedule of AdamW
STATISTICS_BATCHES = 16  # over which the statistics of the batch norms are computed at the end


class TrainingImages:
    """Images of `train/` in a folder, which are decoded at the first use."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self._loaded: tuple[UInt8Array, np.ndarray] | None = None

    def load(self) -> tuple[UInt8Array, np.ndarray]:
        """Return images (N, H, W, 3) in random order, and their classes (N,)."""
        if self._loaded is None:
            labelled = read_image_folder(self.data / "train")
            classes = dict(zip(labelled.files, labelled.labels))
            files = draw(labelled.files, 0)[:IMAGES]
            (batch,) = read_batches(files, PREPROCESSING, len(files))
            found = [classes[files[position]] for position in batch.positions]
            self._loaded = batch.images, np.array(found)
        return self._loaded


def trained(
    name: str, subject: Subject, cache: Path, images: TrainingImages, log: Callable[[str], None]
) -> nn.Module:
    """Return the network with the weights in `cache`, where it is trained and saved if missing."""
    torch.manual_seed(0)
    network = subject.make()
    file = cache / f"{name}.safetensors"
    if not file.exists():
        start = time.monotonic()
        _train(network, subject, *images.load())
        cache.mkdir(parents=True, exist_ok=True)
        state = {key: value.contiguous().clone() for key, value in network.state_dict().items()}
        save_file(state, file)
        log(f"{subject.title}: trained in {time.monotonic() - start:.0f} s")
    network.load_state_dict(load_file(file))
    return network.eval()


def _train(network: nn.Module, subject: Subject, images: UInt8Array, classes: np.ndarray) -> None:
    """Train with AdamW and a one-cycle schedule, and with flipped images as the augmentation."""
    generator = np.random.default_rng(0)
    normalize, batch = Normalize(PREPROCESSING), subject.batch
    network.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]

    def inputs(chosen: np.ndarray) -> torch.Tensor:
        flips = generator.random(len(chosen)) < 0.5
        picked = images[chosen]
        picked[flips] = picked[flips, :, ::-1]
        normalised: torch.Tensor = normalize(torch.from_numpy(picked))
        return normalised.contiguous(memory_format=torch.channels_last)

    optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, subject.steps)
    order = np.concatenate(
        [
            generator.permutation(len(images))
            for _ in range(-(-subject.steps * batch // len(images)))
        ]
    )
    for step in range(subject.steps):
        chosen = order[step * batch : (step + 1) * batch]
        with torch.autocast("cpu", torch.bfloat16, enabled=subject.half):
            logits = network(inputs(chosen))
        loss = F.cross_entropy(logits.float(), torch.from_numpy(classes[chosen]))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    _recompute_statistics(
        network, [inputs(order[i * batch :][:batch]) for i in range(STATISTICS_BATCHES)]
    )


@torch.inference_mode()
def _recompute_statistics(network: nn.Module, batches: list[torch.Tensor]) -> None:
    """Set the statistics of the batch norms to those of `batches`.

    Their running means lag behind the weights after so few steps, and the definitions of
    `transformers` use TensorFlow's momentum, which PyTorch reads as its complement.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    for values in batches:
        network(values)
