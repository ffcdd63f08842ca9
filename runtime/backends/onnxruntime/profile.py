"""The time that each kernel of an ONNX Runtime session takes, from ONNX Runtime's own profile.

Source: ONNX Runtime, "Profiling Tools": a list of events in Chrome's trace format with times in
microseconds; the event of a node has the types and shapes of its inputs and outputs.
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
from resdeploy.machine.device import available_cores
from resdeploy.result_files.benchmark import LayerTimes
from resdeploy.runtime.backends.onnxruntime.cpu import PROVIDER, session_options
from resdeploy.runtime.backends.onnxruntime.session import SessionBackend, create_session

SUFFIX = "_kernel_time"
WARM_UP_RUNS = 3  # until caches and clocks are warm
RUNS = 30
CONVERSIONS = ("QuantizeLinear", "DequantizeLinear", "Cast")
FUSED = re.compile(r"_token_\d+$")  # ONNX Runtime adds this suffix to the nodes that it fuses
# `time_layers` profiles the first of these graphs that the bundle contains.
GRAPHS = (("int8-cpu", Encoding.CPU), ("fp32", Encoding.FLOAT))

Tensor = tuple[str, tuple[int, ...]]
"""Type and shape of a tensor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One node of the graph that the session runs after its optimisations."""

    name: str
    op: str
    ms: float
    """Median time of a run, in milliseconds."""
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    macs: int
    """Multiply-accumulate operations of one run; 0 if the manifest does not list the layer."""

    @property
    def is_float(self) -> bool:
        """Return True if the kernel computes in float, or converts from or to float."""
        return self.op in CONVERSIONS or any("float" in kind for kind, _ in self.inputs[:1])


def profile(
    bundle: Bundle, name: str, encoding: Encoding, images: UInt8Array, *, threads: int, runs: int
) -> tuple[Kernel, ...]:
    """Profile `runs` runs of an artifact on uint8 `images` (N, H, W, 3)."""
    with tempfile.TemporaryDirectory() as folder, bundle.checked_path(f"{name}.onnx") as graph:
        options = session_options(encoding, threads)
        options.enable_profiling = True
        options.profile_file_prefix = f"{folder}/profile"
        session = create_session(graph, options, [(PROVIDER, {})])
        backend = SessionBackend(session)
        for _ in range(WARM_UP_RUNS + runs):
            backend.run(images)
        events = json.loads(Path(session.end_profiling()).read_bytes())
    layers = bundle.manifest.work.layers
    return parse_profile(events, {layer.name: layer.macs * len(images) for layer in layers})


def parse_profile(
    events: Sequence[Mapping[str, Any]], macs: Mapping[str, int]
) -> tuple[Kernel, ...]:
    """Return the kernels in the order of their first run; skip the first `WARM_UP_RUNS` runs.

    `macs` holds the multiply-accumulate operations of one run, by the layer's name in the graph.
    The profile does not show them: a session repacks weights when it starts, so their shapes are
    missing.
    """
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(SUFFIX):
            runs.setdefault(name.removesuffix(SUFFIX), []).append(event)
    return tuple(
        Kernel(
            name=name,
            op=str(measured[-1]["args"]["op_name"]),
            ms=statistics.median(e["dur"] / 1000 for e in measured[WARM_UP_RUNS:] or measured),
            inputs=_tensors(measured[-1]["args"]["input_type_shape"]),
            outputs=_tensors(measured[-1]["args"]["output_type_shape"]),
            macs=macs.get(FUSED.sub("", name), 0),
        )
        for name, measured in runs.items()
    )


def _tensors(entries: Sequence[Mapping[str, Sequence[int]]]) -> tuple[Tensor, ...]:
    return tuple((kind, tuple(shape)) for entry in entries for kind, shape in entry.items())


def time_layers(bundle: Bundle) -> LayerTimes:
    """Time every layer of the bundle's fastest CPU graph with ONNX Runtime's profiler.

    Raises:
        BackendError: ONNX Runtime rejects the graph.
        BundleError: The graph is missing or was changed.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    names = {artifact.name for artifact in bundle.manifest.artifacts}
    name, encoding = next(graph for graph in GRAPHS if graph[0] in names)
    kernels = profile(
        bundle, name, encoding, bundle.golden().images[:1], threads=available_cores(), runs=RUNS
    )
    return LayerTimes(name, {FUSED.sub("", kernel.name): kernel.ms for kernel in kernels})
