"""The worker processes of the GPU benchmark, as seen by their owner."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import click

from benchmarks.gpu import pytorch_worker
from benchmarks.gpu.pytorch_worker import MODES, OPTIONAL
from benchmarks.gpu.report import Missing, TimedContender
from resdeploy.bench.process import Contender
from resdeploy.bundle.bundle import Bundle
from resdeploy.errors import BackendError, ResdeployError
from resdeploy.machine.device import available_cores
from resdeploy.progress import progress_bar
from resdeploy.runtime.backends.registry import ENGINES
from resdeploy.runtime.backends.tensorrt import flavour
from resdeploy.runtime.backends.tensorrt.flavour import ARTIFACTS, Flavour
from resdeploy.runtime.bench import rounds
from resdeploy.runtime.bench.contenders import best_candidates

BACKENDS = tuple(engine.name for engine in ENGINES if not engine.on_cpu)
NAMES = (*BACKENDS, *dict.fromkeys(mode.name for mode in MODES.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuContender:
    """A contender that has not been started."""

    name: str
    precision: str
    module: str
    arguments: tuple[str, ...]


@dataclass(slots=True)
class Notes:
    """The figures that are missing, each printed once and kept for the document."""

    entries: list[Missing] = field(default_factory=list)

    def add(self, what: str, why: str) -> None:
        """Print and keep the reason why something is left out."""
        entry = Missing(what=what, why=" ".join(why.split()))
        if entry not in self.entries:
            self.entries.append(entry)
            click.echo(f"left out: {what}: {entry.why}", err=True)


def start_for_facts(name: str, module: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Start a worker process, stop it, and return the facts that it reported.

    Raises:
        BackendError: The process cannot start.
    """
    child = Contender.start(name, module, list(arguments), available_cores())
    child.stop()
    return dict(child.facts)


def build_engines(
    bundle: Bundle, batches: Sequence[int], without: Collection[str], notes: Notes
) -> list[dict[str, Any]]:
    """Build the engines of every installed TensorRT for each batch size; return their facts."""
    present = [artifact.name for artifact in bundle.manifest.artifacts]
    engines = []
    for kind in Flavour:
        if kind.value in without:
            continue
        if obstacle := flavour.check_availability(kind):
            notes.add(kind.value, obstacle.reason)
            continue
        for artifact in (name for name in ARTIFACTS if name in present):
            for batch in batches:
                arguments = [str(bundle.path), kind.value, artifact, str(batch)]
                what = f"engine of {kind.value} {artifact} for batch {batch}"
                try:
                    engines.append(start_for_facts(what, "benchmarks.gpu.build_worker", arguments))
                except ResdeployError as error:
                    notes.add(what, str(error))
    return engines


def gpu_backend_contenders(
    bundle: Bundle, batch: int, labelled: str, without: Collection[str], notes: Notes
) -> list[GpuContender]:
    """Return the best artifact of each precision for every GPU backend that runs here."""
    specs = []
    for backend in BACKENDS:
        if backend in without:
            continue
        try:
            best = best_candidates(bundle, backend)
        except BackendError as error:
            notes.add(backend, str(error).removeprefix(f"{backend} cannot run here: "))
            continue
        specs += [
            GpuContender(
                name=backend,
                precision=candidate.artifact.precision.value,
                module="benchmarks.gpu.backend_worker",
                arguments=(
                    str(bundle.path), backend, candidate.artifact.name, str(batch), labelled
                ),
            )
            for candidate in best
        ]  # fmt: skip
    return specs


def gpu_pytorch_contenders(
    bundle: Bundle,
    batch: int,
    labelled: str,
    weights: str,
    bf16: bool,
    without: Collection[str],
    notes: Notes,
) -> list[GpuContender]:
    """Return PyTorch in each requested mode."""
    if obstacle := pytorch_worker.obstacle():
        notes.add("pytorch", obstacle.reason)
        return []
    return [
        GpuContender(
            name=mode.name,
            precision=mode.precision,
            module="benchmarks.gpu.pytorch_worker",
            arguments=(str(bundle.path), weights, key, str(batch), labelled),
        )
        for key, mode in MODES.items()
        if mode.name not in without and (bf16 or key not in OPTIONAL)
    ]


def time_in_turns(
    specs: Sequence[GpuContender], batch: int, seconds: float, notes: Notes
) -> list[TimedContender]:
    """Time the contenders in turns; leave out those that do not start or that end early."""
    with _started(specs, batch, notes) as running:
        while running:
            contenders = [contender for _, contender in running]
            try:
                times = rounds.interleave(contenders, seconds, progress_bar)
            except BackendError as error:
                alive = [pair for pair in running if pair[1].process.poll() is None]
                if len(alive) == len(running):
                    raise
                for spec, _ in (pair for pair in running if pair not in alive):
                    notes.add(_label(spec, batch), str(error))
                running = alive
                continue
            return [
                TimedContender(
                    name=spec.name,
                    precision=spec.precision,
                    facts=contender.facts,
                    rounds=rounds,
                )
                for (spec, contender), rounds in zip(running, times)
            ]
    return []


@contextmanager
def _started(
    specs: Sequence[GpuContender], batch: int, notes: Notes
) -> Iterator[list[tuple[GpuContender, Contender]]]:
    running: list[tuple[GpuContender, Contender]] = []
    try:
        for spec in specs:
            label = _label(spec, batch)
            try:
                child = Contender.start(label, spec.module, list(spec.arguments), available_cores())
                running.append((spec, child))
            except ResdeployError as error:
                notes.add(label, str(error))
        yield list(running)
    finally:
        for _, child in running:
            child.stop()


def _label(spec: GpuContender, batch: int) -> str:
    return f"{spec.name} {spec.precision} at batch {batch}"
