"""The formats of the results in `docs/results`, and the cells of their tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from resdeploy.result_files.provenance import Environment
from resdeploy.tables import DROP, NONE

QUANTIZATION = "resdeploy.quantization/2"
QUANTIZATION_DATA = "CIFAR-10"  # the folder in the command of docs/results/quantization.json
TRAINING = "resdeploy.training/1"
SUPPORT = "resdeploy.support/1"
QUANTIZATION_HEAD = [
    "quantiser", "top-1", DROP, "agreement", "range", "SQNR", "SQNR, 5th percentile",
    "processor time",
    "INT8 convs", "memory",
]  # fmt: skip
SUPPORT_HEAD = [
    "network", "source", "FP32 top-1", "INT8 convs", "agreement", "SQNR", DROP, "bit-exact",
    "speed-up", "engines",
]  # fmt: skip
# Convolutions of ONNX Runtime's optimised graphs that compute in float.
FLOAT_KINDS = ("Conv", "FusedConv", "NhwcFusedConv")
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


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodingResult:
    """The result of one INT8 graph of a network in the support matrix."""

    convs: int
    int8_convs: int
    """Number of convolutions that the graph has in INT8."""
    float_convs: dict[str, str]
    """The reason for each other convolution."""
    agreement: float
    """Held-out images with FP32's predicted class, in percent."""
    sqnr_db: float
    """Median SQNR of the logits against FP32, in dB."""
    drop: float | None
    """Drop of the top-1 accuracy against FP32, in percentage points; None without labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SupportRow:
    """A network of the support matrix."""

    network: str
    source: str
    """`checkpoint`, `ONNX file` or `module`."""
    weights: str
    image_size: int
    error: str | None = None
    """The reason why the export refuses the network; all that follows is then empty."""
    images: int = 0
    """Number of held-out images."""
    fp32_top1: float | None = None
    encodings: dict[str, EncodingResult] = field(default_factory=dict)
    onnxruntime_int8_convs: int = 0
    """Number of convolutions with an integer kernel in ONNX Runtime's optimised graph."""
    onnxruntime_float_convs: tuple[str, ...] = ()
    onnxruntime_int8_linear: int = 0
    """The same for linear layers, of which the network has `linear`."""
    linear: int = 0
    fastest: str | None = None
    """The fastest verified CPU engine in INT8; None if it was not timed."""
    speedup: tuple[float, float, float] | None = None
    """Speed-up of `fastest` against ONNX Runtime in FP32 on one thread, with a 95 % interval."""
    bit_exact: bool = False
    """True if every CPU computes the same logits, and this one did."""
    inexact: dict[str, int] = field(default_factory=dict)
    """Numbers of float operators whose results depend on the processor."""
    engines: dict[str, str] = field(default_factory=dict)
    """The reason why TensorRT-RTX does not build each graph; empty if it does."""
    engine_int8_convs: int | None = None
    """Number of INT8 convolutions in its engine of the INT8 graph; None if it is not reported."""
    served: bool = False
    """True if the server classified a picture with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """The result of `benchmarks.support`."""

    environment: Environment
    calibration_images: int
    calibrator: str
    rows: tuple[SupportRow, ...]
    schema: str = SUPPORT


def support_cells(rows: Sequence[SupportRow]) -> list[list[str]]:
    """Return a table with `SUPPORT_HEAD`; cells of both INT8 graphs name that for CPUs first."""
    return [_support_row(row) for row in rows]


def _support_row(row: SupportRow) -> list[str]:
    named = [row.network, f"{row.source}, {row.image_size} px"]
    if row.error is not None:
        return [*named, f"refused: {row.error}", *[NONE] * (len(SUPPORT_HEAD) - 3)]
    cpu, gpu = row.encodings["cpu"], row.encodings["tensorrt"]
    inexact = ", ".join(row.inexact) or "scales of additions"
    failed = [name for name, reason in row.engines.items() if reason]
    return [
        *named,
        NONE if row.fp32_top1 is None else f"{row.fp32_top1:.1f} %",
        f"{row.onnxruntime_int8_convs} and {gpu.int8_convs} of {cpu.convs}",
        f"{cpu.agreement:.1f} and {gpu.agreement:.1f} %",
        f"{cpu.sqnr_db:.1f} and {gpu.sqnr_db:.1f} dB",
        NONE if cpu.drop is None or gpu.drop is None else f"{cpu.drop:+.1f} and {gpu.drop:+.1f}",
        "yes" if row.bit_exact else f"no: {inexact}",
        NONE if row.speedup is None else f"{row.speedup[0]:.2f}x, {row.fastest}",
        f"no: {', '.join(failed)}" if failed else "all",
    ]


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
