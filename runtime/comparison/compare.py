"""`resdeploy compare`: is the second as accurate and as fast as the first?"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from resdeploy.bundle.bundle import Bundle, open_bundle
from resdeploy.bundle.calibration_record import read_recipe_record
from resdeploy.bundle.manifest import Encoding, Precision
from resdeploy.errors import BundleError, DocumentError
from resdeploy.progress import Progress, silent
from resdeploy.results.benchmark import SCHEMA as BENCHMARK_SCHEMA
from resdeploy.results.benchmark import BenchmarkDocument
from resdeploy.results.comparison import Comparison, LayerChange
from resdeploy.results.files import read_results
from resdeploy.results.provenance import here
from resdeploy.runtime.backends.base import AUTO
from resdeploy.runtime.backends.registry import Candidate, candidates
from resdeploy.runtime.comparison.accuracy import compare_answers
from resdeploy.runtime.comparison.benchmarks import compare_benchmarks
from resdeploy.runtime.comparison.latency import compare_latencies
from resdeploy.statistics import Verdict, worst


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareConfig:
    """What is allowed, and how it is found out."""

    data: Path | None = None
    """Labelled folder; None: the golden images of the first bundle."""
    max_drop: float = 0.2
    """Points of accuracy."""
    max_slowdown: float = 5.0
    """Percent of time."""
    precision: str = AUTO
    backend: str = AUTO
    batch: int = 1
    threads: int | None = None
    seconds: float = 60.0
    """For the latency of each artifact of two bundles; 0 to leave it out."""


def compare(
    first: str, second: str, config: CompareConfig, *, progress: Progress = silent
) -> Comparison:
    """Compare two bundles, which are run here, or two files of benchmarks.

    Raises:
        BackendError: nothing that was asked for can run here.
        BundleError, DataError, DocumentError: what was named cannot be used.
    """
    folders = [Path(name).is_dir() for name in (first, second)]
    if all(folders):
        bundles = open_bundle(Path(first)), open_bundle(Path(second))
        return compare_bundles(*bundles, config, progress=progress)
    if any(folders):
        raise DocumentError(
            f"{first} and {second} are not of one kind", "name two bundles, or two benchmark files"
        )
    if config.data is not None:
        raise DocumentError("--data concerns bundles, not benchmarks", "leave it out")
    benchmarks = [
        read_results(name, {BENCHMARK_SCHEMA: BenchmarkDocument}) for name in (first, second)
    ]
    found = compare_benchmarks(benchmarks[0], benchmarks[1], config.max_slowdown)
    verdicts = [line.verdict for line in found.lines]
    verdicts += [Verdict.INCONCLUSIVE] if found.missing else []
    return Comparison(
        # Times of two machines say nothing of either version.
        verdict=Verdict.INCONCLUSIVE if found.notices else worst(verdicts),
        first=first,
        second=second,
        max_drop=config.max_drop,
        max_slowdown=config.max_slowdown,
        accuracy=(),
        latency=found.lines,
        layers=(),
        missing=found.missing,
        added=found.added,
        notices=found.notices,
        environment=here(),
    )


def compare_bundles(
    first: Bundle, second: Bundle, config: CompareConfig, *, progress: Progress = silent
) -> Comparison:
    """Run both here: on the same images, and in turns on the same clock.

    What the second lacks fails: whoever deploys it would miss it.

    Raises:
        BackendError, BundleError, DataError: see `compare`.
    """
    pairs = shared_candidates(first, second, config.backend, config.precision)
    names = [{a.name for a in bundle.manifest.artifacts} for bundle in (first, second)]
    accuracy = compare_answers(
        first, second, pairs,
        data=config.data, max_drop=config.max_drop, threads=config.threads, progress=progress,
    )  # fmt: skip
    latency = compare_latencies(
        first, second, fastest_pairs(pairs), batch=config.batch, threads=config.threads,
        seconds=config.seconds, max_slowdown=config.max_slowdown, progress=progress,
    )  # fmt: skip
    missing = sorted(names[0] - names[1])
    lost = [Verdict.FAIL] if missing else []
    verdicts = [line.verdict for line in accuracy] + [line.verdict for line in latency]
    return Comparison(
        verdict=worst(verdicts + lost),
        first=str(first.path),
        second=str(second.path),
        max_drop=config.max_drop,
        max_slowdown=config.max_slowdown,
        accuracy=accuracy,
        latency=latency,
        layers=layer_changes(first, second, names[0] & names[1]),
        missing=tuple(missing),
        added=tuple(sorted(names[1] - names[0])),
        notices=(),
        environment=here(),
    )


def shared_candidates(
    first: Bundle, second: Bundle, backend: str, precision: str
) -> list[tuple[Candidate, Candidate]]:
    """Of each artifact that both have, on the fastest engine that runs it here.

    Raises:
        BackendError: nothing that was asked for can run here, or both have.
    """
    there = {(c.engine.name, c.artifact.name): c for c in candidates(second, backend, precision)}
    pairs: dict[str, tuple[Candidate, Candidate]] = {}
    for candidate in candidates(first, backend, precision):
        name = candidate.artifact.name
        if other := there.get((candidate.engine.name, name)):
            pairs.setdefault(name, (candidate, other))
    if not pairs:
        raise BundleError(
            f"{first.path} and {second.path} have no graph in common that runs here",
            "export both with the same precisions",
        )
    return list(pairs.values())


def fastest_pairs(
    pairs: Iterable[tuple[Candidate, Candidate]],
) -> list[tuple[Candidate, Candidate]]:
    """Of each engine and precision the first: no CPU need be timed with TensorRT's INT8."""
    best: dict[tuple[str, Precision], tuple[Candidate, Candidate]] = {}
    for pair in pairs:
        best.setdefault((pair[0].engine.name, pair[0].artifact.precision), pair)
    return list(best.values())


def layer_changes(first: Bundle, second: Bundle, names: Collection[str]) -> tuple[LayerChange, ...]:
    """Of each INT8 graph that both have: what went back to float, and what came from there."""
    changes = []
    for artifact in first.manifest.artifacts:
        if artifact.encoding is Encoding.FLOAT or artifact.name not in names:
            continue
        old, new = (read_recipe_record(bundle, artifact.encoding) for bundle in (first, second))
        changes.append(
            LayerChange(
                encoding=artifact.encoding,
                calibrators=(old.calibrator, new.calibrator),
                to_float=tuple(sorted({*new.in_float} - {*old.in_float})),
                to_int8=tuple(sorted({*old.in_float} - {*new.in_float})),
            )
        )
    return tuple(change for change in changes if _differs(change))


def _differs(change: LayerChange) -> bool:
    return len(set(change.calibrators)) > 1 or bool(change.to_float or change.to_int8)
