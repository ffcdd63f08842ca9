"""The advice of a report: the file to deploy, or the commands that find it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from shlex import quote

from resdeploy.bundle.manifest import graph_name
from resdeploy.result_files.benchmark import Benchmark, Timing
from resdeploy.result_files.comparison import Comparison
from resdeploy.result_files.verification import ArtifactResult, Verification
from resdeploy.statistics import Verdict
from resdeploy.tables import joined

GOOD = (Verdict.PASS, Verdict.REPRODUCED)
UNVERIFIED = (
    "Before you deploy, measure the accuracy on pictures of your own. FOLDER holds them in one "
    "folder per class. The last command writes a page that names the file to deploy:"
)


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A sentence, and the commands that it refers to."""

    sentence: str = ""
    commands: tuple[str, ...] = ()


def recommendation(
    bundles: Sequence[str],
    comparisons: Sequence[Comparison],
    verifications: Sequence[Verification],
    benchmarks: Sequence[Benchmark],
) -> Recommendation:
    """Return the recommendation of a report about these results.

    It is empty for several comparisons or verifications, which may be about different machines.
    The commands are about the only bundle; there are none if several are named in `bundles`.
    """
    if comparisons:
        sentence = _replacement(comparisons[0]) if len(comparisons) == 1 else ""
        return Recommendation(sentence)
    if len(verifications) > 1:
        return Recommendation()
    verified = [result.environment.bundle for result in verifications]
    timed = [result.environment.bundle for result in benchmarks]
    known = {name for name in (*bundles, *verified, *timed) if name}
    name = quote(known.pop()) if len(known) == 1 else "BUNDLE"
    bench = f"resdeploy bench {name} --output benchmark.json"
    report = f"resdeploy report {name} verification.json benchmark.json"
    if not verifications or verifications[0].max_drop is None:
        verify = f"resdeploy verify {name} --data FOLDER --json > verification.json"
        return Recommendation(UNVERIFIED, (verify, bench, report))
    good = [line for line in verifications[0].results if line.verdict in GOOD]
    if not good:
        return Recommendation("Deploy no file of this bundle: none passed the verification.")
    matching = [result for result in benchmarks if _same_bundle(result, verifications[0])]
    fastest = _fastest(good, matching[0]) if matching else ""
    if fastest:
        return Recommendation(fastest)
    files = ", ".join(dict.fromkeys(map(_file, good)))
    return Recommendation(
        f"Deploy one of the files that passed: {files}. This command finds the fastest:", (bench,)
    )


def _replacement(result: Comparison) -> str:
    """Return the decision; the summary of the page has its reasons."""
    first, second = result.first, result.second
    deployable = result.accuracy or result.identical  # two benchmarks are not
    if result.verdict in GOOD:
        return f"{second} {'can replace' if deployable else 'is within the limit of'} {first}."
    keep = f"Keep {first}: " if deployable else ""
    if result.verdict is Verdict.FAIL:
        return f"{keep}{second} failed the comparison."
    article = "the" if keep else "The"
    return f"{keep}{article} measurements do not show that {second} is within the limits."


def _same_bundle(result: Benchmark, verification: Verification) -> bool:
    first, second = result.environment, verification.environment
    facts = ("bundle", "model", "image_size")
    same = all(getattr(first, fact) == getattr(second, fact) for fact in facts)
    return same and first.device.name == second.device.name


def _fastest(good: Sequence[ArtifactResult], benchmark: Benchmark) -> str:
    """Return which file to deploy, or nothing if none of the `good` ones was timed."""
    allowed = {(line.backend, _file(line)) for line in good}
    timings = [
        timing for timing in benchmark.results if (timing.contender, _file(timing)) in allowed
    ]
    if not timings:
        return ""
    best = max(timings, key=lambda timing: timing.images_per_second)
    untimed = sorted({backend for backend, _ in allowed} - {timing.contender for timing in timings})
    timed, rest = "", ""
    if untimed:
        timed = " and were timed"
        rest = f"; {joined(untimed)} passed, too, and {'were' if untimed[1:] else 'was'} not timed"
    return (
        f"Deploy {_file(best)} with the backend {best.contender}: of the files that passed the "
        f"verification{timed}, it is the fastest on this machine{rest}."
    )


def _file(line: ArtifactResult | Timing) -> str:
    return f"{graph_name(line.precision, line.encoding)}.onnx"
