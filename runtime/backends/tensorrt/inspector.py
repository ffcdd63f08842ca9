"""What TensorRT made of a graph, layer by layer, in each of the spellings it is told in.

Sources: NVIDIA, "TensorRT Developer Guide", section "Engine Inspector"; NVIDIA, "Migrating
IEngineInspector Usage from TensorRT 10.x to 11.x": 10.x joins format and type in `Format/Datatype`,
11.x splits them. TensorRT-RTX 1.7 writes one line a layer into its log while it builds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# How the types are called, in the order in which a text is searched for them.
SPELLINGS = (
    ("int8", ("int8",)),
    ("uint8", ("uint8",)),
    ("fp16", ("half", "fp16", "float16")),
    ("fp32", ("float", "fp32")),
)
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLayer:
    """One kernel, or a few."""

    name: str
    kind: str
    """As TensorRT calls it, such as CaskConvolution or correlation."""
    input_types: tuple[str, ...]
    """int8, uint8, fp16, fp32 or unknown."""

    @property
    def is_convolution(self) -> bool:
        """Whether it multiplies an image by weights."""
        return any(sign in self.kind.lower() for sign in ("conv", "correlation"))

    @property
    def in_int8(self) -> bool:
        """Whether what it reads is INT8."""
        return self.input_types[:1] == ("int8",)


@dataclass(frozen=True, slots=True)
class EngineCoverage:
    """How many convolutions TensorRT runs, and in integers."""

    convs: int
    int8_convs: int


def coverage_of(layers: Iterable[EngineLayer]) -> EngineCoverage | None:
    """Count the convolutions; None where TensorRT told of no layer."""
    layers = list(layers)
    convs = [layer for layer in layers if layer.is_convolution]
    if not layers:
        return None
    return EngineCoverage(len(convs), sum(layer.in_int8 for layer in convs))


def parse_document(document: Mapping[str, Any]) -> list[EngineLayer]:
    """The layers in what the inspector gives as JSON; those without details are left out."""
    return [
        EngineLayer(
            name=str(layer.get("Name", "")),
            kind=str(layer.get("LayerType", "")),
            input_types=tuple(_type_of(tensor) for tensor in layer.get("Inputs", ())),
        )
        for layer in document.get("Layers", ())
        if isinstance(layer, Mapping)
    ]


def parse_lines(text: str) -> list[EngineLayer]:
    """The layers in what the builder of TensorRT-RTX writes into its log."""
    layers = []
    for line in text.splitlines():
        found = re.match(
            r"Name: (.*?), LayerType: (\w+), Inputs: \[(.*?)\], (?:Const|Output)", line
        )
        if found:
            types = re.findall(r"Datatype: (\w+)", found[3])
            layers.append(
                EngineLayer(name=found[1], kind=found[2], input_types=tuple(map(_normal, types)))
            )
    return layers


def _type_of(tensor: Any) -> str:
    if not isinstance(tensor, Mapping):
        return UNKNOWN
    for key in ("DataType", "Datatype", "Format/Datatype", "Format/DataType"):
        if key in tensor:
            return _normal(str(tensor[key]))
    return UNKNOWN


def _normal(text: str) -> str:
    words = re.findall(r"[a-z]+\d*", text.lower())
    for name, spellings in SPELLINGS:
        if any(spelling in words for spelling in spellings):
            return name
    return UNKNOWN
