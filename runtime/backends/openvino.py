"""The OpenVINO backend for CPUs.

On a CPU with AMX it runs `int8-cpu.onnx` about twice as fast as ONNX Runtime. Its kernels round at
other places, so its logits are not bit-exact with those of the export and are checked by SQNR.

Source: OpenVINO, "Optimizing for Latency", "Performance Hints and Thread Scheduling" and "Precision
Control" of its inference guide.
"""

from __future__ import annotations

from contextlib import nullcontext
from importlib.util import find_spec
from threading import Lock
from typing import Any

import numpy as np

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.golden import Float32Array
from resdeploy.bundle.manifest import Artifact
from resdeploy.errors import BackendError, install_hint, needs_extra, remedy_for
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.runtime.backends.base import OpenOptions, Unavailability

NAME = "openvino"
ARTIFACTS = ("int8-cpu", "fp32")
# OpenVINO 2026.4 may deadlock if two threads make the first inference of their graphs at once.
_FIRST_RUN = Lock()


def installed_version() -> str | None:
    """Return the version of OpenVINO; None if it is not installed."""
    if find_spec("openvino") is None:
        return None
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("openvino")
    except PackageNotFoundError:
        return None


def check_availability() -> Unavailability | None:
    """Return the reason why OpenVINO cannot run here; None if it can."""
    if installed_version() is None:
        return Unavailability("openvino is not installed", install_hint("openvino"))
    return None


def open_artifact(bundle: Bundle, artifact: Artifact, options: OpenOptions) -> OpenVinoCpu:
    """Open an artifact; see `registry.Engine.open`."""
    return OpenVinoCpu(bundle.read(artifact.file), options.threads, options.streams)


class OpenVinoCpu:
    """A graph that OpenVINO has compiled for the CPU; each stream runs one request at a time."""

    name = NAME

    def __init__(self, graph: bytes, threads: int | None = None, streams: int = 1) -> None:
        """Compile the content of an ONNX file; one stream gives the shortest latency."""
        with needs_extra():
            import openvino

        # On a CPU with bfloat16 OpenVINO would otherwise round float32 to bfloat16.
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        if streams > 1:
            settings["NUM_STREAMS"] = streams
        self._has_run = False
        core = openvino.Core()
        try:
            compiled = core.compile_model(core.read_model(graph), "CPU", settings)
            self._requests: list[Any] = [compiled.create_infer_request() for _ in range(streams)]
        except RuntimeError as error:
            raise BackendError(
                f"OpenVINO rejects the graph: {_last_line(error)}",
                remedy_for(error, "use --backend onnxruntime-cpu, which runs every graph"),
            ) from error

    def run(self, images: UInt8Array) -> Float32Array:
        if not self._requests:
            raise BackendError("the model was closed", "load the bundle again")
        try:
            with nullcontext() if self._has_run else _FIRST_RUN:
                logits = self._infer(images)
            self._has_run = True
        except RuntimeError as error:
            raise BackendError(
                f"OpenVINO failed: {_last_line(error)}",
                remedy_for(error, "use --backend onnxruntime-cpu"),
            ) from error
        return logits

    def _infer(self, images: UInt8Array) -> Float32Array:
        if len(self._requests) > 1:
            return self._run_in_streams(images)
        (logits,) = self._requests[0].infer({0: images}, share_inputs=True).values()
        return np.array(logits, dtype=np.float32)

    def _run_in_streams(self, images: UInt8Array) -> Float32Array:
        parts = np.array_split(images, min(len(images), len(self._requests)))
        started = self._requests[: len(parts)]
        for request, part in zip(started, parts):
            request.start_async({0: part}, share_inputs=True)
            if not self._has_run:
                request.wait()
        for request in started:
            request.wait()
        logits = [request.get_output_tensor().data for request in started]
        return np.concatenate(logits, dtype=np.float32)

    def close(self) -> None:
        self._requests = []


def _last_line(error: RuntimeError) -> str:
    """Return the cause of an error; the lines before it name places in OpenVINO's sources."""
    return [line.strip() for line in str(error).splitlines() if line.strip()][-1]
