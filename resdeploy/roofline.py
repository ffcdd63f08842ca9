"""How fast could it be? The work of a network, and the least time that a machine's ceilings allow.

Source: Williams, Waterman, Patterson, "Roofline: an insightful visual performance model for
multicore architectures", Communications of the ACM 52 (2009) 65-76.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

FLOPS_RULE = (
    "2 operations for each product of a convolution or of the classifier, counted in fp32.onnx; "
    "nothing for the rest"
)
BYTES_RULE = (
    "for each convolution and the classifier: its weights, what it reads and what it gives, each "
    "once and at the size of the arithmetic; nothing for biases, additions, poolings, pixels"
)
ROOFLINE_RULE = (
    "the longer of operations / matrix product and bytes / copy, both measured on this machine. "
    "Fused layers and caches move fewer bytes than are counted, so that a bound by memory can be "
    "beaten; an INT8 graph counts as INT8 in every layer"
)
BYTES = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "int8": 1}
# Which matrix product bounds which precision. On a GPU, PyTorch, ONNX Runtime and TensorRT all may
# round what FP32 convolutions read to TF32; on a CPU, float16 is computed in float32.
GPU_ARITHMETIC = {"fp32": "tf32", "fp16": "fp16", "bf16": "bf16", "int8": "int8"}
CPU_ARITHMETIC = {"fp32": "fp32", "fp16": "fp32", "bf16": "bf16", "int8": "int8"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWork:
    """What a convolution or the classifier asks of a machine, for one image."""

    name: str
    macs: int
    weights: int
    """Elements."""
    activations: int
    """Elements that it reads and gives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a network asks of a machine; activations and MACs are of one image."""

    layers: tuple[LayerWork, ...]

    @property
    def macs(self) -> int:
        """Of all layers."""
        return sum(layer.macs for layer in self.layers)

    @property
    def weights(self) -> int:
        """Elements of all layers."""
        return sum(layer.weights for layer in self.layers)

    @property
    def activations(self) -> int:
        """Elements that all layers read and give."""
        return sum(layer.activations for layer in self.layers)

    def operations(self, batch: int) -> int:
        """See `FLOPS_RULE`."""
        return 2 * self.macs * batch

    def bytes(self, batch: int, arithmetic: str) -> int:
        """See `BYTES_RULE`."""
        return BYTES[arithmetic] * (self.weights + batch * self.activations)

    def totals(self) -> dict[str, int]:
        """The form that results hold."""
        return {"macs": self.macs, "weights": self.weights, "activations": self.activations}

    def to_json(self) -> dict[str, Any]:
        """The form that the manifest holds."""
        return {**self.totals(), "layers": [asdict(layer) for layer in self.layers]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Work:
        """Inverse of `to_json`.

        Raises:
            KeyError, ValueError, TypeError: `data` does not describe work.
        """
        numbers = ("macs", "weights", "activations")
        layers = tuple(
            LayerWork(name=str(layer["name"]), **{key: int(layer[key]) for key in numbers})
            for layer in data["layers"]
        )
        if any(getattr(layer, key) < 1 for layer in layers for key in numbers):
            raise ValueError("a layer without work")
        return cls(layers=layers)


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
