"""The time that decoding JPEG files at a reduced resolution saves, and how the pixels change.

    python -m benchmarks.decoding PICTURES --bundle r34.bundle --output docs/results/decoding.json

Each time is the fastest of several calls in one thread, for pictures of several sizes. Each change
is the mean difference of the pixels, in steps of 1/255, for the files in PICTURES and networks of
several sizes. With --bundle, the script also compares the bundle's FP32 outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from timeit import repeat
from typing import Any

import click
import numpy as np

from benchmarks.serving.payloads import make_jpeg
from resdeploy.images.loading import load_image
from resdeploy.images.preprocessing import Preprocessing
from resdeploy.json_documents import write_document
from resdeploy.machine.cpu import read_cpu
from resdeploy.runtime.model import load
from resdeploy.statistics import agreement_percent, sqnr_db
from resdeploy.tables import table

SIZES = ((500, 375), (1600, 1200), (4032, 3024))
NETWORKS = (32, 64, 112, 224)
REPEATS = 9
WHOLE = 1e6  # a gap so large that every file is decoded at full resolution


@click.command(context_settings={"show_default": True})
@click.argument("pictures", type=click.Path(path_type=Path))
@click.option("--bundle", type=click.Path(path_type=Path), help="Bundle whose outputs to compare.")
@click.option("--output", type=click.Path(path_type=Path), help="JSON file to write.")
def main(pictures: Path, bundle: Path | None, output: Path | None) -> None:
    """Measure the times and changes for the JPEG files in PICTURES."""
    files = sorted(p for p in pictures.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    results: dict[str, Any] = {
        "date": date.today().isoformat(),
        "machine": {"cpu": read_cpu().model},
        "times": [measure_time(size) for size in SIZES],
        "changes": [measure_change(files, size) for size in NETWORKS],
    }
    if bundle is not None:
        results["outputs"] = compare_outputs(files, bundle)
    click.echo(format_results(results))
    if output is not None:
        write_document(output, results)


def measure_time(size: tuple[int, int]) -> dict[str, Any]:
    """Time the decoding of a picture of `size` for a network of 224 pixels."""
    data, reduced = make_jpeg(size), Preprocessing.standard(224)
    full = replace(reduced, reducing_gap=WHOLE)
    return {
        "width": size[0],
        "height": size[1],
        "bytes": len(data),
        "full_ms": _fastest_ms(lambda: load_image(data, full)),
        "reduced_ms": _fastest_ms(lambda: load_image(data, reduced)),
    }


def measure_change(files: Sequence[Path], size: int) -> dict[str, Any]:
    """Measure the change of the pixels for a network of `size` pixels."""
    reduced = Preprocessing.standard(size)
    full = replace(reduced, reducing_gap=WHOLE)
    means = [
        float(np.abs(load_image(file, reduced).astype(int) - load_image(file, full)).mean())
        for file in files
    ]
    changed = [mean for mean in means if mean]
    return {
        "network": size,
        "pictures": len(files),
        "changed": len(changed),
        "mean": float(np.mean(changed)) if changed else 0.0,
        "worst": max(changed, default=0.0),
    }


def compare_outputs(files: Sequence[Path], path: Path) -> dict[str, Any]:
    """Compare the outputs of a bundle with and without the reduced resolution."""
    with load(path, precision="fp32") as model:
        preprocessing = model.bundle.manifest.preprocessing
        standard = Preprocessing.standard(preprocessing.image_size)
        reduced, full = (
            model.run(np.stack([load_image(file, applied) for file in files]))
            for applied in (standard, replace(standard, reducing_gap=WHOLE))
        )
    return {
        "network": preprocessing.image_size,
        "pictures": len(files),
        "agreement_percent": agreement_percent(full, reduced),
        "sqnr_db": float(np.median(sqnr_db(full, reduced))),
    }


def format_results(results: dict[str, Any]) -> str:
    """Return the results as text: two tables and a sentence."""
    times = [
        [
            f"{row['width']}x{row['height']}",
            f"{row['full_ms']:.1f} ms",
            f"{row['reduced_ms']:.1f} ms",
            f"{row['full_ms'] / row['reduced_ms']:.1f}x",
        ]
        for row in results["times"]
    ]
    changes = [
        [
            f"{row['network']}",
            f"{row['changed']} of {row['pictures']}",
            f"{row['mean']:.2f}",
            f"{row['worst']:.2f}",
        ]
        for row in results["changes"]
    ]
    lines = [
        table(["picture", "full", "reduced", "speed-up"], times),
        table(["network", "changed", "mean change", "largest change"], changes),
    ]
    if outputs := results.get("outputs"):
        lines.append(
            f"With a network of {outputs['network']} pixels, {outputs['agreement_percent']:.1f} % "
            f"of {outputs['pictures']} pictures keep their predicted class; the median SQNR is "
            f"{outputs['sqnr_db']:.1f} dB."
        )
    return "\n\n".join(lines)


def _fastest_ms(call: Callable[[], object]) -> float:
    return 1000 * min(repeat(call, number=1, repeat=REPEATS))


if __name__ == "__main__":
    main()
