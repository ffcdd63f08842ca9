"""Do deeper plain networks train worse, and residual ones not? As in He et al. 2015, figure 4.

    python -m benchmarks.training.degradation DATA --epochs 20 --output docs/results/degradation.json

Trains four networks on the same images in the same order from the same seed: plain and residual
(option A, which adds no parameters, as in the paper's comparison), of 18 and of 34 layers. The
figure next to the JSON file plots the error on the training images, not mixed, not smoothed, and on
the validation images.

The paper's effect is one of ImageNet at 224 pixels and 120 epochs; what small images and few epochs
show is what they show.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import click
import numpy as np
import torch

from benchmarks.training.loops import device
from resdeploy.images.folder import LabelledImages
from resdeploy.images.preprocessing import Preprocessing
from resdeploy.machine.device import read_device
from resdeploy.results.provenance import collect_provenance
from resdeploy.storage import write_file
from resdeploy.train.config import TrainingConfig, learning_rate
from resdeploy.train.data.augment import Augmentation
from resdeploy.train.data.dataset import (
    DataSplits,
    EpochImages,
    Walk,
    default_workers,
    read_splits,
    run_batches,
)
from resdeploy.train.data.shards import ImageFile
from resdeploy.train.distributed import Process
from resdeploy.train.evaluation import evaluate, validation_walk
from resdeploy.train.model.architecture import Architecture, Shortcut
from resdeploy.train.model.resnet import ResNet
from resdeploy.train.run.curves import BLUE, ORANGE, new_figure, png_of
from resdeploy.train.step import Learner

DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
KINDS = {"plain": Shortcut.PLAIN, "residual": Shortcut.A}
LOOKED_AT = 2000  # of the training images, for their error
COLOURS = {18: BLUE, 34: ORANGE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One network's errors after each epoch."""

    kind: str
    layers: int
    train_error: tuple[float, ...]
    """In percent, of the training images that were looked at, as they are deployed."""
    val_error: tuple[float, ...]
    """In percent."""
    seconds: float


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option("--images", type=int, default=10_000, show_default=True, help="To train on.")
@click.option("--epochs", type=int, default=20, show_default=True)
@click.option("--image-size", type=int, default=32, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), required=True, help="JSON file.")
def main(data: Path, images: int, epochs: int, image_size: int, seed: int, output: Path) -> None:
    """Train the four networks, print, plot, and write down."""
    config = TrainingConfig(
        data=data.name, epochs=epochs, image_size=image_size, batch_size=128, lr=0.1,
        weight_decay=1e-4, decay_all=True, nesterov=False, label_smoothing=0.0, seed=seed,
        compile=False,
    )  # fmt: skip
    splits = read_splits(data)
    splits = DataSplits(train=first_of_each(splits.train, images), val=splits.val)
    networks = [(kind, layers) for kind in KINDS for layers in DEPTHS]
    # Small networks on small images leave most of a GPU idle: there all four train at once.
    together = len(networks) if device().type == "cuda" else 1
    curves = []
    with ProcessPoolExecutor(together, get_context("spawn")) as pool:
        jobs = [pool.submit(train, config, splits, *network, together) for network in networks]
        for job in jobs:
            curve = job.result()
            curves.append(curve)
            click.echo(
                f"{curve.kind} {curve.layers}: training error {curve.train_error[-1]:.2f} %, "
                f"validation error {curve.val_error[-1]:.2f} %, {curve.seconds:.0f} s"
            )
    write_file(output.with_suffix(".png"), plot(curves))
    document = {
        "training_images": len(splits.train.files),
        "config": config.to_json(),
        **collect_provenance(read_device().to_json()),
        "curves": [asdict(curve) for curve in curves],
    }
    write_file(output, (json.dumps(document, indent=2) + "\n").encode())


def first_of_each(images: LabelledImages[ImageFile], count: int) -> LabelledImages[ImageFile]:
    """About `count` images, as many of each class as the others."""
    each = max(1, count // len(images.classes))
    chosen = np.concatenate(
        [
            np.flatnonzero(np.array(images.labels) == label)[:each]
            for label in range(len(images.classes))
        ]
    )
    return LabelledImages(
        classes=images.classes,
        files=tuple(images.files[index] for index in chosen),
        labels=tuple(images.labels[index] for index in chosen),
    )


def train(
    config: TrainingConfig, splits: DataSplits, kind: str, layers: int, together: int = 1
) -> Curve:
    """Train one of the networks, and look at both errors after each epoch.

    Args:
        config: Settings of all of them.
        splits: The images.
        kind: A key of `KINDS`.
        layers: A key of `DEPTHS`.
        together: How many are trained at the same time, and share the cores.
    """
    torch.manual_seed(config.seed)
    architecture = Architecture(
        blocks=DEPTHS[layers], shortcut=KINDS[kind], classes=len(splits.train.classes)
    )
    preprocessing = Preprocessing.standard(config.image_size)
    process = Process(0, 1, device())
    learner = Learner(config, ResNet(architecture), preprocessing, process)
    workers = -(-default_workers() // together)
    epochs = [
        EpochImages(
            splits.train, preprocessing, Augmentation(flip=True, min_area=0.5),
            seed=config.seed, epoch=epoch,
        )
        for epoch in range(config.epochs)
    ]  # fmt: skip
    steps = len(splits.train.files) // config.batch_size
    walk = Walk(batch_size=config.batch_size, shuffle=True, workers=workers)
    batches = run_batches(epochs, walk)
    look = validation_walk(process, min(workers, 1))
    looked_at = [
        (images, run_batches([EpochImages(images, preprocessing)] * config.epochs, look))
        for images in (first_of_each(splits.train, LOOKED_AT), splits.val)
    ]
    errors: list[list[float]] = [[], []]
    start = time.perf_counter()
    for epoch in range(config.epochs):
        learner.train_mode()
        for step in range(steps):
            rate = learning_rate(config, epoch + step / steps)
            learner.step(next(batches), rate, np.random.default_rng(0))
        for errors_of, (images, walks) in zip(errors, looked_at):
            once = islice(walks, math.ceil(len(images.files) / look.batch_size))
            found = evaluate(learner.classifier, once, len(images.classes), process)
            errors_of.append(100 - found.accuracy)
    return Curve(
        kind=kind,
        layers=layers,
        train_error=tuple(errors[0]),
        val_error=tuple(errors[1]),
        seconds=time.perf_counter() - start,
    )


def plot(curves: Sequence[Curve]) -> bytes:
    """A PNG: plain networks to the left, residual ones to the right; dashed is validation."""
    figure = new_figure(8, 3.4)
    for axes, kind in zip(figure.subplots(1, 2, sharey=True), KINDS):
        for curve in (curve for curve in curves if curve.kind == kind):
            epochs = range(1, len(curve.train_error) + 1)
            style = {"color": COLOURS[curve.layers], "linewidth": 1 + curve.layers / 34}
            axes.plot(epochs, curve.train_error, label=f"{curve.layers} layers, training", **style)
            axes.plot(epochs, curve.val_error, "--", label="validation", alpha=0.6, **style)
        axes.set(xlabel="epoch", title=kind)
        axes.legend(frameon=False, fontsize=8)
    figure.axes[0].set_ylabel("error (%)")
    return png_of(figure)


if __name__ == "__main__":
    main()
