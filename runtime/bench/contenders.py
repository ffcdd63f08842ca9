"""The list of a benchmark's contenders, before they are started."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from resdeploy.benchmark_process.worker_process import Worker
from resdeploy.benchmark_process.workload import Workload
from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.manifest import Encoding, Precision
from resdeploy.errors import BackendError
from resdeploy.machine.device import Scope
from resdeploy.result_files.benchmark import BASELINE
from resdeploy.runtime.backends import openvino
from resdeploy.runtime.backends.base import AUTO
from resdeploy.runtime.backends.registry import ENGINES, Candidate, candidates

PYTORCH = (BASELINE, "pytorch-compile", "pytorch-autocast")
GRAPH_BASELINE = ("onnxruntime-cpu", "fp32")
CEILINGS = "ceilings"
NAMES = (*PYTORCH, *(engine.name for engine in ENGINES), CEILINGS)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContenderSpec:
    """The description of a contender: its network and its worker process."""

    name: str
    precision: str
    """fp32, fp16, bf16 or int8, until the worker reports its own; for `CEILINGS`, the library."""
    encoding: Encoding
    worker: Worker
    arguments: tuple[str, ...]
    """The command-line arguments of the worker."""
    streams: int = 1
    """See `Workload.streams`."""
    runs_on: Scope = Scope.CPU
    file_bytes: int | None = None
    is_baseline: bool = False
    """True for the contender to which speed-ups refer."""

    @property
    def label(self) -> str:
        """The name with the precision, for messages."""
        return f"{self.name} {self.precision}"


def list_contenders(
    bundle: Bundle,
    workload: Workload,
    *,
    checkpoint: Path | None,
    also: Sequence[str],
    without: Collection[str],
) -> list[ContenderSpec]:
    """Return the contenders: the baseline, other modes of PyTorch, automatic backends, `also`.

    A bundle that was exported from a graph has no network in PyTorch. Its baseline is ONNX Runtime
    on the CPU with FP32.

    Raises:
        BackendError: A name in `without` is unknown, or a backend in `also` cannot run here.
    """
    for name in without:
        if name not in NAMES:
            raise BackendError(f"there is no contender {name!r}", f"choose from {', '.join(NAMES)}")
    backends = [
        *backend_contenders(bundle, workload),
        *(spec for name in also for spec in backend_contenders(bundle, workload, name)),
    ]
    if bundle.manifest.is_graph:
        if checkpoint is not None:
            raise BackendError(
                f"{bundle.path} was exported from a graph, so that PyTorch cannot run its network",
                "leave --baseline out",
            )
        first = [spec for spec in backends if (spec.name, spec.precision) == GRAPH_BASELINE]
        others = [spec for spec in backends if spec not in first]
        specs = [*(replace(spec, is_baseline=True) for spec in first), *others]
    else:
        specs = [*pytorch_contenders(workload, checkpoint), *backends]
    return [spec for spec in specs if spec.name not in without]


def pytorch_contenders(workload: Workload, checkpoint: Path | None) -> list[ContenderSpec]:
    """Return PyTorch eager, compiled, and with autocast to 16 bits."""
    return [
        ContenderSpec(
            name=name,
            precision="bf16" if name == "pytorch-autocast" else "fp32",
            encoding=Encoding.FLOAT,
            worker=Worker.PYTORCH,
            arguments=(name, str(checkpoint or ""), *workload.to_arguments()),
            is_baseline=name == BASELINE,
        )
        # Without PyTorch, list only the baseline, so that the reason is logged once.
        for name in (PYTORCH if find_spec("torch") else [BASELINE])
    ]


def backend_contenders(
    bundle: Bundle, workload: Workload, backend: str = AUTO
) -> list[ContenderSpec]:
    """Return a contender for each of `best_candidates`; without OpenVINO for `auto`."""
    return [
        ContenderSpec(
            name=candidate.engine.name,
            precision=candidate.artifact.precision.value,
            encoding=candidate.artifact.encoding,
            worker=Worker.RUNTIME,
            arguments=(
                candidate.engine.name, candidate.artifact.name, *workload.to_arguments()
            ),
            streams=workload.streams,
            runs_on=Scope.CPU if candidate.engine.on_cpu else Scope.GPU,
            file_bytes=candidate.artifact.bytes,
        )
        for candidate in best_candidates(bundle, backend)
        # OpenVINO's two graphs make a benchmark a third longer, so they take part if named.
        if backend != AUTO or candidate.engine.name != openvino.NAME
    ]  # fmt: skip


def ceiling_contenders(threads: int) -> list[ContenderSpec]:
    """Return a contender for each installed library that can measure the CPU's ceilings."""
    return [
        ContenderSpec(
            name=CEILINGS,
            precision=library,
            encoding=Encoding.FLOAT,
            worker=worker,
            arguments=(str(threads),),
        )
        for worker, library in (
            (Worker.RUNTIME_CEILINGS, "onnxruntime"),
            (Worker.PYTORCH_CEILINGS, "torch"),
        )
        if find_spec(library)
    ]


def best_candidates(bundle: Bundle, backend: str = AUTO) -> list[Candidate]:
    """Return the fastest artifact of each precision for each backend that can run here.

    Raises:
        BackendError: See `registry.candidates`.
    """
    best: dict[tuple[str, Precision], Candidate] = {}
    for candidate in candidates(bundle, backend):  # the fastest first
        best.setdefault((candidate.engine.name, candidate.artifact.precision), candidate)
    order = list(Precision)
    return sorted(best.values(), key=lambda c: (c.engine.name, order.index(c.artifact.precision)))
