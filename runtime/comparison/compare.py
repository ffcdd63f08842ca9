"""The comparison that `resdeploy compare` makes of two bundles or two files of benchmarks."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path

from resdeploy.bundle.bundle import Bundle, open_bundle
from resdeploy.bundle.calibration_record import read_recipe_record
from resdeploy.bundle.manifest import Encoding, ExportWarning, Manifest, Precision
from resdeploy.bundle.quality import named_warnings
from resdeploy.errors import BundleError, DataError, DocumentError
from resdeploy.images.class_folders import LabelledImages, read_validation
from resdeploy.progress import Progress, silent
from resdeploy.result_files.benchmark import SCHEMA as BENCHMARK_SCHEMA
from resdeploy.result_files.benchmark import Benchmark
from resdeploy.result_files.comparison import Comparison, ExportChange, LayerChange
from resdeploy.result_files.provenance import Environment, shown_path, without_folders
from resdeploy.result_files.reader import read_results
from resdeploy.runtime.backends.base import AUTO
from resdeploy.runtime.backends.registry import Candidate, candidates
from resdeploy.runtime.comparison.accuracy import compare_accuracies
from resdeploy.runtime.comparison.benchmarks import compare_benchmarks
from resdeploy.runtime.comparison.latency import compare_latencies
from resdeploy.statistics import Verdict, worst_verdict
from resdeploy.tables import NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareConfig:
    """The limits and settings of a comparison."""

    data: Path | None = None
    """A folder of labelled images; None for the golden images of the first bundle."""
    max_drop: float = 0.2
    """The largest accuracy drop that passes, in percentage points."""
    max_slowdown: float = 5.0
    """The largest slowdown that passes, in percent."""
    precision: str = AUTO
    backend: str = AUTO
    batch: int = 1
    threads: int | None = None
    seconds: float = 60.0
    """The time limit for the latency of each artifact; 0 to skip the latency."""


def compare(
    first: str, second: str, config: CompareConfig, *, progress: Progress = silent
) -> Comparison:
    """Compare two bundles by running them here, or two files of benchmarks.

    Raises:
        BackendError: No requested backend can run here.
        BundleError, DataError, DocumentError: A bundle, folder or file cannot be used.
    """
    folders = [Path(name).is_dir() for name in (first, second)]
    if all(folders):
        bundles = open_bundle(Path(first)), open_bundle(Path(second))
        return compare_bundles(*bundles, config, progress=progress)
    if any(folders):
        raise DocumentError(
            f"{first} and {second} are not of the same kind",
            "name two bundles or two benchmark files",
        )
    if config.data is not None:
        raise DocumentError("--data applies to bundles, not to benchmarks", "leave --data out")
    benchmarks = [read_results(name, {BENCHMARK_SCHEMA: Benchmark}) for name in (first, second)]
    changes = compare_benchmarks(benchmarks[0], benchmarks[1], config.max_slowdown)
    verdicts = [line.verdict for line in changes.lines]
    verdicts += [Verdict.INCONCLUSIVE] if changes.missing else []
    names = _distinct(without_folders(first), without_folders(second))
    return Comparison(
        # A difference between two machines is no evidence for either version.
        verdict=Verdict.INCONCLUSIVE if changes.notices else worst_verdict(verdicts),
        first=names[0],
        second=names[1],
        max_drop=config.max_drop,
        max_slowdown=config.max_slowdown,
        latency=changes.lines,
        missing=changes.missing,
        added=changes.added,
        notices=changes.notices,
        environment=Environment.collect(),
    )


def _distinct(first: str, second: str) -> tuple[str, str]:
    """Return names that differ, as those of `monday/r34.bundle` and `today/r34.bundle` do not."""
    return (f"{first} (first)", f"{second} (second)") if first == second else (first, second)


def compare_bundles(
    first: Bundle, second: Bundle, config: CompareConfig, *, progress: Progress = silent
) -> Comparison:
    """Run both bundles here: on the same images for accuracy, and in turns for latency.

    The verdict is FAIL if the second bundle lacks an artifact of the first one. Bundles with the
    same hashes pass without a measurement.

    Raises:
        BackendError, BundleError, DataError: See `compare`.
    """
    shown = _distinct(shown_path(first.path), shown_path(second.path))
    found = Comparison(
        verdict=Verdict.PASS,
        first=shown[0],
        second=shown[1],
        max_drop=config.max_drop,
        max_slowdown=config.max_slowdown,
        warnings=_warnings(first, second),
        environment=Environment.collect(),
    )
    if (reason := identity(first, second)) is not None:
        return replace(found, notices=(reason,), identical=True)
    pairs = shared_candidates(first, second, config.backend, config.precision)
    names = [{a.name for a in bundle.manifest.artifacts} for bundle in (first, second)]
    folder, notices = _read_images(first, second, config.data)
    accuracy = compare_accuracies(
        first, second, pairs,
        folder=folder, data=config.data, max_drop=config.max_drop, threads=config.threads,
        progress=progress,
    )  # fmt: skip
    latency = compare_latencies(
        first, second, fastest_pairs(pairs), batch=config.batch, threads=config.threads,
        seconds=config.seconds, max_slowdown=config.max_slowdown, progress=progress,
    )  # fmt: skip
    missing = sorted(names[0] - names[1])
    verdicts = [line.verdict for line in accuracy] + [line.verdict for line in latency]
    verdicts += [Verdict.FAIL] if missing else []
    return replace(
        found,
        verdict=worst_verdict(verdicts),
        accuracy=accuracy,
        unreadable=len(folder.files) - accuracy[0].images if folder else 0,
        passed_over=dict(folder.passed_over) if folder else {},
        latency=latency,
        layers=layer_changes(first, second, names[0] & names[1]),
        exports=export_changes(first.manifest, second.manifest),
        missing=tuple(missing),
        added=tuple(sorted(names[1] - names[0])),
        notices=notices
        + tuple(
            f"the latency of {one.artifact.name} was not measured: both files have the same sha256"
            for one, other in fastest_pairs(pairs)
            if one.artifact.sha256 == other.artifact.sha256 and config.seconds
        ),
    )


def _read_images(
    first: Bundle, second: Bundle, data: Path | None
) -> tuple[LabelledImages[Path] | None, tuple[str, ...]]:
    """Return the images in `data` that neither training has learned, and a notice if they differ.

    Raises:
        DataError: The folder cannot be used, or no image is left.
    """
    if data is None:
        return None, ()
    records = dict.fromkeys((first.held_out, second.held_out))
    if len(records) > 1:
        records.pop(None, None)  # of a network whose training held out nothing that is known
    folders = [read_validation(data, record) for record in records]
    common = set(folders[0].files).intersection(*(folder.files for folder in folders))
    if not common:
        raise DataError(
            f"each image in {data} was learned by one of the networks", "name a folder of others"
        )
    if all(len(folder.files) == len(common) for folder in folders):
        return folders[0], ()
    kept = [pair for pair in zip(folders[0].files, folders[0].labels) if pair[0] in common]
    files, labels = zip(*kept)
    notice = (
        f"the trainings held out different images; accuracy is measured on the {len(common)} that "
        "neither network is known to have learned"
    )
    return replace(folders[0], files=files, labels=labels), (notice,)


def identity(first: Bundle, second: Bundle) -> str | None:
    """Return why both bundles must give the same answers, equally fast; None if they may not.

    The graphs are read, so that a file that was changed after the export is an error.

    Raises:
        BundleError: A graph or the labels of a bundle are damaged.
    """
    bundles = (first, second)
    graphs, others = [], []
    for bundle in bundles:
        manifest = bundle.manifest
        graphs.append({artifact.file: artifact.sha256 for artifact in manifest.artifacts})
        others.append({name: record.sha256 for name, record in manifest.files.items()})
    if graphs[0] != graphs[1] or first.manifest.preprocessing != second.manifest.preprocessing:
        return None
    if first.labels() != second.labels():
        return None
    for bundle in bundles:
        for file in graphs[0]:
            bundle.read(file)
    reason = (
        f"the bundles are identical in what they answer: same sha256 of {', '.join(graphs[0])}, "
        "same labels and pre-processing; therefore nothing was run"
    )
    different = sorted(
        name for name in {*others[0], *others[1]} if others[0].get(name) != others[1].get(name)
    )
    different += [
        field.name
        for field in fields(Manifest)
        if field.name not in ("artifacts", "files")
        and getattr(first.manifest, field.name) != getattr(second.manifest, field.name)
    ]
    return reason + (f"; they differ only in {', '.join(different)}" if different else "")


def _warnings(first: Bundle, second: Bundle) -> tuple[ExportWarning, ...]:
    """Return the warnings of both bundles, each once, with the bundle's name.

    They have no hints: the other bundle may be the export that a hint asks for.
    """
    found = [
        replace(warning, hint="")
        for bundle in (first, second)
        for warning in named_warnings(shown_path(bundle.path), bundle.manifest.warnings)
    ]
    return tuple(dict.fromkeys(found))


def shared_candidates(
    first: Bundle, second: Bundle, backend: str, precision: str
) -> list[tuple[Candidate, Candidate]]:
    """Return each artifact that both bundles have, with the fastest engine that can run it here.

    Raises:
        BackendError: No requested backend can run here.
        BundleError: The bundles have no such artifact in common.
    """
    others = {(c.engine.name, c.artifact.name): c for c in candidates(second, backend, precision)}
    pairs: dict[str, tuple[Candidate, Candidate]] = {}
    for candidate in candidates(first, backend, precision):
        name = candidate.artifact.name
        if other := others.get((candidate.engine.name, name)):
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
    """Return the first pair of each engine and precision.

    Pairs of one engine are ordered by speed. On a CPU, for example, `int8-cpu` replaces `int8`.
    """
    best: dict[tuple[str, Precision], tuple[Candidate, Candidate]] = {}
    for pair in pairs:
        best.setdefault((pair[0].engine.name, pair[0].artifact.precision), pair)
    return list(best.values())


def export_changes(first: Manifest, second: Manifest) -> tuple[ExportChange, ...]:
    """Return the differences in what the exports were made of: weights and calibration images."""
    sides = [
        {
            "sha256 of the weights": str(manifest.model.get("source_sha256", NONE))[:12],
            "calibration images": f"{(manifest.calibration or {}).get('images', 0):,}",
        }
        for manifest in (first, second)
    ]
    return tuple(
        ExportChange(name, before, sides[1][name])
        for name, before in sides[0].items()
        if before != sides[1][name]
    )


def layer_changes(first: Bundle, second: Bundle, names: Collection[str]) -> tuple[LayerChange, ...]:
    """Return the INT8 graphs whose calibrator or float layers differ."""
    changes = []
    for artifact in first.manifest.artifacts:
        if artifact.encoding is Encoding.FLOAT or artifact.name not in names:
            continue
        old, new = (read_recipe_record(bundle, artifact.encoding) for bundle in (first, second))
        change = LayerChange(
            encoding=artifact.encoding,
            calibrators=(old.calibrator, new.calibrator),
            to_float=tuple(sorted({*new.in_float} - {*old.in_float})),
            to_int8=tuple(sorted({*old.in_float} - {*new.in_float})),
        )
        if old.calibrator != new.calibrator or change.to_float or change.to_int8:
            changes.append(change)
    return tuple(changes)
