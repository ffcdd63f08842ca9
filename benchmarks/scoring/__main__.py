"""Rows per second of `resdeploy score` against plain scripts with Ray Data and with Daft.

    python -m benchmarks.scoring --picture 500x375 --rows 4000 --output docs/results/scoring.json

All contenders use the same graph, int8-cpu.onnx in ONNX Runtime, the same pictures and all cores of
this machine, and write Parquet. `bare` is the engine alone, with prepared images in memory. In each
round, every contender runs once, in a new process and in random order. Its time is that of its work
without the start of Python and, for Ray, of the cluster: from the first listing to the last file.
Without --bundle the model is an INT8 ResNet-34 with 1000 classes and random weights.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import click

from benchmarks.latency import make_bundle
from benchmarks.scoring.contenders import CONTENDERS
from benchmarks.serving.payloads import make_jpeg
from resdeploy.json_documents import write_document
from resdeploy.machine.cpu import read_cpu
from resdeploy.machine.device import available_cores
from resdeploy.tables import table

DIFFERENT_PICTURES = 50
PATH = click.Path(path_type=Path)


@click.command(context_settings={"show_default": True})
@click.option("--bundle", "path", type=PATH, help="Bundle.  [default: a new one]")
@click.option(
    "--picture",
    default="500x375",  # the most frequent size in ImageNet
    callback=lambda context, parameter, text: tuple(map(int, text.split("x"))),
    help="Width and height in pixels.",
)
@click.option("--rows", default=2000, help="Number of pictures.")
@click.option("--rounds", default=3, help="Runs of each contender.")
@click.option("--output", type=PATH, help="JSON file to update.")
def main(
    path: Path | None, picture: tuple[int, int], rows: int, rounds: int, output: Path | None
) -> None:
    """Measure all contenders, print the results and update the output file."""
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        bundle = path or make_bundle(work, 224).path
        pictures = make_pictures(work / "pictures", picture, rows)
        seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
        generator = random.Random(0)
        for number in range(rounds):
            for name in generator.sample(list(CONTENDERS), len(CONTENDERS)):
                seconds[name].append(
                    time_contender(name, bundle, pictures, work / f"{name}-{number}")
                )
                click.echo(f"round {number + 1}, {name}: {seconds[name][-1]:.1f} s", err=True)
    bare = statistics.median(seconds["bare"])
    results = [
        {
            "contender": name,
            "rows_per_second": rows / statistics.median(times),
            "lowest": rows / max(times),
            "highest": rows / min(times),
            "percent_of_bare": 100 * bare / statistics.median(times),
        }
        for name, times in seconds.items()
    ]
    click.echo(results_text(results))
    if output is not None:
        document = json.loads(output.read_text()) if output.exists() else {}
        document[f"{picture[0]}x{picture[1]}"] = {
            "date": date.today().isoformat(), "cpu": read_cpu().model, "cores": available_cores(),
            "rows": rows, "rounds": rounds, "results": results,
        }  # fmt: skip
        write_document(output, document)


def make_pictures(folder: Path, size: tuple[int, int], rows: int) -> Path:
    """Write JPEG files of `size`, of which a few are different and the others are links to them."""
    folder.mkdir()
    data, files = make_jpeg(size), list[Path]()
    for number in range(rows):
        file = folder / f"{number:06}.jpg"
        if number < DIFFERENT_PICTURES:
            file.write_bytes(data)
            files.append(file)
        else:
            file.hardlink_to(files[number % DIFFERENT_PICTURES])
    return folder


def time_contender(name: str, bundle: Path, pictures: Path, output: Path) -> float:
    """Run one contender in a process of its own; return its seconds."""
    command = [sys.executable, "-m", "benchmarks.scoring.contenders", name]
    done = subprocess.run(
        [*command, str(bundle), str(pictures), str(output)],
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return float(done.stdout.split()[-1])


def results_text(results: list[dict[str, Any]]) -> str:
    """Return the results as a table."""
    head = ["contender", "rows/s", "lowest to highest", "share of bare"]
    return table(head, [
        [
            row["contender"], f"{row['rows_per_second']:.1f}",
            f"{row['lowest']:.1f} to {row['highest']:.1f}", f"{row['percent_of_bare']:.0f} %",
        ]
        for row in results
    ])  # fmt: skip


if __name__ == "__main__":
    main()
