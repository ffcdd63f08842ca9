"""The contenders of the GPU benchmark, and the processes in which they are built and timed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import click

from benchmarks.gpu import pytorch_worker
from benchmarks.gpu.pytorch_worker import MODES
from benchmarks.gpu.report import Missing, TimedContender
from benchmarks.turns import interleave
from resdeploy.benchmark_process.worker_process import Contender
from resdeploy.bundle.bundle import Bundle
from resdeploy.errors import BackendError, ResdeployError
from resdeploy.machine.device import available_cores
from resdeploy.progress import progress_bar
from resdeploy.runtime.backends.registry import ENGINES
from resdeploy.runtime.backends.tensorrt import tensorrt_or_rtx
from resdeploy.runtime.backends.tensorrt.tensorrt_or_rtx import ARTIFACTS, Flavour
from resdeploy.runtime.bench.contenders import best_candidates

BACKENDS = tuple(engine.name for engine in ENGINES if not engine.on_cpu)
ENGINE_WORKER = "benchmarks.gpu.engine_worker"
NAMES = (*BACKENDS, *dict.fromkeys(mode.name for mode in MODES.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The network to measure and the settings of the measurement."""

    bundle: Bundle
    weights: str
    """A checkpoint for PyTorch, or `RANDOM`."""
    labelled: str
    """The folder of decoded labelled images; empty for none."""
    batches: Sequence[int]
    seconds: float
    """The time limit for each contender at each batch size."""
    bf16: bool
    without: Collection[str]
    cache_kept: bool
    """True if engines and compiled kernels are kept after the benchmark."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuContender:
    """A contender that has not been started."""

    name: str
    precision: str
    module: str
    arguments: tuple[str, ...]


@dataclass(slots=True)
class Notes:
    """The things that are left out, each printed once and kept for the document."""

    entries: list[Missing] = field(default_factory=list)

    def add(self, what: str, why: str) -> None:
        """Print and keep the reason why something is left out."""
        entry = Missing(what=what, why=" ".join(why.split()))
        if entry not in self.entries:
            self.entries.append(entry)
            click.echo(f"left out: {what}: {entry.why}", err=True)

    @contextmanager
    def leave_out_on_error(self, what: str) -> Iterator[None]:
        """Turn a ResdeployError of the `with` block into a note; drop `what` from its beginning."""
        try:
            yield
        except ResdeployError as error:
            self.add(what, str(error).removeprefix(f"{what} cannot run here: "))


def start_for_facts(name: str, module: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Start a worker process, stop it, and return the facts that it reported."""
    child = Contender.start(name, module, list(arguments), available_cores())
    child.stop()
    return dict(child.facts)


def build_engines(
    bundle: Bundle, batches: Sequence[int], without: Collection[str], notes: Notes
) -> list[dict[str, Any]]:
    """Build the engines of every installed TensorRT for each batch size; return their facts."""
    present = [artifact.name for artifact in bundle.manifest.artifacts]
    engines = []
    for flavour in Flavour:
        if flavour.value in without:
            continue
        if obstacle := tensorrt_or_rtx.check_availability(flavour):
            notes.add(flavour.value, obstacle.reason)
            continue
        for artifact in (name for name in ARTIFACTS if name in present):
            for batch in batches:
                arguments = ["build", str(bundle.path), flavour.value, artifact, str(batch)]
                what = f"engine of {flavour.value} {artifact} for batch {batch}"
                with notes.leave_out_on_error(what):
                    engines.append(start_for_facts(what, ENGINE_WORKER, arguments))
    return engines


def gpu_contenders(plan: Plan, batch: int, notes: Notes) -> list[GpuContender]:
    """Return the best graph of each precision for every GPU backend, and the modes of PyTorch."""
    bundle = str(plan.bundle.path)
    contenders: list[GpuContender] = []
    for backend in BACKENDS:
        if backend in plan.without:
            continue
        with notes.leave_out_on_error(backend):
            contenders += [
                GpuContender(
                    name=backend,
                    precision=candidate.artifact.precision.value,
                    module=ENGINE_WORKER,
                    arguments=(
                        "time", bundle, backend, candidate.artifact.name, str(batch), plan.labelled
                    ),
                )
                for candidate in best_candidates(plan.bundle, backend)
            ]  # fmt: skip
    with notes.leave_out_on_error("pytorch"):
        pytorch_worker.check_pytorch("cuda")
        contenders += [
            GpuContender(
                name=mode.name,
                precision=mode.precision,
                module="benchmarks.gpu.pytorch_worker",
                arguments=(bundle, plan.weights, key, str(batch), plan.labelled),
            )
            for key, mode in MODES.items()
            if mode.name not in plan.without and (plan.bf16 or mode.precision != "bf16")
        ]
    return contenders


def time_in_turns(
    contenders: Sequence[GpuContender], batch: int, seconds: float, notes: Notes
) -> list[TimedContender]:
    """Time the contenders in turns; leave out those that do not start or that end early."""
    running: list[tuple[GpuContender, Contender]] = []
    with ExitStack() as stack:
        for contender in contenders:
            label = f"{contender.name} {contender.precision} at batch {batch}"
            arguments = list(contender.arguments)
            with notes.leave_out_on_error(label):
                child = Contender.start(label, contender.module, arguments, available_cores())
                stack.callback(child.stop)
                running.append((contender, child))
        while running:
            try:
                times = interleave([child for _, child in running], seconds, progress_bar)
            except BackendError as error:
                ended = [child for _, child in running if child.process.poll() is not None]
                if not ended:
                    raise
                for child in ended:
                    notes.add(child.name, str(error))
                running = [pair for pair in running if pair[1] not in ended]
                continue
            return [
                TimedContender(
                    name=contender.name,
                    precision=contender.precision,
                    facts=child.facts,
                    rounds=rounds,
                )
                for (contender, child), rounds in zip(running, times)
            ]
    return []
