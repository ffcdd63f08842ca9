"""What each kernel of an ONNX Runtime session takes, from the profile that it writes.

Source: ONNX Runtime, "Profiling Tools": a list of events in Chrome's trace format, times in
microseconds, a node's with the types and shapes of what it reads and gives.
"""

from __future__ import annotations

import json
import re
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.manifest import Encoding
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.machine.cpu import read_cpu
from resdeploy.machine.device import available_cores
from resdeploy.results.benchmark import LayerTimes
from resdeploy.runtime.backends.onnxruntime.cpu import PROVIDER, session_options
from resdeploy.runtime.backends.onnxruntime.session import create_session, run_session

SUFFIX = "_kernel_time"
UNPROFILED = 3  # runs until caches and clocks are warm
CONVERSIONS = ("QuantizeLinear", "DequantizeLinear", "Cast")
FUSED = re.compile(r"_token_\d+$")  # which ONNX Runtime adds where it replaces nodes

Tensor = tuple[str, tuple[int, ...]]
"""Type and shape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One node as the session runs it, after its optimisations."""

    name: str
    op: str
    ms: float
    """Median over runs."""
    reads: tuple[Tensor, ...]
    gives: tuple[Tensor, ...]
    macs: int
    """Products of one run; 0 where it is none of the layers whose work is known."""

    @property
    def is_float(self) -> bool:
        """Whether it computes in float, or converts from it or to it."""
        return self.op in CONVERSIONS or any("float" in kind for kind, _ in self.reads[:1])


def profile(
    bundle: Bundle, name: str, encoding: Encoding, images: UInt8Array, *, threads: int, runs: int
) -> tuple[Kernel, ...]:
    """Run an artifact of the bundle under ONNX Runtime's profiler, on `images` (N, H, W, 3).

    Raises:
        BackendError: ONNX Runtime refuses the graph.
        BundleError: the bundle is damaged.
    """
    with tempfile.TemporaryDirectory() as folder, bundle.checked_path(f"{name}.onnx") as graph:
        options = session_options(encoding, read_cpu(), threads)
        options.enable_profiling = True
        options.profile_file_prefix = f"{folder}/profile"
        session = create_session(graph, options, [(PROVIDER, {})])
        for _ in range(UNPROFILED + runs):
            run_session(session, images)
        events = json.loads(Path(session.end_profiling()).read_bytes())
    layers = bundle.manifest.work.layers if bundle.manifest.work else ()
    return parse_profile(events, {layer.name: layer.macs * len(images) for layer in layers})


def parse_profile(
    events: Sequence[Mapping[str, Any]], macs: Mapping[str, int]
) -> tuple[Kernel, ...]:
    """Kernels in the order in which they first ran; the first `UNPROFILED` runs do not count.

    Args:
        events: The profile.
        macs: Products of one run, by the layer's name in the graph. Weights are laid out anew when
            a session starts, so that a profile no longer shows their shapes.
    """
    times: dict[str, list[float]] = {}
    facts: dict[str, Mapping[str, Any]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(SUFFIX):
            times.setdefault(name.removesuffix(SUFFIX), []).append(event["dur"] / 1000)
            facts[name.removesuffix(SUFFIX)] = event["args"]
    return tuple(
        Kernel(
            name=name,
            op=str(facts[name]["op_name"]),
            ms=statistics.median(durations[UNPROFILED:] or durations),
            reads=_tensors(facts[name]["input_type_shape"]),
            gives=_tensors(facts[name]["output_type_shape"]),
            macs=macs.get(FUSED.sub("", name), 0),
        )
        for name, durations in times.items()
    )


def _tensors(entries: Sequence[Mapping[str, Sequence[int]]]) -> tuple[Tensor, ...]:
    return tuple((kind, tuple(shape)) for entry in entries for kind, shape in entry.items())


GRAPHS = (("int8-cpu", Encoding.CPU), ("fp32", Encoding.FLOAT))
"""The first of them that a bundle holds is timed."""


RUNS = 30


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
