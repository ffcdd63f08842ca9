"""The work of a network, by layer: products, weights and activations of one image."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

FLOPS_RULE = (
    "2 operations for each product of a convolution or of the classifier, counted in fp32.onnx; "
    "all other layers count as 0"
)
BYTES_RULE = (
    "for each convolution and the classifier: its weights, inputs and outputs, each once and at "
    "the size of the arithmetic; biases, additions, poolings and pixels count as 0"
)
BYTES = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "int8": 1}
"""Size of an element in bytes, by arithmetic."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWork:
    """The work of a convolution or the classifier for one image."""

    name: str
    macs: int
    """Multiply-accumulate operations."""
    weights: int
    """Number of weights."""
    activations: int
    """Number of elements that the layer reads and writes."""

    def __post_init__(self) -> None:
        for field in ("macs", "weights", "activations"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; at least 1 is needed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The work of a network; MACs and activations are those of one image."""

    layers: tuple[LayerWork, ...]

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations of all layers."""
        return sum(layer.macs for layer in self.layers)

    @property
    def weights(self) -> int:
        """Number of weights of all layers."""
        return sum(layer.weights for layer in self.layers)

    @property
    def activations(self) -> int:
        """Number of elements that all layers read and write."""
        return sum(layer.activations for layer in self.layers)

    def operations(self, batch: int) -> int:
        """Return the operations of one batch; see `FLOPS_RULE`."""
        return 2 * self.macs * batch

    def bytes(self, batch: int, arithmetic: str) -> int:
        """Return the bytes that one batch moves; see `BYTES_RULE`."""
        return BYTES[arithmetic] * (self.weights + batch * self.activations)

    def totals(self) -> dict[str, int]:
        """Return the sums over all layers, as results hold them."""
        return {"macs": self.macs, "weights": self.weights, "activations": self.activations}

    def to_json(self) -> dict[str, Any]:
        """Return the sums and the layers, as the manifest holds them."""
        return {**self.totals(), "layers": [asdict(layer) for layer in self.layers]}
