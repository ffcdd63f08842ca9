"""The command `resdeploy explain`: list the noise of each tensor, or why INT8 is slow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from click import Choice, argument, option

from resdeploy.bundle.manifest import Encoding, Precision, graph_name
from resdeploy.bundle.quality import relevant_warnings
from resdeploy.cli.options.common import THREADS, Integers
from resdeploy.cli.options.console import PATH, CommandResult, command, reject_options, result_text
from resdeploy.tables import NONE, WORST, factor, plural, signed, table

BAR = 14  # width of the longest bar, so that a table fits into 80 columns

if TYPE_CHECKING:
    from resdeploy.export.graph.coverage import Coverage
    from resdeploy.export.noise_analysis import Explanation
    from resdeploy.runtime.diagnosis.slowdown import Slowdown


@command
@argument("bundle", type=PATH)
@option(
    "--encoding",
    type=Choice(["tensorrt", "cpu", "dla"]),
    help="Graph to explain: int8.onnx (tensorrt), int8-cpu.onnx (cpu) or int8-dla.onnx (dla).  "
    "[default: the one with the lowest agreement and SQNR at the export; cpu with --slow]",
)
@option(
    "--images", type=Integers(1, 4096), default=16, help="Number of golden images to measure on."
)
@option("--slow", is_flag=True, help="Explain why INT8 is not faster on this CPU, instead.")
@option(
    "--batch",
    type=Integers(1, 4096),
    default=1,
    help="With --slow: number of images in one inference.",
)
@THREADS
def explain(
    bundle: Path, encoding: str | None, images: int, slow: bool, batch: int, threads: int | None
) -> CommandResult:
    """List the quantisation noise of each tensor, and its remedy.

    The tensor that causes the most noise at the logits comes first. If the graph is not accurate
    enough, the command measures which layers in float would make it so.
    """
    from resdeploy.bundle.bundle import open_bundle
    from resdeploy.progress import progress_bar

    graph = Encoding(encoding) if encoding else None
    if slow:
        reject_options(("images",), "--slow measures one batch of golden images")
    else:
        reject_options(("batch", "threads"), "only --slow measures time")
    opened = open_bundle(bundle)
    if slow:
        from resdeploy.runtime.diagnosis.slowdown import explain_slowdown

        slowdown = explain_slowdown(
            opened, encoding=graph or Encoding.CPU, threads=threads, batch=batch,
            progress=progress_bar,
        )  # fmt: skip
        name = graph_name(Precision.INT8, graph or Encoding.CPU)
        doubts = relevant_warnings(opened.manifest, [name])
        return CommandResult(slowdown, slowness_text(slowdown), warnings=doubts)
    from resdeploy.export.noise_analysis import explain as run_explain

    result = run_explain(opened, encoding=graph, images=images, progress=progress_bar)
    doubts = relevant_warnings(opened.manifest, [graph_name(Precision.INT8, result.encoding)])
    warned = any(doubt.artifacts for doubt in doubts)
    return CommandResult(result, explanation_text(result, warned), warnings=doubts)


@result_text
def explanation_text(result: Explanation, warned: bool = False) -> str:
    """Return a table of the noisiest tensors, then totals, the INT8 coverage and the action.

    `warned` says that a warning of the bundle is about the graph.
    """
    from resdeploy.report.layers import noise_percent, noise_text, remedy_lines

    most = noise_percent(result.layers[0].sqnr_alone_db)
    rows = [
        [
            layer.tensor,
            "weights" if layer.low is None else f"{layer.low:.3g} to {layer.high:.3g}",
            noise_text(layer.sqnr_alone_db),
            ("#" * round(BAR * noise_percent(layer.sqnr_alone_db) / most)).ljust(BAR),
            f"{signed(layer.gain_db, 2)} dB",
        ]
        for layer in result.layers[:WORST]
    ]
    graph = f"{graph_name('int8', result.encoding)}.onnx"
    lines = [
        f"{graph}{', the least accurate INT8 graph of the bundle' if result.is_worst else ''}: "
        "noise at the logits with one tensor quantised, in percent of the signal's power (more is "
        "worse), and gain if only this tensor stays in float",
        "",
        table(["tensor", "range", "noise", "".ljust(BAR), "gain"], rows),
    ]
    if len(result.layers) > WORST:
        most_left = noise_text(result.layers[WORST].sqnr_alone_db)
        more = plural(len(result.layers) - WORST, "more tensor")
        lines.append(f"{more}, the noisiest of them with {most_left}: use --json")
    lines.append(
        f"all {len(result.layers)} quantised ({result.calibrator}): {noise_text(result.sqnr_db)} "
        f"({result.sqnr_db:.1f} dB SQNR) at the logits, on {plural(result.images, 'golden image')}"
    )
    return "\n".join(
        [*lines, coverage_text(result.coverage), "", *remedy_lines(result.remedy, warned=warned)]
    )


def coverage_text(coverage: Coverage) -> str:
    """Return a line about the layers in INT8, and one about the regions in float."""
    regions = [
        f"{region.nodes[0]}"
        + (f" to {region.nodes[-1]} ({len(region.nodes)} nodes)" if len(region.nodes) > 1 else "")
        + f" in {region.dtype}"
        for region in coverage.float_regions
    ]
    return (
        f"{coverage.int8_convs} of {coverage.convs} convolutions and {coverage.fused_additions} of "
        f"{coverage.additions} residual additions run in INT8\n"
        f"float: {'; '.join(regions) or 'nothing'}"
    )


@result_text
def slowness_text(result: Slowdown) -> str:
    lines = [
        f"{result.artifact}.onnx takes {result.ms:.2f} ms, {factor(result.speedup)}x FP32 "
        f"({result.fp32_ms:.2f} ms), batch {result.batch}, {plural(result.threads, 'thread')}",
    ]
    if result.is_disturbed:
        lines.append(
            "other programs used the cores, so these times and their ratio are not reliable, and "
            "show no other cause: measure again when they have ended"
        )
    lines.append("")
    if result.causes:
        rows = [
            [cause.cause, f"{cause.cost_ms:.2f} ms", f"{100 * cause.cost_ms / result.ms:.0f} %"]
            for cause in result.causes
        ]
        lines.append(table(["cause", "cost", "of the latency"], rows))
        if len(rows) > 1:
            lines.append("each cost is estimated alone; they overlap")
        lines += [f"{cause.cause}: {cause.evidence}\n  {cause.remedy}" for cause in result.causes]
    else:
        lines.append("no known cause takes more than 3 % of the latency")
    kernels = [
        [
            kernel.name,
            kernel.op,
            "float" if kernel.is_float else "INT8",
            f"{kernel.ms:.3f} ms",
            f"{kernel.macs / kernel.ms / 1e6:.0f}" if kernel.macs else NONE,
        ]
        for kernel in result.kernels
    ]
    head = ["kernel", "operator", "type", "time", "GMAC/s"]
    return "\n".join([*lines, "", table(head, kernels)])
