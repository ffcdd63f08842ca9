"""The formats of the results in `docs/results`, and the cells of their tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from resdeploy.result_files.provenance import Environment

QUANTIZATION = "resdeploy.quantization/2"
QUANTIZATION_DATA = "CIFAR-10"  # the folder in the command of docs/results/quantization.json
TRAINING = "resdeploy.training/1"
QUANTIZATION_HEAD = [
    "quantiser", "top-1", "drop", "agreement", "range", "SQNR", "SQNR, 5th percentile",
    "processor time",
    "INT8 convs", "memory",
]  # fmt: skip
TRAINING_HEAD = [
    "loop", "precision", "images/s", "speed-up", "95 % interval", "waiting for images",
    "share of the matrix product",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedRow:
    """The result of one quantised graph on all validation images."""

    contender: str
    seed: int
    top1: float
    drop: float
    agreement: float
    sqnr_db: float
    sqnr_db_p5: float
    int8_convs: int
    processor_seconds: float
    """The processor time of all threads to calibrate and quantise, without imports and the export
    from PyTorch."""
    peak_mb: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """The result of `benchmarks.quantization`."""

    environment: Environment
    peers: dict[str, tuple[str, ...]]
    """The packages that were installed for each of the other tools."""
    calibration_images: int
    validation_images: int
    fp32_top1: float
    rows: tuple[QuantizedRow, ...]
    schema: str = QUANTIZATION


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopResult:
    """The speed of one training loop."""

    loop: str
    precision: str
    images_per_second: float
    speedup: float
    """The median over rounds of the speed-up against the reference."""
    speedup_low: float
    speedup_high: float
    waiting: float
    """The share of the time in which the network waited for images, from 0 to 1."""
    share_of_peak: float
    """The speed as a share of the fastest matrix product in this precision, from 0 to 1."""

    @property
    def cells(self) -> list[str]:
        """The row of this loop in a table with `TRAINING_HEAD`."""
        return [
            self.loop,
            self.precision,
            f"{self.images_per_second:.0f}",
            f"{self.speedup:.2f}x",
            f"{self.speedup_low:.2f} to {self.speedup_high:.2f}",
            f"{100 * self.waiting:.0f} %",
            f"{100 * self.share_of_peak:.0f} %",
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The result of `benchmarks.training`."""

    environment: Environment
    image_size: int
    batch_size: int
    results: tuple[LoopResult, ...]
    schema: str = TRAINING


def quantization_cells(rows: Sequence[QuantizedRow]) -> list[list[str]]:
    """Return a table with `QUANTIZATION_HEAD`: the means of each quantiser over its seeds."""
    table = []
    for name in dict.fromkeys(row.contender for row in rows):
        own = [row for row in rows if row.contender == name]
        agreements = [row.agreement for row in own]
        table.append(
            [
                name,
                f"{fmean(row.top1 for row in own):.2f} %",
                f"{fmean(row.drop for row in own):+.2f}",
                f"{fmean(agreements):.2f} %",
                f"{min(agreements):.2f} to {max(agreements):.2f}",
                f"{fmean(row.sqnr_db for row in own):.1f} dB",
                f"{fmean(row.sqnr_db_p5 for row in own):.1f} dB",
                f"{fmean(row.processor_seconds for row in own):.0f} s",
                f"{fmean(row.int8_convs for row in own):.0f}",
                f"{fmean(row.peak_mb for row in own) / 1024:.1f} GB",
            ]
        )
    return table
