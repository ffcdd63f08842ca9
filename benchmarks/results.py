"""The formats of the results in `docs/results` that `generate_docs.py` reads."""

from __future__ import annotations

from dataclasses import dataclass

from resdeploy.results.provenance import Environment

QUANTIZATION = "resdeploy.quantization/1"
TRAINING = "resdeploy.training/1"


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
    seconds: float
    """The time to calibrate and quantise, without imports and the export from PyTorch."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The result of `benchmarks.training`."""

    environment: Environment
    image_size: int
    batch_size: int
    results: tuple[LoopResult, ...]
    schema: str = TRAINING
