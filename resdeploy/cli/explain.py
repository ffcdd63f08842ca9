"""TODO."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from resdeploy.cli.console import PATH, CommandResult, command, refuse_given
from resdeploy.cli.options import THREADS
from resdeploy.tables import NONE, WORST, plural, table

if TYPE_CHECKING:
    from resdeploy.export.graph.coverage import Coverage
    from resdeploy.export.quantization.sensitivity import Explanation
    from resdeploy.runtime.diagnosis.slowdown import Slowness


def explanation_text(result: Explanation) -> str:
    """The tensors that cost most."""
    rows = [
        [
            layer.tensor,
            layer.kind,
            NONE if layer.low is None else f"{layer.low:.3g} to {layer.high:.3g}",
            f"{layer.sqnr_alone_db:.1f} dB",
            f"{layer.gain_db:+.2f} dB",
        ]
        for layer in result.layers[:WORST]
    ]
    head = ["tensor", "kind", "range", "alone", "gain without"]
    lines = [table(head, rows)]
    if len(result.layers) > WORST:
        least = result.layers[WORST].sqnr_alone_db
        lines.append(f"{len(result.layers) - WORST} more at {least:.1f} dB and above: see --json")
    lines.append(
        f"all {len(result.layers)} quantised ({result.encoding.value}, {result.calibrator}): "
        f"{result.sqnr_db:.1f} dB at the logits, on {plural(result.images, 'golden image')}"
    )
    return "\n".join([*lines, coverage_text(result.coverage)])


def coverage_text(coverage: Coverage) -> str:
    """Two lines: what runs in integers, and what stays float."""
    islands = [
        f"{island.nodes[0]}"
        + (f" to {island.nodes[-1]} ({len(island.nodes)} nodes)" if len(island.nodes) > 1 else "")
        + f" in {island.dtype}"
        for island in coverage.float_regions
    ]
    return (
        f"{coverage.int8_convs} of {coverage.convs} convolutions and {coverage.fused_additions} of "
        f"{coverage.additions} residual additions run in INT8\n"
        f"float: {'; '.join(islands) or 'nothing'}"
    )


def slowness_text(result: Slowness) -> str:
    """What is how fast, what need not be so slow, and the slowest kernels."""
    lines = [
        f"{result.artifact}.onnx takes {result.ms:.2f} ms, {result.speedup:.2f}x FP32 "
        f"({result.fp32_ms:.2f} ms), batch {result.batch}, {plural(result.threads, 'thread')}",
        "",
    ]
    if result.causes:
        rows = [
            [cause.cause, f"{cause.cost_ms:.2f} ms", f"{100 * cause.cost_ms / result.ms:.0f} %"]
            for cause in result.causes
        ]
        lines.append(table(["cause", "costs", "of a run"], rows))
        lines += [f"{cause.cause}: {cause.evidence}\n  {cause.remedy}" for cause in result.causes]
    else:
        lines.append("nothing that was looked for costs as much as 3 % of a run")
    kernels = [
        [kernel.name, kernel.op, "float" if kernel.is_float else "INT8", f"{kernel.ms:.3f} ms",
         f"{kernel.macs / kernel.ms / 1e6:.0f} G/s" if kernel.macs else "-"]
        for kernel in result.kernels
    ]  # fmt: skip
    return "\n".join([*lines, "", table(["kernel", "kind", "in", "takes", "products"], kernels)])


@click.command()
@click.argument("bundle", type=PATH)
@click.option(
    "--encoding",
    type=click.Choice(["tensorrt", "cpu"]),
    help="int8.onnx or int8-cpu.onnx.  [default: tensorrt; cpu with --slow]",
)
@click.option(
    "--images", type=click.IntRange(1), default=16, show_default=True, help="Golden images to use."
)
@click.option("--slow", is_flag=True, help="Instead: why INT8 is not faster on this CPU.")
@click.option(
    "--batch", type=click.IntRange(1, 4096), default=1, show_default=True, help="With --slow."
)
@THREADS
@command
def explain(
    bundle: Path, encoding: str | None, images: int, slow: bool, batch: int, threads: int | None
) -> CommandResult:
    """What each quantised tensor of BUNDLE costs, the worst first."""
    from resdeploy.bundle.bundle import open_bundle
    from resdeploy.bundle.manifest import Encoding

    if slow:
        from resdeploy.progress import progress_bar
        from resdeploy.runtime.diagnosis.slowdown import explain_slowness

        refuse_given(("images",), "--slow needs no more than one batch")
        slowness = explain_slowness(
            open_bundle(bundle), encoding=Encoding(encoding or "cpu"), threads=threads,
            batch=batch, progress=progress_bar,
        )  # fmt: skip
        return CommandResult(slowness, slowness_text(slowness))
    refuse_given(("batch", "threads"), "only --slow takes time")
    from resdeploy.export.quantization.sensitivity import explain as run_explain
    from resdeploy.progress import progress_bar

    result = run_explain(
        open_bundle(bundle),
        encoding=Encoding(encoding or "tensorrt"),
        images=images,
        progress=progress_bar,
    )
    return CommandResult(result, explanation_text(result))
