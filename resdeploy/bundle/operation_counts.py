"""The work of a network: the operations of its layers, and the bytes that they read and write."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

FLOPS_RULE = (
    "2 operations for each multiply-accumulate of the convolutions and the classifier, counted in "
    "fp32.onnx; other layers are not counted"
)
BYTES_RULE = (
    "the weights, inputs and outputs of the convolutions and the classifier, each once and in the "
    "data type of the arithmetic; biases, additions, poolings and pixels are not counted"
)
BYTES = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "int8": 1}
"""Bytes of one element, by arithmetic."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkTotals:
    """Multiply-accumulates, weights and activations of a whole network for one image."""

    macs: int
    weights: int
    activations: int
    """Number of elements that all layers read and write."""

    def operations(self, batch: int) -> int:
        """Return the number of operations for one batch; see `FLOPS_RULE`."""
        return 2 * self.macs * batch

    def bytes(self, batch: int, arithmetic: str) -> int:
        """Return the number of bytes that one batch reads and writes; see `BYTES_RULE`."""
        return BYTES[arithmetic] * (self.weights + batch * self.activations)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWork:
    """The work of one convolution or of the classifier for one image; see `WorkTotals`."""

    name: str
    macs: int
    weights: int
    activations: int

    def __post_init__(self) -> None:
        for field in ("macs", "weights", "activations"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; at least 1 is needed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The work of a network, layer by layer."""

    layers: tuple[LayerWork, ...]

    @property
    def totals(self) -> WorkTotals:
        """Sums over all layers."""
        return WorkTotals(
            macs=sum(layer.macs for layer in self.layers),
            weights=sum(layer.weights for layer in self.layers),
            activations=sum(layer.activations for layer in self.layers),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the value of `work` in the manifest."""
        return {**asdict(self.totals), "layers": [asdict(layer) for layer in self.layers]}
