"""The owner's side of the GPU benchmark: children that are asked, and children that take turns."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import click

from benchmarks.gpu import pytorch_worker as gpu_pytorch
from benchmarks.gpu.pytorch_worker import MODES, OPTIONAL
from benchmarks.gpu.report import Missing, Timed
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
class Entry:
    """A contender before it is started."""

    name: str
    precision: str
    module: str
    arguments: tuple[str, ...]


@dataclass(slots=True)
class Notes:
    """What is missing: told at once, once, and kept for the document."""

    entries: list[Missing] = field(default_factory=list)

    def add(self, what: str, why: str) -> None:
        """Note that `what` is left out."""
        entry = Missing(what=what, why=" ".join(why.split()))
        if entry not in self.entries:
            self.entries.append(entry)
            click.echo(f"left out: {what}: {entry.why}", err=True)


def ask(name: str, module: str, arguments: Sequence[str]) -> dict[str, Any]:
    """What a child says of itself when it is ready.

    Raises:
        BackendError: it could not start.
    """
    child = Contender.start(name, module, list(arguments), available_cores())
    child.stop()
    return dict(child.facts)


def build_engines(
    bundle: Bundle, batches: Sequence[int], without: Collection[str], notes: Notes
) -> list[dict[str, Any]]:
    """Every engine of every TensorRT that is here, for exactly each batch, into the cache."""
    there = [artifact.name for artifact in bundle.manifest.artifacts]
    engines = []
    for kind in Flavour:
        if kind.value in without:
            continue
        if none := flavour.check_availability(kind):
            notes.add(kind.value, none.reason)
            continue
        for artifact in (name for name in ARTIFACTS if name in there):
            for batch in batches:
                arguments = [str(bundle.path), kind.value, artifact, str(batch)]
                what = f"engine of {kind.value} {artifact} for batch {batch}"
                try:
                    engines.append(ask(what, "benchmarks.gpu.build_worker", arguments))
                except ResdeployError as error:
                    notes.add(what, str(error))
    return engines


def backend_entries(
    bundle: Bundle, batch: int, labelled: str, without: Collection[str], notes: Notes
) -> list[Entry]:
    """The best artifact of each precision on every backend for GPUs that runs here."""
    entries = []
    for backend in BACKENDS:
        if backend in without:
            continue
        try:
            found = best_candidates(bundle, backend)
        except BackendError as error:
            notes.add(backend, str(error).removeprefix(f"{backend} cannot run here: "))
            continue
        entries += [
            Entry(
                name=backend,
                precision=candidate.artifact.precision.value,
                module="benchmarks.gpu.backend_worker",
                arguments=(
                    str(bundle.path), backend, candidate.artifact.name, str(batch), labelled
                ),
            )
            for candidate in found
        ]  # fmt: skip
    return entries


def pytorch_entries(
    bundle: Bundle,
    batch: int,
    labelled: str,
    weights: str,
    bf16: bool,
    without: Collection[str],
    notes: Notes,
) -> list[Entry]:
    """PyTorch in every mode that was asked for."""
    if none := gpu_pytorch.obstacle():
        notes.add("pytorch", none.reason)
        return []
    return [
        Entry(
            name=mode.name,
            precision=mode.precision,
            module="benchmarks.gpu.pytorch_worker",
            arguments=(str(bundle.path), weights, key, str(batch), labelled),
        )
        for key, mode in MODES.items()
        if mode.name not in without and (bf16 or key not in OPTIONAL)
    ]


def time_in_turns(
    entries: Sequence[Entry], batch: int, seconds: float, notes: Notes
) -> list[Timed]:
    """Start all, let them take turns; who does not start, or ends early, is left out."""
    with _started(entries, batch, notes) as running:
        while running:
            contenders = [contender for _, contender in running]
            try:
                times = rounds.interleave(contenders, seconds, progress_bar)
            except BackendError as error:
                alive = [pair for pair in running if pair[1].process.poll() is None]
                if len(alive) == len(running):
                    raise
                for entry, _ in (pair for pair in running if pair not in alive):
                    notes.add(_label(entry, batch), str(error))
                running = alive
                continue
            return [
                Timed(
                    name=entry.name,
                    precision=entry.precision,
                    facts=contender.facts,
                    rounds=rounds,
                )
                for (entry, contender), rounds in zip(running, times)
            ]
    return []


@contextmanager
def _started(
    entries: Sequence[Entry], batch: int, notes: Notes
) -> Iterator[list[tuple[Entry, Contender]]]:
    running: list[tuple[Entry, Contender]] = []
    try:
        for entry in entries:
            label = _label(entry, batch)
            try:
                child = Contender.start(
                    label, entry.module, list(entry.arguments), available_cores()
                )
                running.append((entry, child))
            except ResdeployError as error:
                notes.add(label, str(error))
        yield list(running)
    finally:
        for _, child in running:
            child.stop()


def _label(entry: Entry, batch: int) -> str:
    return f"{entry.name} {entry.precision} at batch {batch}"
