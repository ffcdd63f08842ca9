"""What the scripts here write to `docs/results`, and `performance.py` reads: one definition."""

from __future__ import annotations

from dataclasses import dataclass

from resdeploy.results.provenance import Environment

QUANTIZATION = "resdeploy.quantization/1"
TRAINING = "resdeploy.training/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedRow:
    """One quantised graph, on all validation images."""

    contender: str
    seed: int
    top1: float
    drop: float
    agreement: float
    sqnr_db: float
    sqnr_db_p5: float
    int8_convs: int
    seconds: float
    """To calibrate and quantise, without importing and without exporting from PyTorch."""
    peak_mb: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """What `quantization.py` found."""

    environment: Environment
    peers: dict[str, tuple[str, ...]]
    """What was installed for each of the other tools."""
    calibration_images: int
    validation_images: int
    fp32_top1: float
    rows: tuple[QuantizedRow, ...]
    schema: str = QUANTIZATION


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopResult:
    """How fast one loop trained."""

    loop: str
    precision: str
    images_per_second: float
    speedup: float
    """Over the reference: the median over the rounds."""
    speedup_low: float
    speedup_high: float
    waiting: float
    """Share of the time, 0 to 1, in which the network waited for images."""
    share_of_peak: float
    """Of the fastest matrix product in this precision, 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What `training.py` found."""

    environment: Environment
    image_size: int
    batch_size: int
    results: tuple[LoopResult, ...]
    schema: str = TRAINING
