"""A comparison of plain and residual networks of two depths, as in He et al. 2015, figure 4.

    python -m benchmarks.training.degradation DATA --output docs/results/degradation.json

The script trains four networks on the same images, in the same order and from the same seed: plain
and residual ones (option A, which adds no parameters, as in the paper's comparison) of 18 and of 34
layers. It writes a JSON file and plots the top-1 errors on training and validation images next to
it. The paper used ImageNet at 224 pixels and 120 epochs; smaller images and fewer epochs may give
other results.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import click
import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.training.loops import device
from resdeploy.filesystem import write_file
from resdeploy.images.class_folders import LabelledImages
from resdeploy.images.preprocessing import Preprocessing
from resdeploy.json_documents import write_document
from resdeploy.machine.device import read_device
from resdeploy.result_files.provenance import collect_provenance
from resdeploy.train.config import TrainingConfig, learning_rate
from resdeploy.train.data.augment import Augmentation
from resdeploy.train.data.dataset import (
    BatchPlan,
    DataSplits,
    EpochImages,
    load_batches,
    read_splits,
)
from resdeploy.train.data.shards import ImageFile
from resdeploy.train.data.workers import default_workers
from resdeploy.train.distributed import Process
from resdeploy.train.evaluation import evaluate, validation_plan
from resdeploy.train.model.architecture import Architecture, Shortcut
from resdeploy.train.model.resnet import ResNet
from resdeploy.train.step import Learner

DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
KINDS = {"plain": Shortcut.PLAIN, "residual": Shortcut.A}
ERROR_IMAGES = 2000  # training images on which the training error is measured
COLOURS = {18: "#0072B2", 34: "#D55E00"}  # of Okabe and Ito, for colour-blind readers


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """The top-1 errors of one network after each epoch."""

    kind: str
    """Key of `KINDS`."""
    layers: int
    train_error: tuple[float, ...]
    """Error on training images without augmentation, in percent."""
    val_error: tuple[float, ...]
    """Error on validation images, in percent."""
    seconds: float
    """Duration of training and evaluation."""


@click.command(context_settings={"show_default": True})
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option("--images", default=10_000, help="Number of training images.")
@click.option("--epochs", default=20, help="Number of epochs.")
@click.option("--image-size", default=32, help="Side of the images in pixels.")
@click.option("--seed", default=0, help="Seed of all randomness.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="JSON file.")
def main(data: Path, images: int, epochs: int, image_size: int, seed: int, output: Path) -> None:
    """Train the four networks on the images in DATA, and write their errors and a plot."""
    config = TrainingConfig(
        data=data.name, epochs=epochs, image_size=image_size, batch_size=128, lr=0.1,
        weight_decay=1e-4, decay_all=True, nesterov=False, label_smoothing=0.0, seed=seed,
        compile=False,
    )  # fmt: skip
    splits = read_splits(data)
    splits = replace(splits, train=balanced_subset(splits.train, images))
    networks = [(kind, layers) for kind in KINDS for layers in DEPTHS]
    # Small networks on small images leave most of a GPU idle, so all four train at the same time.
    parallel = len(networks) if device().type == "cuda" else 1
    curves = []
    with ProcessPoolExecutor(parallel, get_context("spawn")) as pool:
        futures = [
            pool.submit(train_network, config, splits, *network, parallel) for network in networks
        ]
        for future in futures:
            curve = future.result()
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
        "curves": curves,
    }
    write_document(output, document)


def balanced_subset(images: LabelledImages[ImageFile], count: int) -> LabelledImages[ImageFile]:
    """Return about `count` images, with the same number of images of every class."""
    per_class = max(1, count // len(images.classes))
    labels = np.array(images.labels)
    indices = np.concatenate(
        [np.flatnonzero(labels == label)[:per_class] for label in range(len(images.classes))]
    )
    return replace(
        images,
        files=tuple(images.files[index] for index in indices),
        labels=tuple(images.labels[index] for index in indices),
    )


def train_network(
    config: TrainingConfig, splits: DataSplits, kind: str, layers: int, parallel: int = 1
) -> Curve:
    """Train one of the networks, and measure both errors after each epoch.

    `parallel` networks are trained at the same time and share the cores.
    """
    torch.manual_seed(config.seed)
    classes = len(splits.train.classes)
    network = ResNet(Architecture(blocks=DEPTHS[layers], shortcut=KINDS[kind], classes=classes))
    preprocessing = Preprocessing.standard(config.image_size)
    process = Process(0, 1, device())
    learner = Learner(config, network, preprocessing, process)
    workers = -(-default_workers() // parallel)
    epochs = [
        EpochImages(
            splits.train, preprocessing, Augmentation(flip=True, min_area=0.5),
            seed=config.seed, epoch=epoch,
        )
        for epoch in range(config.epochs)
    ]  # fmt: skip
    plan = BatchPlan(batch_size=config.batch_size, shuffle=True, workers=workers)
    steps = len(plan.step_sizes(len(splits.train.files)))
    batches = load_batches(epochs, plan)
    plan = validation_plan(process, min(workers, 1))
    evaluated = [
        (images, load_batches([EpochImages(images, preprocessing)] * config.epochs, plan))
        for images in (balanced_subset(splits.train, ERROR_IMAGES), splits.val)
    ]
    errors: list[list[float]] = [[], []]
    start = time.perf_counter()
    for epoch in range(config.epochs):
        learner.train_mode()
        for step in range(steps):
            rate = learning_rate(config, epoch + step / steps)
            learner.step(next(batches), rate, np.random.default_rng(0))
        for split_errors, (images, split_batches) in zip(errors, evaluated):
            once = islice(split_batches, math.ceil(len(images.files) / plan.batch_size))
            evaluation = evaluate(learner.classifier, once, classes, process)
            split_errors.append(100 - evaluation.accuracy)
    return Curve(
        kind=kind,
        layers=layers,
        train_error=tuple(errors[0]),
        val_error=tuple(errors[1]),
        seconds=time.perf_counter() - start,
    )


def plot(curves: Sequence[Curve]) -> bytes:
    """Return a PNG with plain networks left and residual ones right; dashes show validation."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    for axes, kind in zip(figure.subplots(1, 2, sharey=True), KINDS):
        for curve in (curve for curve in curves if curve.kind == kind):
            epochs = range(1, len(curve.train_error) + 1)
            style = {"color": COLOURS[curve.layers], "linewidth": 1 + curve.layers / 34}
            axes.plot(epochs, curve.train_error, label=f"{curve.layers} layers, training", **style)
            axes.plot(epochs, curve.val_error, "--", label="validation", alpha=0.6, **style)
        axes.set(xlabel="epoch", title=kind)
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.locator_params(axis="x", integer=True)
    figure.axes[0].set_ylabel("error (%)")
    stream = io.BytesIO()
    figure.savefig(stream, dpi=120, format="png")
    return stream.getvalue()


if __name__ == "__main__":
    main()
