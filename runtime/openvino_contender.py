"""OpenVINO with a bundle's graph as a contender: `python -m resdeploy.runtime.openvino_contender`.

It is a yardstick, asked for with `--also openvino`, not a backend of the runtime.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from resdeploy.bundle import Float32Array, Precision, open_bundle
from resdeploy.contender import answer
from resdeploy.errors import needs_extra
from resdeploy.preprocessing import UInt8Array
from resdeploy.runtime.contender import require_golden
from resdeploy.workload import Workload

NAME = "openvino"
ARTIFACTS = ("fp32", "int8-cpu")


class OpenVino:
    """A compiled model on the CPU; see `Backend`."""

    name = NAME

    def __init__(self, graph: bytes, precision: Precision, threads: int) -> None:
        """Compile for the shortest latency.

        Raises:
            MissingDependencyError: OpenVINO is not installed.
        """
        with needs_extra():
            import openvino

        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        if precision is Precision.FP32:
            # Where a processor has bfloat16, OpenVINO would round to it, and be another precision.
            settings["INFERENCE_PRECISION_HINT"] = "f32"
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(graph), "CPU", settings)
        self._request: Any = compiled.create_infer_request()

    def run(self, images: UInt8Array) -> Float32Array:
        """See `Backend.run`."""
        (logits,) = self._request.infer({0: images}, share_inputs=True).values()
        return np.array(logits, dtype=np.float32)

    def close(self) -> None:
        """See `Backend.close`."""
        self._request = None


def prepare(workload: Workload, name: str) -> tuple[Callable[[], object], dict[str, Any]]:
    """Compile one of the bundle's graphs and return what runs it."""
    bundle = open_bundle(workload.bundle)
    artifact = bundle.artifact(name)
    network = OpenVino(bundle.read(artifact.file), artifact.precision, workload.threads)
    golden = bundle.golden()
    require_golden(network, artifact, golden)
    return workload.runner(bundle, golden.images, network.run), {}


if __name__ == "__main__":
    artifact, *rest = sys.argv[1:]
    answer(lambda: prepare(Workload.from_arguments(rest), artifact))
