"""The roofline model: the least time that the ceilings of a machine allow for a network.

Source: Williams, Waterman, Patterson, "Roofline: an insightful visual performance model for
multicore architectures", Communications of the ACM 52 (2009) 65-76.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from resdeploy.bundle.operation_counts import WorkTotals

ROOFLINE_RULE = (
    "the longer of operations / ceiling of the matrix product and bytes / ceiling of the copy, "
    "both measured on this machine. Fused layers and caches move fewer bytes than are counted, so "
    "a contender can be faster than a memory bound; an INT8 graph counts as INT8 in every layer"
)
ABOVE_LIMIT = (
    "a share above 100 %: the limit counts all data as moved from memory and takes its rates from "
    "large products and copies; data that stay in the caches, and other kernels, can be faster"
)
# The arithmetic of the matrix product that bounds each precision. On a GPU, PyTorch, ONNX Runtime
# and TensorRT may round the inputs of FP32 convolutions to TF32. A CPU computes float16 in float32.
GPU_ARITHMETIC = {"fp32": "tf32", "fp16": "fp16", "bf16": "bf16", "int8": "int8"}
CPU_ARITHMETIC = {"fp32": "fp32", "fp16": "fp32", "bf16": "bf16", "int8": "int8"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """The highest rates that were measured on a machine."""

    operations_per_second: Mapping[str, float]
    """The rate of a matrix product by arithmetic: fp32, tf32, fp16, bf16, int8."""
    bytes_per_second: float | None
    """Bytes that a copy within the device's memory reads and writes; None if not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """The least time of one batch and the resource that sets it."""

    ms: float
    bound: str
    """`compute` or `memory`."""


def roofline(
    work: WorkTotals | None, ceilings: Ceilings | None, arithmetic: str, batch: int
) -> Roofline | None:
    """Return the roofline of one batch; None if the work or a ceiling is unknown."""
    if work is None or ceilings is None or ceilings.bytes_per_second is None:
        return None
    operations_per_second = ceilings.operations_per_second.get(arithmetic)
    if operations_per_second is None:
        return None
    compute_ms = 1000 * work.operations(batch) / operations_per_second
    memory_ms = 1000 * work.bytes(batch, arithmetic) / ceilings.bytes_per_second
    bound = "compute" if compute_ms >= memory_ms else "memory"
    return Roofline(ms=max(compute_ms, memory_ms), bound=bound)


def arithmetic_of(precision: str, ceilings: Ceilings) -> str:
    """Return the arithmetic of a precision on the device that has these ceilings.

    Only the ceilings of a GPU include TF32. An unknown precision counts as FP32.
    """
    on_gpu = "tf32" in ceilings.operations_per_second
    return (GPU_ARITHMETIC if on_gpu else CPU_ARITHMETIC).get(precision, "fp32")


def operations_per_byte(work: WorkTotals, batch: int, arithmetic: str) -> float:
    """Return the arithmetic intensity of one batch, in operations per byte."""
    return work.operations(batch) / max(work.bytes(batch, arithmetic), 1)
