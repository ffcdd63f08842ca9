"""The command `resdeploy demo`: run the whole pipeline once on handwritten digits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resdeploy.bundle.manifest import graph_name
from resdeploy.cli.bench import SPEEDUP_RULE
from resdeploy.cli.options.common import FORCE
from resdeploy.cli.options.console import CommandResult, command, exit_code, result_text
from resdeploy.cli.predict import predictions_text
from resdeploy.images.preprocessing import size_text
from resdeploy.tables import NONE, factor, plural, table

if TYPE_CHECKING:
    from resdeploy.demo import DemoResult


@command
@FORCE
def demo(force: bool) -> CommandResult:
    """Run the whole pipeline once on handwritten digits.

    The demo trains, exports, verifies and benchmarks a ResNet-34. It takes a few minutes on a
    laptop's CPU and downloads nothing. It writes runs/demo, runs/demo.bundle and runs/demo.html.
    """
    from resdeploy.progress import progress_bar

    with progress_bar("loading PyTorch", 0):
        from resdeploy.demo import run_demo

    result = run_demo(force=force, progress=progress_bar)
    return CommandResult(result, demo_text(result), exit_code(result.verdict))


@result_text
def demo_text(result: DemoResult) -> str:
    from resdeploy.report.recommendation import OPENVINO

    baseline, *others = result.benchmark.results
    timings = {
        (timing.contender, graph_name(timing.precision, timing.encoding)): timing
        for timing in others
        if timing.contender != baseline.contender
    }
    rows = [
        ["PyTorch eager", f"{result.accuracy:.2f} %", NONE, NONE, f"{baseline.p50_ms:.2f} ms",
         f"{factor(baseline.speedup or 1)}x", NONE]
    ]  # fmt: skip
    timed = {contender for contender, _ in timings}
    for checked in result.verification.results:
        if checked.backend not in timed or checked.backend == OPENVINO:
            continue  # one row for each graph; the report has OpenVINO, too
        name = graph_name(checked.precision, checked.encoding)
        timing = timings.get((checked.backend, name))
        rows.append(
            [
                f"{name}.onnx",
                f"{checked.top1:.2f} %",
                f"{checked.agreement:.2f} %",
                f"{checked.sqnr_db:.1f} dB",
                f"{timing.p50_ms:.2f} ms" if timing else NONE,
                f"{factor(timing.speedup)}x" if timing and timing.speedup else NONE,
                checked.verdict.value,
            ]
        )
    head = ["graph", "top-1", "agreement", "SQNR", "latency", "speed-up", "verdict"]
    environment = result.benchmark.environment
    return "\n".join(
        [
            table(head, rows),
            f"{result.verification.images} validation digits, "
            f"{size_text(environment.image_size)} pixels; "
            f"latency at batch 1, {plural(baseline.threads, 'thread')}, {environment.device.name}; "
            "int8.onnx is for TensorRT and is not timed on a CPU",
            SPEEDUP_RULE,
            "",
            predictions_text(result.prediction),
            "",
            f"wrote {result.bundle} and {result.report} in {result.seconds:.0f} s",
            f"next: resdeploy predict {result.bundle} {result.prediction.path}; "
            f"resdeploy serve {result.bundle}",
        ]
    )
