"""The advice of a report: the file to deploy, or the commands that find it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from shlex import quote

from resdeploy.bundle.manifest import ExportWarning, graph_name
from resdeploy.bundle.quality import TRAIN_AGAIN, shows_no_learning
from resdeploy.report.latency import possibly_fastest
from resdeploy.result_files.benchmark import Benchmark, Timing
from resdeploy.result_files.comparison import Comparison
from resdeploy.result_files.verification import ArtifactResult, Verification
from resdeploy.statistics import Verdict
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
) -> Recommendation:
    """Return the recommendation of a report about these results and the `warnings` on its page.

    It is empty for several comparisons or verifications, which may be about different machines.
    The commands are about the only bundle; with several bundles, they name a placeholder.
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
    return _of_verification(verifications[0], benchmarks, name, (verify, bench, report))


def _of_verification(
    verification: Verification, benchmarks: Sequence[Benchmark], name: str, again: tuple[str, ...]
) -> Recommendation:
    """Return the recommendation after a verification with labels, of the bundle called `name`.

    `again` are the commands that verify, time and report.
    """
    usable = _usable(verification.results, GOOD)
    possible = _usable(verification.results, (*GOOD, Verdict.INCONCLUSIVE))
    if any(line.backend == OPENVINO for line in possible):
        again = tuple(line.replace(" --output", f" --also {OPENVINO} --output") for line in again)
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
    if len(usable) == 1:
        ((pair, line),) = pairs.items()
        if doubt:
            return Recommendation(
                f"Deploy only {pair} for now: {doubt}. The first command serves it, the second "
                f"verifies with more images, and {NEW_PAGE}",
                (_serve(name, line), *again),
            )
        return Recommendation(
            f"Deploy {pair}: no other file for this machine passed the verification:",
            (_serve(name, line),),
        )
    rest = f"; {doubt}" if doubt else ""
    matching = [result for result in benchmarks if _same_bundle(result, verification)]
    timings = matching[0].results if matching else ()
    measured = [timing for timing in timings if _pair(timing) in pairs]
    untimed = [pair for pair in pairs if pair not in map(_pair, measured)]
    if not measured:
        return Recommendation(
            f"Deploy one of these, which passed the verification: {joined(untimed)}{rest}. These "
            f"commands time them; {NEW_PAGE}",
            again[1:],
        )
    if untimed:
        return Recommendation(
            f"Before you deploy, measure also the latency of {joined(untimed)}, which passed the "
            f"verification{rest}; {NEW_PAGE}",
            again[1:],
        )
    fastest = possibly_fastest(measured)
    best = min((pairs[_pair(timing)] for timing in fastest), key=_place)
    reason = "the fastest" if len(fastest) == 1 else "not measurably slower than any other"
    return Recommendation(
        f"Deploy {_pair(best)}: of the files for this machine that passed the verification, it is "
        f"{reason}{rest}:",
        (_serve(name, best),),
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
