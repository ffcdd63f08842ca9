"""A benchmark of the throughput of `resdeploy train`, compared with a plain training loop.

    python -m benchmarks.training DATA --image-size 32 --output docs/results/training.json

DATA holds `train/` and `val/`. Each loop of `loops.py` runs in its own process, and the loops take
turns. The peak is the speed of the fastest matrix product, measured before the loops.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import click
import numpy as np

from benchmarks.results import TRAINING_HEAD, LoopResult, Training
from benchmarks.training.loops import LOOPS, device, operations_per_image
from benchmarks.turns import interleave, measure_ceilings
from resdeploy.benchmark_process.worker_process import Contender
from resdeploy.images.class_folders import read_image_folder
from resdeploy.json_documents import write_document
from resdeploy.machine.device import available_cores
from resdeploy.progress import progress_bar
from resdeploy.result_files.provenance import Environment
from resdeploy.runtime.bench.rounds import medians
from resdeploy.statistics import ratio_interval
from resdeploy.tables import table
from resdeploy.train.step import computes_bf16


@click.command(context_settings={"show_default": True})
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option("--image-size", default=32, help="Side of the images in pixels.")
@click.option("--batch-size", default=64, help="Images per step.")
@click.option("--seconds", default=60.0, help="Time to measure each loop.")
@click.option("--output", type=click.Path(path_type=Path), help="JSON file to write.")
def main(data: Path, image_size: int, batch_size: int, seconds: float, output: Path | None) -> None:
    """Measure the training loops on the images in DATA and print a table."""
    results = run(data, image_size, batch_size, seconds)
    click.echo(table(TRAINING_HEAD, [result.cells for result in results]))
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
    ceilings = measure_ceilings()
    assert ceilings is not None  # PyTorch is installed, and multiplies in FP32 everywhere
    operations = operations_per_image(image_size, len(read_image_folder(data / "train").classes))
    contenders: list[Contender] = []
    with ExitStack() as stack:
        for name in LOOPS:
            arguments = [name, str(data), str(image_size), str(batch_size)]
            contenders.append(
                Contender.start(name, "benchmarks.training.loops", arguments, available_cores())
            )
            stack.callback(contenders[-1].stop)
        times = interleave(contenders, seconds, progress_bar)
    # The last loop computes in bfloat16 if the hardware does.
    fastest = "bf16" if computes_bf16(device()) else "fp32"
    results = []
    for contender, rounds in zip(contenders, times):
        pooled = np.concatenate(rounds)
        rate = 1000 * contender.facts["images"] * len(pooled) / float(pooled.sum())
        speedup, low, high = ratio_interval(medians(times[0]), medians(rounds))
        precision = fastest if contender.name == LOOPS[-1] else "fp32"
        results.append(
            LoopResult(
                loop=contender.name,
                precision=precision,
                images_per_second=rate,
                speedup=speedup,
                speedup_low=low,
                speedup_high=high,
                waiting=contender.facts["waiting"],
                share_of_peak=rate * operations / ceilings.operations_per_second[precision],
            )
        )
    return results


if __name__ == "__main__":
    main()
