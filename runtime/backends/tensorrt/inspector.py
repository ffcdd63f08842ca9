"""Parsers for the layers of an engine, in the formats of the TensorRT versions.

Sources: NVIDIA, "TensorRT Developer Guide", section "Engine Inspector"; NVIDIA, "Migrating
IEngineInspector Usage from TensorRT 10.x to 11.x": 10.x joins format and type in `Format/Datatype`,
11.x splits them. TensorRT-RTX 1.7 logs one line for each layer during a build.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# The names of each type, in the order in which a text is searched for them.
SPELLINGS = (
    ("int8", {"int8"}),
    ("uint8", {"uint8"}),
    ("fp16", {"half", "fp16", "float16"}),
    ("fp32", {"float", "fp32"}),
)
LOGGED_LAYER = re.compile(
    r"^Name: (.*?), LayerType: (\w+), Inputs: \[(.*?)\], (?:Const|Output)", re.MULTILINE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLayer:
    """One layer of an engine: one kernel or a few."""

    name: str
    kind: str
    """TensorRT's name of the layer type, such as CaskConvolution or correlation."""
    input_types: tuple[str, ...]
    """Type of each input: int8, uint8, fp16, fp32 or unknown."""

    @property
    def is_convolution(self) -> bool:
        return any(word in self.kind.lower() for word in ("conv", "correlation"))

    @property
    def runs_in_int8(self) -> bool:
        return self.input_types[:1] == ("int8",)


@dataclass(frozen=True, slots=True)
class EngineCoverage:
    """The number of convolutions in an engine, and of those that run in INT8."""

    convs: int
    int8_convs: int


def count_convolutions(layers: Iterable[EngineLayer]) -> EngineCoverage | None:
    """Count the convolutions; return None if there are no layers."""
    layers = list(layers)
    if not layers:
        return None
    convs = [layer for layer in layers if layer.is_convolution]
    return EngineCoverage(len(convs), sum(layer.runs_in_int8 for layer in convs))


def parse_inspector_json(document: Mapping[str, Any]) -> list[EngineLayer]:
    """Parse the JSON document of the engine inspector; skip layers without details."""
    return [
        EngineLayer(
            name=str(layer.get("Name", "")),
            kind=str(layer.get("LayerType", "")),
            input_types=tuple(_type_of(tensor) for tensor in layer.get("Inputs", ())),
        )
        for layer in document.get("Layers", ())
        if isinstance(layer, Mapping)
    ]


def parse_builder_log(text: str) -> list[EngineLayer]:
    """Parse the lines that the builder of TensorRT-RTX logs."""
    return [
        EngineLayer(
            name=found[1],
            kind=found[2],
            input_types=tuple(map(_find_type, re.findall(r"Datatype: (\w+)", found[3]))),
        )
        for found in LOGGED_LAYER.finditer(text)
    ]


def _type_of(tensor: Any) -> str:
    keys = ("DataType", "Datatype", "Format/Datatype", "Format/DataType")
    known = tensor if isinstance(tensor, Mapping) else {}
    return _find_type(next((str(known[key]) for key in keys if key in known), ""))


def _find_type(text: str) -> str:
    words = set(re.findall(r"[a-z]+\d*", text.lower()))
    return next((name for name, spellings in SPELLINGS if words & spellings), "unknown")
