"""What each layer takes, on this CPU, now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from resdeploy.bundle import Bundle, Encoding
from resdeploy.runtime.device import available_cores
from resdeploy.runtime.profile import FUSED, profile

GRAPHS = (("int8-cpu", Encoding.CPU), ("fp32", Encoding.FLOAT))
"""The first of them that a bundle holds is timed."""
RUNS = 30


@dataclass(frozen=True, slots=True)
class LayerTimes:
    """Medians of single runs of one image, with all cores."""

    graph: str
    ms: Mapping[str, float]
    """By the node of the FP32 graph; what fuses with it is in it."""


def time_layers(bundle: Bundle) -> LayerTimes:
    """Run a graph under ONNX Runtime's profiler.

    Raises:
        BackendError: ONNX Runtime refuses the graph.
        BundleError: the bundle is damaged.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    there = {artifact.name for artifact in bundle.manifest.artifacts}
    name, encoding = next(graph for graph in GRAPHS if graph[0] in there)
    kernels = profile(
        bundle, name, encoding, bundle.golden().images[:1], threads=available_cores(), runs=RUNS
    )
    return LayerTimes(name, {FUSED.sub("", kernel.name): kernel.ms for kernel in kernels})
