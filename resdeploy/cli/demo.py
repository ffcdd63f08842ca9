"""TODO."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from resdeploy.bundle.manifest import graph_name
from resdeploy.cli.console import CommandResult, command, exit_code
from resdeploy.cli.options import FORCE
from resdeploy.cli.predict import predictions_text
from resdeploy.tables import NONE, plural, table

if TYPE_CHECKING:
    from resdeploy.demo import DemoResult


def demo_text(result: DemoResult) -> str:
    """The one table of the demo: for each graph its accuracy, agreement and speed."""
    timings = {
        graph_name(line.precision, line.encoding): line
        for line in result.benchmark.results
        if line.contender != result.benchmark.results[0].contender
    }
    baseline = result.benchmark.results[0]
    rows = [
        ["PyTorch eager", f"{result.accuracy:.2f} %", NONE, NONE, f"{baseline.p50_ms:.2f} ms",
         f"{baseline.speedup or 1:.2f}x", NONE]
    ]  # fmt: skip
    for line in result.verification.results:
        name = graph_name(line.precision.value, line.encoding)
        timing = timings.get(name)
        rows.append(
            [
                f"{name}.onnx",
                f"{line.top1:.2f} %",
                f"{line.agreement:.2f} %",
                f"{line.sqnr_db:.1f} dB",
                f"{timing.p50_ms:.2f} ms" if timing else NONE,
                f"{timing.speedup:.2f}x" if timing and timing.speedup else NONE,
                line.verdict.value,
            ]
        )
    head = ["graph", "accuracy", "same class", "SQNR", "latency", "speed-up", "verdict"]
    environment = result.benchmark.environment
    return "\n".join(
        [
            table(head, rows),
            f"{result.verification.images} held-out digits; batch 1, "
            f"{plural(baseline.threads, 'thread')}, "
            f"{environment.image_size} pixels, {environment.device.name}; int8.onnx is for "
            "TensorRT and not timed on a CPU",
            "",
            predictions_text([result.prediction]),
            "",
            f"{result.bundle} in {result.seconds:.0f} s: open {result.report}, or try",
            f"  resdeploy predict {result.bundle} {result.prediction.image}",
            "  resdeploy export --int8",
        ]
    )


@click.command()
@FORCE
@command
def demo(force: bool) -> CommandResult:
    """Everything once, on handwritten digits: minutes on a laptop, nothing is downloaded."""
    from resdeploy.demo import run_demo
    from resdeploy.progress import progress_bar

    result = run_demo(force=force, progress=progress_bar)
    return CommandResult(result, demo_text(result), exit_code(result.verdict))
