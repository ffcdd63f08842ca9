"""The advice of a report: the file to deploy, or the commands that find it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from shlex import quote

from resdeploy.bundle.manifest import graph_name
from resdeploy.report.latency import possibly_fastest
from resdeploy.result_files.benchmark import Benchmark, Timing
from resdeploy.result_files.comparison import Comparison
from resdeploy.result_files.verification import ArtifactResult, Verification
from resdeploy.statistics import Verdict
from resdeploy.tables import joined

OPENVINO = "openvino"
CPU_BACKENDS = ("onnxruntime-cpu", OPENVINO)
CPU_GRAPHS = ("int8-cpu", "fp32")
ORDER = ("int8-cpu", "int8", "fp16", "fp32")  # in which `serve` tries them on its machine
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
    usable = _usable(good)
    if not usable:
        return Recommendation(
            "Deploy no file on this machine: none that is made for it passed the verification."
        )
    if any(line.backend == OPENVINO for line in usable):
        bench = bench.replace(" --output", f" --also {OPENVINO} --output")
    matching = [result for result in benchmarks if _same_bundle(result, verifications[0])]
    timings = matching[0].results if matching else ()
    pairs = {_pair(line): line for line in usable}
    measured = [timing for timing in timings if _pair(timing) in pairs]
    untimed = [pair for pair in pairs if pair not in map(_pair, measured)]
    if not measured:
        sentence = f"Deploy one of these, which passed the verification: {joined(untimed)}."
        return Recommendation(f"{sentence} This command finds the fastest:", (bench,))
    if untimed:
        times = "Before you deploy, measure also the latency of"
        return Recommendation(
            f"{times} {joined(untimed)}, which passed the verification:", (bench,)
        )
    fastest = possibly_fastest(measured)
    best = min(fastest, key=lambda timing: _place(pairs[_pair(timing)]))
    reason = "the fastest" if len(fastest) == 1 else "not measurably slower than any other"
    serve = f"--backend {best.contender} --precision {best.precision}"
    return Recommendation(
        f"Deploy {_pair(best)}: of the files for this machine that passed the verification, it is "
        f"{reason}:",
        (f"resdeploy serve {name} {serve}",),
    )


def _usable(good: Sequence[ArtifactResult]) -> list[ArtifactResult]:
    """Return the lines that `serve` considers on this machine: those of a GPU, if there are any.

    A CPU computes the graphs for other machines only to check them.
    """
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
