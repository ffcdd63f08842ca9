"""The causes of slow INT8 graphs, found in observations by pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from resdeploy.bundle.manifest import Encoding
from resdeploy.errors import install_hint
from resdeploy.runtime.backends.onnxruntime.profile import Kernel

MIN_COST_SHARE = 0.03
"""The smallest cost that is reported, as a share of the time of a call."""
UNDISTURBED = 0.8
"""The smallest share of the processor time of all threads with which times are reliable."""
SLOWER = 1.1
"""The smallest ratio of two times that is not regarded as noise."""
SMALL_LAYER = 1 / 3
"""The upper limit of the speed of a small layer, as a share of the speed of the fastest layer."""
INT8_PER_FP32 = 4.0
"""The number of INT8 products that a 32-bit lane computes in the time of one FP32 product.

Source: Intel, "Intel 64 and IA-32 Architectures Software Developer's Manual", VPDPBUSD; Arm has
SDOT.
"""
MIN_INT8_PER_FP32 = 2.0
"""The lower limit of the measured ratio; below it, the INT8 arithmetic is reported as slow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """Measurements of an INT8 graph on a CPU."""

    encoding: Encoding
    threads: int
    ms: float
    """Median time of one call."""
    kernels: tuple[Kernel, ...]
    by_threads: Mapping[int, float]
    """Milliseconds of one call by number of threads."""
    early_ms: float
    """Median time of one call in the first quarter of several seconds of continuous calls."""
    late_ms: float
    """Median time of one call in the last quarter."""
    cpu_share: float
    """The share of processor time that the threads received, from 0 to 1."""
    products: Mapping[str, float]
    """Operations per second of large products, `int8` and `fp32`; empty if not measured."""
    int8_instructions: bool
    """True if the processor has instructions for sums of INT8 products."""
    matrix_instructions: bool = False
    """True if the processor has AMX, instructions for INT8 matrices."""
    notices: tuple[str, ...] = ()
    """Notices about power mode, clocks and temperature."""

    @property
    def int8_layers(self) -> list[Kernel]:
        """The kernels that multiply in INT8."""
        return [kernel for kernel in self.kernels if kernel.macs and not kernel.is_float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """A cause of avoidable time."""

    cause: str
    cost_ms: float
    """Milliseconds per call."""
    evidence: str
    remedy: str


def find_causes(observed: Observations) -> tuple[Cause, ...]:
    """Return the causes that cost at least `MIN_COST_SHARE`, the most expensive first.

    If other processes used the cores, no time of the graph shows another cause.
    """
    found = (
        []
        if observed.cpu_share < UNDISTURBED
        else [
            *_float_islands(observed),
            *_unfused_additions(observed),
            *_small_layers(observed),
            *_threads(observed),
            *_instructions(observed),
            *_matrices(observed),
            *_throttling(observed),
        ]
    )
    found += _other_processes(observed)
    reported = [cause for cause in found if cause.cost_ms >= MIN_COST_SHARE * observed.ms]
    return tuple(sorted(reported, key=lambda cause: -cause.cost_ms))


def _float_islands(observed: Observations) -> Iterator[Cause]:
    islands = [
        kernel for kernel in observed.kernels if kernel.is_float and not _is_addition(kernel)
    ]
    if observed.encoding is not Encoding.CPU:
        remedy = "this graph is made for TensorRT: on a CPU, use int8-cpu.onnx"
    elif any(kernel.macs for kernel in islands):
        remedy = (
            "some layers stay in float: export with a lower --min-agreement or a higher --max-drop"
        )
    else:
        remedy = "none: the conversions at the input and the output of the graph cannot be avoided"
    counted = Counter(kernel.op for kernel in islands).most_common(4)
    if islands:
        slowest = max(islands, key=lambda kernel: kernel.ms)
        yield Cause(
            cause="float islands",
            cost_ms=_sum(islands),
            evidence=f"{', '.join(f'{count} {op}' for op, count in counted)}; "
            f"the slowest is {slowest.name} ({slowest.ms:.2f} ms)",
            remedy=remedy,
        )


def _unfused_additions(observed: Observations) -> Iterator[Cause]:
    additions = [kernel for kernel in observed.kernels if _is_addition(kernel)]
    if additions:
        yield Cause(
            cause="unfused additions",
            cost_ms=_sum(additions),
            evidence=f"{len(additions)} residual additions run in float as separate kernels",
            remedy="use int8-cpu.onnx, in which the additions are quantised",
        )


def _small_layers(observed: Observations) -> Iterator[Cause]:
    layers = observed.int8_layers
    fastest = max((_speed(kernel) for kernel in layers), default=0.0)
    small = [kernel for kernel in layers if _speed(kernel) < SMALL_LAYER * fastest]
    if small:
        slowest = min(small, key=_speed)
        yield Cause(
            cause="layers too small",
            cost_ms=sum(kernel.ms - kernel.macs / fastest for kernel in small),
            evidence=f"{len(small)} of {len(layers)} layers compute less than a third of the "
            f"products per second of the fastest layer ({fastest / 1e6:.0f} G/s); the slowest is "
            f"{slowest.name} with {_speed(slowest) / 1e6:.0f} G/s",
            remedy="use a larger --batch or larger images",
        )


def _threads(observed: Observations) -> Iterator[Cause]:
    best = min(observed.by_threads, key=lambda count: observed.by_threads[count])
    here, fastest = observed.by_threads[observed.threads], observed.by_threads[best]
    if here >= SLOWER * fastest:
        yield Cause(
            cause="wrong threads",
            cost_ms=here - fastest,
            evidence=f"a call takes {here:.2f} ms with {observed.threads} threads and "
            f"{fastest:.2f} ms with {best}",
            remedy=f"use --threads {best}",
        )


def _instructions(observed: Observations) -> Iterator[Cause]:
    if not observed.products:
        return
    ratio = observed.products["int8"] / observed.products["fp32"]
    reason = (
        "although the processor has instructions for INT8 products"
        if observed.int8_instructions
        else "because the processor has no VNNI or dot-product instructions"
    )
    if ratio < MIN_INT8_PER_FP32:
        yield Cause(
            cause="slow INT8 arithmetic",
            cost_ms=_sum(observed.int8_layers) * (1 - ratio / INT8_PER_FP32),
            evidence=f"a large INT8 product is {ratio:.1f} times as fast as one in FP32, {reason}",
            remedy="use a processor with VNNI (x86 since 2019) or dot products (Armv8.2) and an "
            "ONNX Runtime that supports them",
        )


def _matrices(observed: Observations) -> Iterator[Cause]:
    """Compare the convolutions with a large product, which uses AMX.

    The direct convolutions of ONNX Runtime do not use AMX (core/mlas/lib/convsym.cpp).
    """
    convolutions = [kernel for kernel in observed.kernels if kernel.op == "QLinearConv"]
    if observed.matrix_instructions and observed.products and convolutions:
        # A multiply-accumulate is two operations; both times are in milliseconds.
        operations = 2 * sum(kernel.macs for kernel in convolutions)
        possible, actual = 1000 * operations / observed.products["int8"], _sum(convolutions)
        yield Cause(
            cause="convolutions without AMX",
            cost_ms=actual - possible,
            evidence=f"{len(convolutions)} convolutions take {actual:.2f} ms; a large product with "
            f"as many operations, which uses AMX, takes {possible:.2f} ms",
            remedy="use --backend openvino, whose convolutions use AMX "
            f"({install_hint('openvino')})",
        )


def _throttling(observed: Observations) -> Iterator[Cause]:
    evidence = (
        f"a call takes {observed.early_ms:.2f} ms at first and {observed.late_ms:.2f} ms "
        "after some seconds"
    )
    if observed.late_ms >= SLOWER * observed.early_ms or observed.notices:
        yield Cause(
            cause="throttling",
            cost_ms=max(observed.late_ms - observed.early_ms, 0.0),
            evidence="; ".join((evidence, *observed.notices)),
            remedy="cool the machine, choose the fastest power mode (see resdeploy doctor), or "
            "stop other programs",
        )


def _other_processes(observed: Observations) -> Iterator[Cause]:
    yield Cause(
        cause="other processes",
        cost_ms=max(1 - observed.cpu_share, 0.0) * observed.ms,
        evidence=f"its threads received {100 * observed.cpu_share:.0f} % of the processor time",
        remedy="stop other programs, or use fewer threads than there are free cores",
    )


def _is_addition(kernel: Kernel) -> bool:
    """Return True if the kernel adds two activations in float."""
    shapes = [shape for _, shape in kernel.inputs[:2]]
    return kernel.op == "Add" and kernel.is_float and len(shapes) == 2 and shapes[0] == shapes[1]


def _speed(kernel: Kernel) -> float:
    """Return multiply-accumulates per millisecond."""
    return kernel.macs / kernel.ms


def _sum(kernels: Sequence[Kernel]) -> float:
    return sum(kernel.ms for kernel in kernels)
