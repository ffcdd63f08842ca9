"""Who takes part in a benchmark: processes that are not started yet."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from resdeploy.bench.process import Worker
from resdeploy.bench.workload import Workload
from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.manifest import Artifact, Encoding, Precision
from resdeploy.errors import BackendError
from resdeploy.machine.device import Scope
from resdeploy.runtime.backends.base import AUTO
from resdeploy.runtime.backends.registry import ENGINES, Candidate, candidates

# Named as text: the runtime never imports what needs PyTorch.
BASELINE = "pytorch-eager"
PYTORCH = (BASELINE, "pytorch-compile", "pytorch-autocast")
CEILINGS = "ceilings"
NAMES = (*PYTORCH, *(engine.name for engine in ENGINES), CEILINGS)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContenderSpec:
    """A contender before it is started."""

    name: str
    precision: str
    """fp32, fp16, bf16 or int8; what the contender says of itself comes before."""
    encoding: Encoding
    module: Worker
    arguments: tuple[str, ...]
    runs_on: Scope = Scope.CPU
    file_bytes: int | None = None

    @property
    def label(self) -> str:
        """Of messages."""
        return f"{self.name} {self.precision}"


def list_contenders(
    bundle: Bundle,
    workload: Workload,
    *,
    checkpoint: Path | None,
    also: Sequence[str],
    without: Collection[str],
) -> list[ContenderSpec]:
    """PyTorch, the baseline first; then the runtime's backends; then what was asked for.

    Raises:
        BackendError: there is no contender of a name in `without`, or what was asked for cannot
            run here.
    """
    for name in without:
        if name not in NAMES:
            raise BackendError(f"there is no contender {name!r}", f"choose from {', '.join(NAMES)}")
    entries = [
        *pytorch_entries(workload, checkpoint),
        *backend_entries(bundle, workload),
        *(entry for name in also for entry in backend_entries(bundle, workload, name)),
    ]
    return [entry for entry in entries if entry.name not in without]


def pytorch_entries(workload: Workload, checkpoint: Path | None) -> list[ContenderSpec]:
    """The network as it was trained, compiled, and in the narrow arithmetic of the machine."""
    return [
        ContenderSpec(
            name=name,
            precision="bf16" if name == "pytorch-autocast" else "fp32",
            encoding=Encoding.FLOAT,
            module=Worker.PYTORCH,
            arguments=(name, str(checkpoint or ""), *workload.to_arguments()),
        )
        for name in (PYTORCH if find_spec("torch") else [BASELINE])  # one warning is enough
    ]


def backend_entries(bundle: Bundle, workload: Workload, backend: str = AUTO) -> list[ContenderSpec]:
    """The contenders that the runtime itself brings.

    Raises:
        BackendError: none of them can run here.
    """
    return [
        _entry(
            candidate.engine.name,
            candidate.artifact,
            Worker.RUNTIME,
            (candidate.engine.name, candidate.artifact.name, *workload.to_arguments()),
            Scope.CPU if candidate.engine.on_cpu else Scope.GPU,
        )
        for candidate in best_candidates(bundle, backend)
    ]


def ceiling_entries(threads: int) -> list[ContenderSpec]:
    """Libraries whose products bound what a network can do here."""
    return [
        ContenderSpec(
            name=CEILINGS,
            precision=library,
            encoding=Encoding.FLOAT,
            module=module,
            arguments=(str(threads),),
        )
        for module, library in (
            (Worker.RUNTIME_CEILINGS, "onnxruntime"),
            (Worker.PYTORCH_CEILINGS, "torch"),
        )
        if find_spec(library)
    ]


def best_candidates(bundle: Bundle, backend: str = AUTO) -> list[Candidate]:
    """The best artifact of each precision on every backend that is installed here.

    Raises:
        BackendError: see `selection.candidates`.
    """
    best: dict[tuple[str, Precision], Candidate] = {}
    for candidate in candidates(bundle, backend):
        best.setdefault((candidate.engine.name, candidate.artifact.precision), candidate)
    order = list(Precision)
    return sorted(best.values(), key=lambda c: (c.engine.name, order.index(c.artifact.precision)))


def _entry(
    name: str, artifact: Artifact, module: Worker, arguments: tuple[str, ...], runs_on: Scope
) -> ContenderSpec:
    return ContenderSpec(
        name=name,
        precision=artifact.precision.value,
        encoding=artifact.encoding,
        module=module,
        arguments=arguments,
        runs_on=runs_on,
        file_bytes=artifact.bytes,
    )
