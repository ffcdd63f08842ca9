"""How fast could it be? The work of a network, and the least time that a machine's ceilings allow.

Source: Williams, Waterman, Patterson, "Roofline: an insightful visual performance model for
multicore architectures", Communications of the ACM 52 (2009) 65-76.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from resdeploy.bundle.work import Work

ROOFLINE_RULE = (
    "the longer of operations / matrix product and bytes / copy, both measured on this machine. "
    "Fused layers and caches move fewer bytes than are counted, so that a bound by memory can be "
    "beaten; an INT8 graph counts as INT8 in every layer"
)
# Which matrix product bounds which precision. On a GPU, PyTorch, ONNX Runtime and TensorRT all may
# round what FP32 convolutions read to TF32; on a CPU, float16 is computed in float32.
GPU_ARITHMETIC = {"fp32": "tf32", "fp16": "fp16", "bf16": "bf16", "int8": "int8"}
CPU_ARITHMETIC = {"fp32": "fp32", "fp16": "fp32", "bf16": "bf16", "int8": "int8"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """The best that a machine was seen to do; what could not be measured is not in it."""

    operations_per_second: Mapping[str, float]
    """Of a matrix product, by arithmetic: fp32, tf32, fp16, bf16, int8."""
    bytes_per_second: float | None
    """Read and written by a copy within the device's memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """The least time of one batch, and what sets it."""

    ms: float
    bound: str
    """`compute` or `memory`."""


def roofline(
    work: Work | None, ceilings: Ceilings | None, arithmetic: str, batch: int
) -> Roofline | None:
    """The bound for one batch; None where something that it takes was not measured."""
    if work is None or ceilings is None or ceilings.bytes_per_second is None:
        return None
    fastest = ceilings.operations_per_second.get(arithmetic)
    if fastest is None:
        return None
    compute = 1000 * work.operations(batch) / fastest
    memory = 1000 * work.bytes(batch, arithmetic) / ceilings.bytes_per_second
    return Roofline(ms=max(compute, memory), bound="compute" if compute >= memory else "memory")
