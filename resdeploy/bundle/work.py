"""TODO."""

from __future__ import annotations

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


BYTES = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "int8": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWork:
    """What a convolution or the classifier asks of a machine, for one image."""

    name: str
    macs: int
    weights: int
    """Elements."""
    activations: int
    """Elements that it reads and gives."""

    def __post_init__(self) -> None:
        for field in ("macs", "weights", "activations"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; at least 1 is needed")


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
