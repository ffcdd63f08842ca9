"""Why INT8 is not faster, as text for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resdeploy.console import table
from resdeploy.render import plural

if TYPE_CHECKING:
    from resdeploy.runtime.slow import Slowness


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
