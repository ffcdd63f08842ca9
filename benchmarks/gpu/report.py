"""From times to a document and to tables: pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from resdeploy.bench.process import Rounds
from resdeploy.bench.roofline import GPU_ARITHMETIC, ROOFLINE_RULE, Ceilings, roofline
from resdeploy.bundle.work import BYTES_RULE, FLOPS_RULE, Work
from resdeploy.documents import jsonable
from resdeploy.runtime.bench.rounds import medians
from resdeploy.statistics import ratio_interval
from resdeploy.tables import table

EAGER = ("pytorch-eager", "fp32")
COMPILED = ("pytorch-compile", "fp16")
TRANSFERS = (
    "every time is of one call, from a uint8 NHWC batch in host memory to float32 logits in host "
    "memory: the transfers are inside for all. PyTorch finds its batch in pinned memory; the "
    "backends of the runtime are given ordinary memory, and copy from it within the time"
)
CUDA_GRAPHS = (
    "yes: recorded and replayed by the backend; its own: left to the framework; no: every kernel "
    "is launched by itself"
)
PYTORCH = (
    "eager fp32 is the network as it was trained, with PyTorch's defaults (TF32 in convolutions); "
    "fp16 and bf16 are channels last; compile is torch.compile(mode='max-autotune'); cuDNN chooses "
    "its kernels by trying them (cudnn.benchmark) in all"
)
RULES = {
    "transfers": TRANSFERS,
    "cuda_graphs": CUDA_GRAPHS,
    "pytorch": PYTORCH,
    "operations": FLOPS_RULE,
    "bytes": BYTES_RULE,
    "roofline": ROOFLINE_RULE,
    "ratios": "median over rounds, within which all take turns; 95 % bootstrap interval",
}
NONE = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """Something that would have been measured."""

    what: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One contender, and what it took."""

    name: str
    precision: str
    facts: Mapping[str, Any]
    """What it said of itself."""
    rounds: Rounds


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """How many times faster, with its 95 % interval."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One contender at one batch; None is what could not be compared."""

    contender: str
    precision: str
    batch: int
    runs: int
    p50_ms: float
    p99_ms: float
    images_per_second: float
    to_eager_fp32: Ratio | None
    to_compile_fp16: Ratio | None
    roofline_ms: float | None
    roofline_bound: str | None
    roofline_share: float | None
    """The roofline's time divided by the median: 1 would be as fast as this machine can."""
    facts: Mapping[str, Any]

    @property
    def right(self) -> bool | None:
        """Whether it gives the golden answers; None where that was not checked."""
        answers = self.facts.get("answers")
        return None if answers is None else bool(answers["golden"]["passed"])


def rows_of(
    timed: Sequence[Timed], batch: int, work: Work | None, ceilings: Ceilings | None
) -> list[Row]:
    """One row for each of the contenders that took turns at one batch."""
    by_name = {(one.name, one.precision): one.rounds for one in timed}
    rows = []
    for one in timed:
        pooled = np.concatenate(one.rounds)
        p50, p99 = np.percentile(pooled, [50, 99])
        bound = roofline(work, ceilings, GPU_ARITHMETIC[one.precision], batch)
        rows.append(
            Row(
                contender=one.name,
                precision=one.precision,
                batch=batch,
                runs=len(pooled),
                p50_ms=float(p50),
                p99_ms=float(p99),
                images_per_second=float(1000 * batch * len(pooled) / pooled.sum()),
                to_eager_fp32=_ratio(by_name.get(EAGER), one.rounds),
                to_compile_fp16=_ratio(by_name.get(COMPILED), one.rounds),
                roofline_ms=bound.ms if bound else None,
                roofline_bound=bound.bound if bound else None,
                roofline_share=bound.ms / float(p50) if bound else None,
                facts=one.facts,
            )
        )
    return rows


def document(
    *,
    machine: Mapping[str, Any],
    network: Mapping[str, Any],
    settings: Mapping[str, Any],
    ceilings: Mapping[str, Any] | None,
    work: Work | None,
    engines: Sequence[Mapping[str, Any]],
    rows: Sequence[Row],
    missing: Sequence[Missing],
) -> dict[str, Any]:
    """What the result file holds.

    Args:
        machine: Device, GPU, versions, commit, date.
        network: Name, classes and image size.
        settings: How long and how often was measured.
        ceilings: What `gpu_ceilings.measure` gave.
        work: The network's.
        engines: What `gpu_engine` told of each.
        rows: Of all batches.
        missing: What is not there, and why.
    """
    return {
        **machine,
        "network": {**network, "work_of_one_image": None if work is None else work.totals()},
        "settings": dict(settings),
        "rules": RULES,
        "ceilings": ceilings,
        "engines": [dict(engine) for engine in engines],
        "rows": [jsonable(row) for row in rows],
        "missing": [asdict(one) for one in missing],
    }


def times_text(rows: Sequence[Row]) -> str:
    """A table of one batch."""
    head = [
        "contender", "graph", "CUDA graphs", "p50", "p99", "images/s", "to eager fp32", "95 %",
        "to compile fp16", "95 %", "of roofline", "bound", "answers",
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
            {True: "right", False: "WRONG", None: NONE}[row.right],
        ]
        for row in rows
    ]
    return f"batch {rows[0].batch}\n{table(head, lines)}" if rows else ""


def engines_text(engines: Sequence[Mapping[str, Any]]) -> str:
    """A line for each engine that was built."""
    head = ["engine", "graph", "batch", "built in", "size", "int8 convs", "expected"]
    lines = [
        [
            str(engine["flavour"]),
            str(engine["artifact"]),
            str(engine["batch"]),
            "was there" if engine["cached"] else f"{engine['seconds']:.1f} s",
            f"{engine['bytes'] / 1e6:.1f} MB",
            NONE if engine["convs"] is None else f"{engine['int8_convs']}/{engine['convs']}",
            str(engine["int8_convs_expected"]),
        ]
        for engine in engines
    ]
    return table(head, lines) if lines else ""


def answers_text(rows: Sequence[Row]) -> str:
    """A line for each contender whose answers were checked."""
    head = [
        "contender", "graph", "batch", "golden", "SQNR", "at least", "same class", "top-1", "drop",
        "at most (95 %)", "images",
    ]  # fmt: skip
    lines = []
    for row in rows:
        answers = row.facts.get("answers")
        if answers is None:
            continue
        golden, labelled = answers["golden"], answers["labelled"]
        lines.append(
            [
                row.contender,
                row.precision,
                str(row.batch),
                f"{golden['agreement']:.1f} %",
                f"{golden['sqnr_db']:.1f} dB",
                f"{golden['floor_db']:.1f} dB",
                *_labelled_cells(labelled),
            ]
        )
    return table(head, lines) if lines else ""


def _ratio(baseline: Rounds | None, rounds: Rounds) -> Ratio | None:
    if baseline is None:
        return None
    median, low, high = ratio_interval(medians(baseline), medians(rounds))
    return Ratio(median=median, low=low, high=high)


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
