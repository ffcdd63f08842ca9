"""Latency of a ResNet-34 of 1000 classes at 224x224, against PyTorch eager, by number of threads.

    python -m benchmarks.latency --threads 1 --threads 2 --output docs/results/latency.json

Weights are random: their values do not change the time. Each number of threads is one run of
`resdeploy bench`, with every contender in it.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import click
import torch
from PIL import Image

from resdeploy.bundle.bundle import Bundle, open_bundle
from resdeploy.cli.bench import benchmark_text
from resdeploy.documents import jsonable
from resdeploy.export.golden import synthetic_images
from resdeploy.export.pipeline import ExportConfig, export
from resdeploy.progress import progress_bar
from resdeploy.runtime.bench.run import BenchmarkConfig, run_benchmark
from resdeploy.storage import write_file
from resdeploy.train.model.architecture import Architecture
from resdeploy.train.model.resnet import ResNet

CALIBRATION_IMAGES = 64


@click.command()
@click.option("--threads", type=int, multiple=True, default=(1, 2), show_default=True)
@click.option("--batch", type=int, default=1, show_default=True)
@click.option("--image-size", type=int, default=224, show_default=True)
@click.option("--seconds", type=float, default=10.0, show_default=True, help="For each contender.")
@click.option("--bundle", type=click.Path(path_type=Path), help="One that was made before.")
@click.option("--also", multiple=True, default=("openvino",), show_default=True)
@click.option("--without", multiple=True)
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
    """Export, benchmark, print, and write down."""
    with tempfile.TemporaryDirectory() as folder:
        opened = open_bundle(bundle) if bundle else make_bundle(Path(folder), image_size)
        results = []
        for count in threads:
            config = BenchmarkConfig(
                batch=batch, threads=count, seconds=seconds, also=also, without=without
            )
            result = run_benchmark(opened, config, progress=progress_bar)
            click.echo(benchmark_text(result) + "\n")
            results.append(jsonable(result))
    if output is not None:
        for result in results:  # where the temporary bundle lay says nothing
            if baseline := result["environment"]["baseline"]:
                baseline["weights"] = "random"
        write_file(output, (json.dumps(results, indent=2) + "\n").encode())


def make_bundle(folder: Path, image_size: int) -> Bundle:
    """A bundle of all four graphs of a network that was never trained."""
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
        calibrator="max",  # which one does not change the time
    )
    return open_bundle(export(config, progress=progress_bar).bundle)


if __name__ == "__main__":
    main()
