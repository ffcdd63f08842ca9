"""What decoding JPEG files at a reduced resolution saves, and what it changes.

    python -m benchmarks.decoding PICTURES --bundle r34.bundle --output docs/results/decoding.json

Time: of a picture of each size, in one thread, at its best. Change: for the files in PICTURES, in
steps of 1/255, as networks of several sizes see them. With a bundle also its answers, in FP32.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from io import BytesIO
from pathlib import Path
from time import perf_counter
from typing import Any

import click
import numpy as np
from PIL import Image

from resdeploy.export.golden import synthetic_images
from resdeploy.images.preprocessing import Preprocessing, UInt8Array, load_image
from resdeploy.machine.cpu import read_cpu
from resdeploy.runtime.model import load
from resdeploy.statistics import sqnr_db
from resdeploy.storage import write_file
from resdeploy.tables import table

SIZES = ((500, 375), (1600, 1200), (4032, 3024))
NETWORKS = (32, 64, 112, 224)
REPEATS = 9


@click.command()
@click.argument("pictures", type=click.Path(path_type=Path))
@click.option("--bundle", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="JSON file to write.")
def main(pictures: Path, bundle: Path | None, output: Path | None) -> None:
    """Measure, print, and write down."""
    files = sorted(p for p in pictures.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    found: dict[str, Any] = {
        "date": date.today().isoformat(),
        "machine": {"cpu": read_cpu().model},
        "times": [time_of(size) for size in SIZES],
        "changes": [change_of(files, size) for size in NETWORKS],
    }
    if bundle is not None:
        found["answers"] = answers_of(files, bundle)
    click.echo(text(found))
    if output is not None:
        write_file(output, (json.dumps(found, indent=2) + "\n").encode())


def whole(preprocessing: Preprocessing) -> Preprocessing:
    """The same without a reduction."""
    return replace(preprocessing, reducing_gap=None)


def time_of(size: tuple[int, int]) -> dict[str, Any]:
    """Milliseconds for a picture of `size`, for a network of 224 pixels."""
    stream = BytesIO()
    picture = Image.fromarray(synthetic_images(512, 1, seed=3)[0])
    picture.resize(size, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    data, chosen = stream.getvalue(), Preprocessing.standard(224)
    return {
        "width": size[0],
        "height": size[1],
        "bytes": len(data),
        "whole_ms": _fastest(lambda: load_image(data, whole(chosen))),
        "reduced_ms": _fastest(lambda: load_image(data, chosen)),
    }


def change_of(files: Sequence[Path], size: int) -> dict[str, Any]:
    """By how much pixels change for a network of `size`."""
    chosen = Preprocessing.standard(size)
    means = []
    for file in files:
        reduced, full = load_image(file, chosen), load_image(file, whole(chosen))
        means.append(float(np.abs(reduced.astype(int) - full).mean()))
    changed = [mean for mean in means if mean]
    return {
        "network": size,
        "pictures": len(files),
        "changed": len(changed),
        "mean": float(np.mean(changed)) if changed else 0.0,
        "worst": max(changed, default=0.0),
    }


def answers_of(files: Sequence[Path], path: Path) -> dict[str, Any]:
    """How a network's answers change."""
    with load(path, precision="fp32") as model:
        preprocessing = model.bundle.manifest.preprocessing
        chosen = Preprocessing.standard(preprocessing.image_size)

        def logits(how: Preprocessing) -> np.ndarray:
            images: list[UInt8Array] = [load_image(file, how) for file in files]
            return model.run(np.stack(images))

        reduced, full = logits(chosen), logits(whole(chosen))
    return {
        "network": preprocessing.image_size,
        "pictures": len(files),
        "same_class_percent": float(100 * (reduced.argmax(1) == full.argmax(1)).mean()),
        "sqnr_db": float(np.median(sqnr_db(full, reduced))),
    }


def text(found: dict[str, Any]) -> str:
    """Two tables, and a line."""
    times = [
        [
            f"{row['width']}x{row['height']}",
            f"{row['whole_ms']:.1f} ms",
            f"{row['reduced_ms']:.1f} ms",
            f"{row['whole_ms'] / row['reduced_ms']:.1f}x",
        ]
        for row in found["times"]
    ]
    changes = [
        [
            f"{row['network']}",
            f"{row['changed']} of {row['pictures']}",
            f"{row['mean']:.2f}",
            f"{row['worst']:.2f}",
        ]
        for row in found["changes"]
    ]
    lines = [
        table(["picture", "whole", "reduced", "speed-up"], times),
        table(["network", "changed", "mean step", "worst picture"], changes),
    ]
    if answers := found.get("answers"):
        lines.append(
            f"a network of {answers['network']} pixels gives {answers['same_class_percent']:.1f} % "
            f"of {answers['pictures']} pictures the same class, at {answers['sqnr_db']:.1f} dB"
        )
    return "\n\n".join(lines)


def _fastest(call: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        start = perf_counter()
        call()
        times.append(1000 * (perf_counter() - start))
    return min(times)


if __name__ == "__main__":
    main()
