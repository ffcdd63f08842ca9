"""How fast could it be? The work of a network, and the least time that a machine's ceilings allow.

Source: Williams, Waterman, Patterson, "Roofline: an insightful visual performance model for
multicore architectures", Communications of the ACM 52 (2009) 65-76.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from resdeploy.errors import needs_extra

if TYPE_CHECKING:
    import onnx_ir as ir

    from resdeploy.bundle import Bundle

FLOPS_RULE = (
    "2 operations for each product of a convolution or of the classifier, counted in fp32.onnx; "
    "nothing for the rest"
)
BYTES_RULE = (
    "for each convolution and the classifier: its weights, what it reads and what it gives, each "
    "once and at the size of the precision; nothing for biases, additions, poolings, pixels"
)
ROOFLINE_RULE = (
    "the longer of operations / fastest matrix product and bytes / fastest copy, both measured on "
    "this machine with PyTorch. Fused layers and caches move fewer bytes than are counted, so that "
    "a bound by memory can be beaten; an INT8 engine counts as INT8 in every layer"
)
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
# Which matrix product bounds which precision: PyTorch, ONNX Runtime and TensorRT all may round
# what FP32 convolutions read to TF32.
CEILING = {"fp32": "tf32", "fp16": "fp16", "bf16": "bf16", "int8": "int8"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a network asks of a machine; activations and MACs are of one image."""

    macs: int
    weights: int
    """Elements."""
    activations: int
    """Elements that convolutions and the classifier read and give."""

    def operations(self, batch: int) -> int:
        """See `FLOPS_RULE`."""
        return 2 * self.macs * batch

    def bytes(self, batch: int, precision: str) -> int:
        """See `BYTES_RULE`."""
        return BYTES[precision] * (self.weights + batch * self.activations)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """The best that a machine was seen to do; what could not be measured is not in it."""

    operations_per_second: Mapping[str, float]
    """Of a large matrix product, by arithmetic: fp32, tf32, fp16, bf16, int8."""
    bytes_per_second: float | None
    """Read and written by a copy within the device's memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """The least time of one batch, and what sets it."""

    ms: float
    bound: str
    """`compute` or `memory`."""


def work_of(model: ir.Model) -> Work:
    """Count a graph whose values have shapes, their first axis being the batch."""
    with needs_extra():
        from resdeploy.export.handback import products
        from resdeploy.export.placement import WEIGHTED

    weighted = [node for node in model.graph if node.op_type in WEIGHTED]
    return Work(
        macs=sum(products(node) for node in weighted),
        weights=sum(_elements(node.inputs[1]) for node in weighted),
        activations=sum(
            _elements(node.inputs[0], skip=1) + _elements(node.outputs[0], skip=1)
            for node in weighted
        ),
    )


def work_of_bundle(bundle: Bundle) -> Work:
    """The work of a bundle's FP32 graph, which that of the others equals.

    Raises:
        MissingDependencyError: ONNX is not installed.
        BundleError: the graph is damaged.
    """
    with needs_extra():
        import onnx
        import onnx_ir as ir

    return work_of(ir.from_proto(onnx.load_from_string(bundle.read("fp32.onnx"))))


def roofline(
    work: Work | None, ceilings: Ceilings | None, precision: str, batch: int
) -> Roofline | None:
    """The bound for one batch; None where something that it takes was not measured."""
    if work is None or ceilings is None or ceilings.bytes_per_second is None:
        return None
    fastest = ceilings.operations_per_second.get(CEILING[precision])
    if fastest is None:
        return None
    compute = 1000 * work.operations(batch) / fastest
    memory = 1000 * work.bytes(batch, precision) / ceilings.bytes_per_second
    return Roofline(ms=max(compute, memory), bound="compute" if compute >= memory else "memory")


def _elements(value: ir.Value | None, skip: int = 0) -> int:
    """Of a tensor without its first `skip` axes."""
    assert value is not None
    assert value.shape is not None
    sizes = value.shape[skip:]
    numbers = [size for size in sizes if isinstance(size, int)]
    assert len(numbers) == len(sizes), f"{value.name} has an open shape: {value.shape}"
    return math.prod(numbers)
