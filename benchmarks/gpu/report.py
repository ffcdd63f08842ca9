"""The document and the tables of the GPU benchmark, made by pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from resdeploy.benchmark_process.roofline import GPU_ARITHMETIC, ROOFLINE_RULE, Ceilings, roofline
from resdeploy.benchmark_process.worker_process import Rounds
from resdeploy.bundle.operation_counts import BYTES_RULE, FLOPS_RULE, WorkTotals
from resdeploy.runtime.bench.rounds import medians
from resdeploy.statistics import ratio_interval
from resdeploy.tables import DROP, NONE, table

EAGER = ("pytorch-eager", "fp32")
COMPILED = ("pytorch-compile", "fp16")
RULES = {
    "transfers": "every time is that of one call, from a uint8 NHWC batch in host memory to "
    "float32 logits in host memory, so all times include the transfers. PyTorch's batch is in "
    "pinned memory; the backends of the runtime receive ordinary memory and copy it within the "
    "measured time",
    "cuda_graphs": "yes: the backend records and replays the kernels; its own: the framework "
    "decides; no: every kernel is launched separately",
    "pytorch": "eager fp32 is the trained network with PyTorch's defaults (TF32 in convolutions); "
    "fp16 and bf16 use channels last; compile is torch.compile(mode='max-autotune'); "
    "cudnn.benchmark, the choice of kernels by timing, is on in all modes",
    "operations": FLOPS_RULE,
    "bytes": BYTES_RULE,
    "roofline": ROOFLINE_RULE,
    "ratios": "median over rounds, in which all contenders take turns; 95 % bootstrap interval",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """A figure that could not be measured, with the reason."""

    what: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedContender:
    """A contender with its measured times."""

    name: str
    precision: str
    facts: Mapping[str, Any]
    """The facts that its process reported."""
    rounds: Rounds


@dataclass(frozen=True, slots=True)
class Ratio:
    """A speed-up with its 95 % confidence interval."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuResult:
    """The figures of one contender at one batch size; None means not comparable."""

    contender: str
    precision: str
    batch: int
    calls: int
    """The number of timed inferences."""
    p50_ms: float
    p99_ms: float
    images_per_second: float
    to_eager_fp32: Ratio | None
    to_compile_fp16: Ratio | None
    roofline_ms: float | None
    roofline_bound: str | None
    roofline_share: float | None
    """The roofline's time / the median time; 1 means as fast as this machine allows."""
    facts: Mapping[str, Any]

    @property
    def passed(self) -> bool | None:
        """True if the outputs pass the golden check; None if they were not checked."""
        answers = self.facts.get("answers")
        return None if answers is None else bool(answers["golden"]["passed"])


def summarise_gpu(
    timed: Sequence[TimedContender], batch: int, work: WorkTotals | None, ceilings: Ceilings | None
) -> list[GpuResult]:
    """Return the figures of the contenders at one batch size."""
    by_name = {(contender.name, contender.precision): contender.rounds for contender in timed}
    rows = []
    for contender in timed:
        pooled = np.concatenate(contender.rounds)
        p50, p99 = np.percentile(pooled, [50, 99])
        limit = roofline(work, ceilings, GPU_ARITHMETIC[contender.precision], batch)
        rows.append(
            GpuResult(
                contender=contender.name,
                precision=contender.precision,
                batch=batch,
                calls=len(pooled),
                p50_ms=float(p50),
                p99_ms=float(p99),
                images_per_second=float(1000 * batch * len(pooled) / pooled.sum()),
                to_eager_fp32=_ratio(by_name.get(EAGER), contender.rounds),
                to_compile_fp16=_ratio(by_name.get(COMPILED), contender.rounds),
                roofline_ms=limit.ms if limit else None,
                roofline_bound=limit.bound if limit else None,
                roofline_share=limit.ms / float(p50) if limit else None,
                facts=contender.facts,
            )
        )
    return rows


def times_text(rows: Sequence[GpuResult]) -> str:
    """Return the table of one batch size."""
    head = [
        "contender", "graph", "CUDA graphs", "p50", "p99", "images/s", "to eager fp32", "95 %",
        "to compile fp16", "95 %", "of roofline", "bound", "outputs",
    ]  # fmt: skip
    lines = [
        [
            row.contender,
            row.precision,
            str(row.facts.get("cuda_graphs", NONE)),
            f"{row.p50_ms:.3f} ms",
            f"{row.p99_ms:.3f} ms",
            f"{row.images_per_second:.0f}",
            *_ratio_cells(row.to_eager_fp32),
            *_ratio_cells(row.to_compile_fp16),
            NONE if row.roofline_share is None else f"{100 * row.roofline_share:.0f} %",
            row.roofline_bound or NONE,
            {True: "passed", False: "FAILED", None: NONE}[row.passed],
        ]
        for row in rows
    ]
    return f"batch {rows[0].batch}\n{table(head, lines)}" if rows else ""


def engines_text(engines: Sequence[Mapping[str, Any]]) -> str:
    """Return a table with a line for each engine."""
    head = ["engine", "graph", "batch", "build time", "size", "int8 convs", "expected"]
    lines = [
        [
            str(engine["flavour"]),
            str(engine["artifact"]),
            str(engine["batch"]),
            "cached" if engine["cached"] else f"{engine['seconds']:.1f} s",
            f"{engine['bytes'] / 1e6:.1f} MB",
            NONE if engine["convs"] is None else f"{engine['int8_convs']}/{engine['convs']}",
            str(engine["int8_convs_expected"]),
        ]
        for engine in engines
    ]
    return table(head, lines) if lines else ""


def checks_text(rows: Sequence[GpuResult]) -> str:
    """Return a table with a line for each contender whose outputs were checked."""
    head = [
        "contender", "graph", "batch", "golden", "SQNR", "limit", "agreement", "top-1", DROP,
        "upper bound (95 %)", "images",
    ]  # fmt: skip
    lines = [
        [
            row.contender,
            row.precision,
            str(row.batch),
            f"{answers['golden']['agreement']:.1f} %",
            f"{answers['golden']['sqnr_db']:.1f} dB",
            f"{answers['golden']['floor_db']:.1f} dB",
            *_labelled_cells(answers["labelled"]),
        ]
        for row in rows
        if (answers := row.facts.get("answers")) is not None
    ]
    return table(head, lines) if lines else ""


def _ratio(baseline: Rounds | None, rounds: Rounds) -> Ratio | None:
    if baseline is None:
        return None
    return Ratio(*ratio_interval(medians(baseline), medians(rounds)))


def _ratio_cells(ratio: Ratio | None) -> list[str]:
    if ratio is None:
        return [NONE, NONE]
    return [f"{ratio.median:.2f}x", f"{ratio.low:.2f}-{ratio.high:.2f}"]


def _labelled_cells(labelled: Mapping[str, Any] | None) -> list[str]:
    if labelled is None:
        return [NONE] * 5
    return [
        f"{labelled['agreement']:.2f} %",
        f"{labelled['top1']:.2f} %",
        f"{labelled['drop']:+.2f}",
        f"{labelled['drop_upper95']:+.2f}",
        str(labelled["images"]),
    ]
