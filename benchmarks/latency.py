"""The latency of a ResNet-34 with 1000 classes at 224x224, against PyTorch eager.

    python -m benchmarks.latency --threads 1 --threads 2 --output docs/results/latency.json

The weights are random, because their values do not change the time. Each number of threads is one
benchmark, as `resdeploy bench` makes it, with all contenders.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import torch
from PIL import Image

from resdeploy.bundle.bundle import Bundle, open_bundle
from resdeploy.cli.bench import benchmark_text
from resdeploy.export.golden_images import synthetic_images
from resdeploy.export.pipeline import ExportConfig, export
from resdeploy.json_documents import jsonable, write_document
from resdeploy.progress import progress_bar
from resdeploy.runtime.bench.benchmark import BenchmarkConfig, run_benchmark
from resdeploy.train.model.architecture import Architecture
from resdeploy.train.model.resnet import ResNet

CALIBRATION_IMAGES = 64


@click.command(context_settings={"show_default": True})
@click.option("--threads", multiple=True, default=(1, 2), help="Threads of each contender.")
@click.option("--batch", default=1, help="Images in one call.")
@click.option("--image-size", default=224, help="Height and width in pixels.")
@click.option("--seconds", default=10.0, help="Time limit per contender.")
@click.option("--bundle", type=click.Path(path_type=Path), help="Bundle.  [default: export one]")
@click.option("--also", multiple=True, default=("openvino",), help="Additional backend.")
@click.option("--without", multiple=True, help="Contender to leave out.")
@click.option("--output", type=click.Path(path_type=Path), help="JSON file to write.")
def main(
    threads: tuple[int, ...],
    batch: int,
    image_size: int,
    seconds: float,
    bundle: Path | None,
    also: tuple[str, ...],
    without: tuple[str, ...],
    output: Path | None,
) -> None:
    """Export a bundle and benchmark it with each number of threads."""
    with tempfile.TemporaryDirectory() as folder:
        opened = open_bundle(bundle) if bundle else make_bundle(Path(folder), image_size)
        results = []
        for count in threads:
            config = BenchmarkConfig(
                batch=batch, threads=count, seconds=seconds, also=also, without=without
            )
            result = run_benchmark(opened, config, progress=progress_bar)
            click.echo(benchmark_text(result) + "\n")
            document = jsonable(result)
            if baseline := document["environment"]["baseline"]:
                baseline["weights"] = "random"  # instead of the path of a temporary checkpoint
            results.append(document)
    if output is not None:
        write_document(output, results)


def make_bundle(folder: Path, image_size: int) -> Bundle:
    """Export a bundle with all four graphs of an untrained network."""
    torch.manual_seed(0)
    checkpoint = folder / "resnet34.pth"
    torch.save(ResNet(Architecture(classes=1000)).state_dict(), checkpoint)
    images = folder / "images"
    images.mkdir()
    for index, pixels in enumerate(synthetic_images(image_size, CALIBRATION_IMAGES, seed=1)):
        Image.fromarray(pixels).save(images / f"{index:03d}.png")
    config = ExportConfig(
        source=checkpoint,
        output=folder / "resnet34.bundle",
        image_size=image_size,
        fp16=True,
        int8=True,
        calibration_data=images,
        calibration_images=CALIBRATION_IMAGES,
        calibrator="max",  # the calibrator does not change the time
    )
    return open_bundle(export(config, progress=progress_bar).bundle)


if __name__ == "__main__":
    main()
