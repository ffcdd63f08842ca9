"""The advice of a report: the file to deploy, or the commands that find it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from shlex import quote

from resdeploy.bundle.manifest import ExportWarning, graph_name
from resdeploy.bundle.quality import TRAIN_AGAIN, says_deviation, shows_no_learning
from resdeploy.report.latency import rank
from resdeploy.result_files.benchmark import Benchmark, Timing
from resdeploy.result_files.comparison import Comparison
from resdeploy.result_files.verification import ArtifactResult, Verification
from resdeploy.statistics import MIN_GAIN, Verdict
from resdeploy.tables import capitalised, joined

OPENVINO = "openvino"
CPU_BACKENDS = ("onnxruntime-cpu", OPENVINO)
CPU_GRAPHS = ("int8-cpu", "fp32")
ORDER = ("int8-cpu", "int8", "fp16", "fp32")  # in which `serve` tries them on its machine
GOOD = (Verdict.PASS, Verdict.REPRODUCED)
NEW_PAGE = "the last command writes a page that names the file to deploy:"
UNVERIFIED = (
    "Before you deploy, measure the accuracy on pictures of your own. FOLDER holds them in one "
    f"folder per class; {NEW_PAGE}"
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
    warnings: Sequence[ExportWarning],
    verification_file: str = "verification.json",
) -> Recommendation:
    """Return the recommendation of a report about these results and the `warnings` on its page.

    It is empty for several comparisons or verifications, which may be about different machines.
    The commands are about the only bundle; with several bundles, they name a placeholder.
    `verification_file` holds the verification.
    """
    if comparisons:
        sentence = _replacement(comparisons[0]) if len(comparisons) == 1 else ""
        return Recommendation(sentence)
    if len(verifications) > 1:
        return Recommendation()
    verified = [result.environment.bundle for result in verifications]
    timed = [result.environment.bundle for result in benchmarks]
    known = {name for name in (*bundles, *verified, *timed) if name}
    if len(known) < 2 and shows_no_learning(warnings):  # of several bundles, others may be good
        return Recommendation(f"{capitalised(TRAIN_AGAIN)}.")
    name = quote(known.pop()) if len(known) == 1 else "BUNDLE"
    verify = f"resdeploy verify {name} --data FOLDER --json > verification.json"
    bench = f"resdeploy bench {name} --output benchmark.json"
    report = f"resdeploy report {name} verification.json benchmark.json"
    if not verifications or verifications[0].max_drop is None:
        return Recommendation(UNVERIFIED, (verify, bench, report))
    verify = verify.replace(" --json", f" --max-drop {verifications[0].max_drop:g} --json")
    again = (verify, bench, report)
    return _of_verification(
        verifications[0], benchmarks, name, again, warnings, quote(verification_file)
    )


def _of_verification(
    verification: Verification,
    benchmarks: Sequence[Benchmark],
    name: str,
    again: tuple[str, ...],
    warnings: Sequence[ExportWarning],
    file: str,
) -> Recommendation:
    """Return the recommendation after a verification with labels, of the bundle called `name`.

    `again` are the commands that verify, time and report; `file` holds the verification.
    """
    usable = _usable(verification.results, GOOD)
    possible = _usable(verification.results, (*GOOD, Verdict.INCONCLUSIVE))
    if any(line.backend == OPENVINO for line in possible):
        again = tuple(line.replace(" --output", f" --also {OPENVINO} --output") for line in again)
    timing_commands = (again[1], again[2].replace("verification.json", file))
    undecided = [_pair(line) for line in possible if line.verdict is Verdict.INCONCLUSIVE]
    images = f"{verification.images:,} labelled images"
    doubt = f"{images} do not decide about {joined(undecided)}" if undecided else ""
    if not usable and doubt:
        return Recommendation(
            f"Deploy no file on this machine yet: {doubt}. Verify with more; {NEW_PAGE}", again
        )
    if not usable:
        return Recommendation(
            "Deploy no file on this machine: none that is made for it passed the verification."
        )
    pairs = {_pair(line): line for line in usable}
    notes = {pair: _answer(line, verification.images, warnings) for pair, line in pairs.items()}
    if len(usable) == 1:
        ((pair, line),) = pairs.items()
        if doubt:
            return Recommendation(
                f"Deploy only {pair}{notes[pair]} for now: {doubt}. The first command serves it, "
                f"the second verifies with more images, and {NEW_PAGE}",
                (_serve(name, line), *again),
            )
        return Recommendation(
            f"Deploy {pair}{notes[pair]}: no other file for this machine passed the verification:",
            (_serve(name, line),),
        )
    matching = [result for result in benchmarks if _same_bundle(result, verification)]
    timings = matching[0].results if matching else ()
    measured = [timing for timing in timings if _pair(timing) in pairs]
    notes |= {
        pair: " (the reference)"
        for pair, line in pairs.items()
        if line.verdict is Verdict.REPRODUCED
    }
    untimed = [pair + notes[pair] for pair in pairs if pair not in map(_pair, measured)]
    if not measured:
        return Recommendation(
            f"Deploy one of these, which passed the verification: {joined(untimed)}. These "
            f"commands time them; {NEW_PAGE}",
            timing_commands,
        )
    if untimed:
        return Recommendation(
            f"Before you deploy, measure also the latency of {joined(untimed)}, which passed the "
            f"verification; {NEW_PAGE}",
            timing_commands,
        )
    pair, reason = _fastest(measured, pairs, matching[0].environment.runs)
    return Recommendation(
        f"Deploy {pair}{notes[pair]}: of the files for this machine that passed the verification, "
        f"{reason}:",
        (_serve(name, pairs[pair]),),
    )


def _fastest(
    timings: Sequence[Timing], pairs: Mapping[str, ArtifactResult], runs: Sequence[int]
) -> tuple[str, str]:
    """Return the file and backend to deploy, and a clause with the reason.

    As `serve` does, it takes the first in the usual order of those whose medians hardly differ.
    """
    fastest, rivals = rank(timings, runs)
    similar = [timing for timing in timings if timing.p50_ms < MIN_GAIN * fastest.p50_ms]
    best = _pair(min(similar, key=lambda timing: _place(pairs[_pair(timing)])))
    if best != _pair(fastest):
        return best, f"none is more than {100 * MIN_GAIN - 100:.0f} % faster"
    if not rivals:
        return best, "it is the fastest"
    others = joined([f"{_pair(timing)} ({timing.p50_ms:.2f} ms)" for timing in rivals])
    return best, (
        f"it has the smallest latency ({fastest.p50_ms:.2f} ms), but the measurement does not "
        f"decide whether {others} {'is' if len(rivals) == 1 else 'are'} slower"
    )


def _answer(line: ArtifactResult, images: int, warnings: Sequence[ExportWarning]) -> str:
    """Return a remark if a warning stands about a graph that passed with this backend.

    It stands because the graph did not pass with all backends.
    """
    if not says_deviation(warnings, graph_name(line.precision, line.encoding)):
        return ""
    return (
        f" (with this backend, {images:,} labelled images answer the warning about it, because "
        "they measure the accuracy itself)"
    )


def _serve(name: str, line: ArtifactResult) -> str:
    return f"resdeploy serve {name} --backend {line.backend} --precision {line.precision.value}"


def _usable(results: Sequence[ArtifactResult], verdicts: Sequence[Verdict]) -> list[ArtifactResult]:
    """Return the lines with these verdicts that are for this machine: a GPU's, if there are any.

    `serve` considers the same ones. A CPU computes the graphs for other machines only to check
    them.
    """
    good = [line for line in results if line.verdict in verdicts]
    gpu = [line for line in good if line.backend not in CPU_BACKENDS]
    cpu = [line for line in good if graph_name(line.precision, line.encoding) in CPU_GRAPHS]
    return gpu or cpu


def _place(line: ArtifactResult) -> tuple[int, bool]:
    """Return the place of a line among equally fast ones; OpenVINO takes longer to start."""
    graph = graph_name(line.precision, line.encoding)
    return [*ORDER, graph].index(graph), line.backend == OPENVINO


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


def _pair(line: ArtifactResult | Timing) -> str:
    backend = line.contender if isinstance(line, Timing) else line.backend
    return f"{graph_name(line.precision, line.encoding)}.onnx with {backend}"
