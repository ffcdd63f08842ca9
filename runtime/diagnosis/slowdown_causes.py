"""Why is INT8 not faster here? From what was observed to causes: pure functions.

Each cause has its cost in milliseconds of one run, measured, and what to do about it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from resdeploy.bundle.manifest import Encoding
from resdeploy.runtime.backends.onnxruntime.profile import Kernel

WORTH_TELLING = 0.03
"""As a share of a run: what costs less is noise, or cannot be helped."""
SLOWER = 1.1
"""By this factor, times differ by more than noise."""
SMALL_LAYER = 1 / 3
"""Of the speed of the network's fastest layer."""
# A 32-bit lane does four INT8 products where it does one of FP32: Intel, "Intel 64 and IA-32
# Architectures Software Developer's Manual", VPDPBUSD; Arm has SDOT.
INT8_PER_FP32 = 4.0
LEAST_INT8_PER_FP32 = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """What was seen of an INT8 graph on a CPU."""

    encoding: Encoding
    threads: int
    ms: float
    """Of one run; the median."""
    kernels: tuple[Kernel, ...]
    by_threads: Mapping[int, float]
    """Milliseconds of one run."""
    early_ms: float
    """At the beginning of some seconds of work."""
    late_ms: float
    """At its end."""
    cpu_share: float
    """Processor time that the threads got, of what they could have had."""
    products: Mapping[str, float]
    """Operations a second of large products, `int8` and `fp32`; empty where not measured."""
    int8_instructions: bool
    """Whether the processor has instructions for sums of INT8 products."""
    matrix_instructions: bool = False
    """Whether it has AMX: instructions for whole INT8 matrices."""
    notices: tuple[str, ...] = ()
    """Of the machine: power mode, heat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Something that takes time which INT8 need not take."""

    cause: str
    cost_ms: float
    """Of one run."""
    evidence: str
    remedy: str


def causes(seen: Observations) -> tuple[Cause, ...]:
    """Those that are worth telling, the most expensive first."""
    found = [
        *_float_islands(seen),
        *_unfused_additions(seen),
        *_small_layers(seen),
        *_threads(seen),
        *_instructions(seen),
        *_matrices(seen),
        *_throttling(seen),
        *_neighbours(seen),
    ]
    worth = [cause for cause in found if cause.cost_ms >= WORTH_TELLING * seen.ms]
    return tuple(sorted(worth, key=lambda cause: -cause.cost_ms))


def _float_islands(seen: Observations) -> list[Cause]:
    islands = [kernel for kernel in seen.kernels if kernel.is_float and not _is_addition(kernel)]
    if not islands:
        return []
    counted = Counter(kernel.op for kernel in islands)
    longest = max(islands, key=lambda kernel: kernel.ms)
    layers = sum(kernel.macs > 0 for kernel in islands)
    if seen.encoding is not Encoding.CPU:
        remedy = "this graph is made for TensorRT: on a CPU, use int8-cpu.onnx"
    elif layers:
        remedy = "layers went back to float: export with a wider --min-agreement or --max-drop"
    else:
        remedy = "none: pixels come in and logits go out as numbers that are no INT8"
    kinds = ", ".join(f"{count} {op}" for op, count in counted.most_common(4))
    return [
        Cause(
            cause="float islands",
            cost_ms=_sum(islands),
            evidence=f"{kinds}; the longest is {longest.name} ({longest.ms:.2f} ms)",
            remedy=remedy,
        )
    ]


def _unfused_additions(seen: Observations) -> list[Cause]:
    additions = [kernel for kernel in seen.kernels if _is_addition(kernel)]
    if not additions:
        return []
    return [
        Cause(
            cause="unfused additions",
            cost_ms=_sum(additions),
            evidence=f"{len(additions)} residual additions run in float, as kernels of their own",
            remedy="use the graph whose additions are quantised for this engine: int8-cpu.onnx",
        )
    ]


def _small_layers(seen: Observations) -> list[Cause]:
    layers = [kernel for kernel in seen.kernels if kernel.macs and not kernel.is_float]
    if not layers:
        return []
    fastest = max(kernel.macs / kernel.ms for kernel in layers)
    small = [kernel for kernel in layers if kernel.macs / kernel.ms < SMALL_LAYER * fastest]
    if not small:
        return []
    slowest = min(small, key=lambda kernel: kernel.macs / kernel.ms)
    return [
        Cause(
            cause="layers too small",
            cost_ms=sum(kernel.ms - kernel.macs / fastest for kernel in small),
            evidence=f"{len(small)} of {len(layers)} layers do less than a third of the "
            f"products a second of the fastest ({fastest / 1e6:.0f} G/s); {slowest.name} does "
            f"{slowest.macs / slowest.ms / 1e6:.0f}",
            remedy="give them more to do: a larger --batch, or larger images",
        )
    ]


def _threads(seen: Observations) -> list[Cause]:
    best = min(seen.by_threads, key=lambda count: seen.by_threads[count])
    here, fastest = seen.by_threads[seen.threads], seen.by_threads[best]
    if here < SLOWER * fastest:
        return []
    return [
        Cause(
            cause="wrong threads",
            cost_ms=here - fastest,
            evidence=f"{here:.2f} ms with {seen.threads}, {fastest:.2f} ms with {best}",
            remedy=f"--threads {best}",
        )
    ]


def _instructions(seen: Observations) -> list[Cause]:
    if not seen.products:
        return []
    ratio = seen.products["int8"] / seen.products["fp32"]
    if ratio >= LEAST_INT8_PER_FP32:
        return []
    integer = [kernel for kernel in seen.kernels if kernel.macs and not kernel.is_float]
    why = (
        "although the processor has instructions for it"
        if seen.int8_instructions
        else "the processor has no VNNI or dot-product instructions"
    )
    return [
        Cause(
            cause="slow INT8 arithmetic",
            cost_ms=_sum(integer) * (1 - ratio / INT8_PER_FP32),
            evidence=f"a large INT8 product is {ratio:.1f} times as fast as one in FP32, {why}",
            remedy="a processor with VNNI (x86 from 2019 on) or dot products (Armv8.2), and an "
            "ONNX Runtime that uses them",
        )
    ]


def _matrices(seen: Observations) -> list[Cause]:
    """ONNX Runtime's direct convolutions do without AMX (core/mlas/lib/convsym.cpp)."""
    convolutions = [kernel for kernel in seen.kernels if kernel.op == "QLinearConv"]
    if not (seen.matrix_instructions and seen.products and convolutions):
        return []
    products = sum(kernel.macs for kernel in convolutions)
    # A product and its addition are two operations; milliseconds.
    possible, taken = 1000 * 2 * products / seen.products["int8"], _sum(convolutions)
    return [
        Cause(
            cause="convolutions without AMX",
            cost_ms=taken - possible,
            evidence=f"{len(convolutions)} convolutions take {taken:.2f} ms, as many operations "
            f"in a large product, which uses AMX, {possible:.2f} ms",
            remedy="--backend openvino, whose convolutions use it "
            "(pip install 'resdeploy[openvino]')",
        )
    ]


def _throttling(seen: Observations) -> list[Cause]:
    if seen.late_ms < SLOWER * seen.early_ms and not seen.notices:
        return []
    told = "; ".join(seen.notices)
    drift = f"{seen.early_ms:.2f} ms at first, {seen.late_ms:.2f} ms after some seconds"
    return [
        Cause(
            cause="throttling",
            cost_ms=max(seen.late_ms - seen.early_ms, 0.0),
            evidence=f"{drift}; {told}" if told else drift,
            remedy="cool it, choose the fastest power mode (resdeploy doctor shows it), or look "
            "for what else runs",
        )
    ]


def _neighbours(seen: Observations) -> list[Cause]:
    lost = 1 - seen.cpu_share
    return [
        Cause(
            cause="other processes",
            cost_ms=max(lost, 0.0) * seen.ms,
            evidence=f"its threads got {100 * seen.cpu_share:.0f} % of the time they asked for",
            remedy="stop what else runs, or use fewer threads than there are free cores",
        )
    ]


def _is_addition(kernel: Kernel) -> bool:
    """Of two activations, in float."""
    shapes = [shape for _, shape in kernel.inputs[:2]]
    return kernel.op == "Add" and kernel.is_float and len(shapes) == 2 and shapes[0] == shapes[1]


def _sum(kernels: Sequence[Kernel]) -> float:
    return sum(kernel.ms for kernel in kernels)
