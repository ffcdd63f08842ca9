"""The command `resdeploy explain`: list the noise of each tensor, or why INT8 is slow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from click import Choice, IntRange, argument, option

from resdeploy.bundle.manifest import Encoding
from resdeploy.cli.console import PATH, CommandResult, command, reject_options
from resdeploy.cli.options import THREADS
from resdeploy.tables import NONE, WORST, plural, table

if TYPE_CHECKING:
    from resdeploy.export.graph.coverage import Coverage
    from resdeploy.export.quantization.sensitivity import Explanation
    from resdeploy.runtime.diagnosis.slowdown import Slowdown


@command
@argument("bundle", type=PATH)
@option(
    "--encoding",
    type=Choice(["tensorrt", "cpu"]),
    help="Graph to explain: int8.onnx (tensorrt) or int8-cpu.onnx (cpu).  "
    "[default: tensorrt; cpu with --slow]",
)
@option("--images", type=IntRange(1), default=16, help="Number of golden images to measure on.")
@option("--slow", is_flag=True, help="Instead explain why INT8 is not faster on this CPU.")
@option("--batch", type=IntRange(1, 4096), default=1, help="With --slow: images in one inference.")
@THREADS
def explain(
    bundle: Path, encoding: str | None, images: int, slow: bool, batch: int, threads: int | None
) -> CommandResult:
    """List the quantisation noise of each tensor of BUNDLE.

    The tensor that causes the most noise at the logits comes first.
    """
    from resdeploy.bundle.bundle import open_bundle
    from resdeploy.progress import progress_bar

    graph = Encoding(encoding or ("cpu" if slow else "tensorrt"))
    if slow:
        from resdeploy.runtime.diagnosis.slowdown import explain_slowdown

        reject_options(("images",), "--slow measures one batch of golden images")
        slowdown = explain_slowdown(
            open_bundle(bundle), encoding=graph, threads=threads, batch=batch, progress=progress_bar
        )
        return CommandResult(slowdown, slowness_text(slowdown))
    reject_options(("batch", "threads"), "only --slow measures time")
    from resdeploy.export.quantization.sensitivity import explain as run_explain

    result = run_explain(open_bundle(bundle), encoding=graph, images=images, progress=progress_bar)
    return CommandResult(result, explanation_text(result))


def explanation_text(result: Explanation) -> str:
    """Return a table of the noisiest tensors, then totals and the INT8 coverage."""
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
    lines = [table(["tensor", "kind", "range", "SQNR alone", "gain in float"], rows)]
    if len(result.layers) > WORST:
        least = result.layers[WORST].sqnr_alone_db
        lines.append(
            f"{len(result.layers) - WORST} more tensors with {least:.1f} dB or more: use --json"
        )
    lines.append(
        f"all {len(result.layers)} quantised ({result.encoding.value}, {result.calibrator}): "
        f"{result.sqnr_db:.1f} dB at the logits, on {plural(result.images, 'golden image')}"
    )
    return "\n".join([*lines, coverage_text(result.coverage)])


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


def slowness_text(result: Slowdown) -> str:
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
        lines.append(table(["cause", "cost", "of the latency"], rows))
        lines += [f"{cause.cause}: {cause.evidence}\n  {cause.remedy}" for cause in result.causes]
    else:
        lines.append("no known cause takes 3 % of the latency or more")
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
