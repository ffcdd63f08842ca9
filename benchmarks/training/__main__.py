"""A benchmark of the throughput of `resdeploy train`, compared with a plain training loop.

    python -m benchmarks.training DATA --image-size 32 --output docs/results/training.json

DATA holds `train/` and `val/`. Each loop of `loops.py` runs in its own process, and the loops take
turns. The peak is the speed of the fastest matrix product, measured before the loops.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from benchmarks.gpu.ceilings import measure_gpu_ceilings
from benchmarks.results import LoopResult, Training
from benchmarks.training.loops import LOOPS, device, operations_per_image
from resdeploy.bench.process import Contender
from resdeploy.documents import write_document
from resdeploy.images.folder import read_image_folder
from resdeploy.machine.device import available_cores
from resdeploy.progress import progress_bar
from resdeploy.results.provenance import Environment
from resdeploy.runtime.bench.rounds import interleave, medians
from resdeploy.statistics import ratio_interval
from resdeploy.tables import table
from resdeploy.train.step import computes_bf16

CPU_MATRIX = 2048


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--image-size", type=int, default=32, show_default=True, help="Side of the images in pixels."
)
@click.option("--batch-size", type=int, default=64, show_default=True, help="Images per step.")
@click.option(
    "--seconds", type=float, default=60.0, show_default=True, help="Time to measure each loop."
)
@click.option("--output", type=click.Path(path_type=Path), help="JSON file to write.")
def main(data: Path, image_size: int, batch_size: int, seconds: float, output: Path | None) -> None:
    """Measure the training loops on the images in DATA and print a table."""
    results = run(data, image_size, batch_size, seconds)
    rows = [
        [
            result.loop, result.precision, f"{result.images_per_second:.0f}",
            f"{result.speedup:.2f}x", f"{result.speedup_low:.2f}-{result.speedup_high:.2f}",
            f"{result.waiting:.0%}", f"{result.share_of_peak:.0%}",
        ]
        for result in results
    ]  # fmt: skip
    head = ["loop", "precision", "images/s", "speed-up", "95 % interval", "waiting", "of peak"]
    click.echo(table(head, rows))
    if output is not None:
        document = Training(
            environment=Environment.collect(image_size=image_size),
            image_size=image_size,
            batch_size=batch_size,
            results=tuple(results),
        )
        write_document(output, document)


def run(data: Path, image_size: int, batch_size: int, seconds: float) -> list[LoopResult]:
    """Measure the loops in turns; speed-ups are relative to the first one."""
    on_gpu = device().type == "cuda"
    ceilings = (
        measure_gpu_ceilings()["operations_per_second"]
        if on_gpu
        else measure_gpu_ceilings("cpu", matrix=CPU_MATRIX, seconds=1.0)["operations_per_second"]
    )
    classes = len(read_image_folder(data / "train").classes)
    operations = operations_per_image(image_size, classes)
    arguments = [str(data), str(image_size), str(batch_size)]
    contenders: list[Contender] = []
    try:
        for name in LOOPS:
            contender = Contender.start(
                name, "benchmarks.training.loops", [name, *arguments], available_cores()
            )
            contenders.append(contender)  # before the next one starts, so that all are stopped
        times = interleave(contenders, seconds, progress_bar)
    finally:
        for contender in contenders:
            contender.stop()
    results = []
    for contender, rounds in zip(contenders, times):
        pooled = np.concatenate(rounds)
        rate = 1000 * contender.facts["images"] * len(pooled) / float(pooled.sum())
        speedup, low, high = ratio_interval(medians(times[0]), medians(rounds))
        precision = precision_of(contender.name)
        results.append(
            LoopResult(
                loop=contender.name,
                precision=precision,
                images_per_second=rate,
                speedup=speedup,
                speedup_low=low,
                speedup_high=high,
                waiting=contender.facts["waiting"],
                share_of_peak=rate * operations / ceilings[precision],
            )
        )
    return results


def precision_of(loop: str) -> str:
    """Return the precision in which a loop computes on this machine."""
    if loop != LOOPS[-1]:
        return "fp32"
    return "bf16" if computes_bf16(device()) else "fp32"


if __name__ == "__main__":
    main()
