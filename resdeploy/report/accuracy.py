"""Report section of a verification: accuracy with intervals, agreement, confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence

from resdeploy.bundle.manifest import Encoding, graph_name, with_use
from resdeploy.images.formats import unread_lines
from resdeploy.pages.blocks import Block, Figure, Section, Table, Text
from resdeploy.pages.svg import intervals
from resdeploy.report.confusion import confusion_blocks
from resdeploy.report.graphs import SQNR_TEXT, USES
from resdeploy.report.recommendation import CPU_BACKENDS, CPU_GRAPHS
from resdeploy.result_files.verification import ArtifactResult, Rule, Verification
from resdeploy.statistics import MAX_IMAGES, Verdict, wilson_interval
from resdeploy.tables import DROP, NONE, capitalised, joined, percentage, plural, signed


def golden_cell(line: ArtifactResult) -> str:
    """Return the figure of the golden check with its limit, and the rule if it is stricter."""
    rule = ", bit-exact" if line.rule is Rule.BIT_EXACT else ""
    return f"{line.golden_sqnr_db:.1f} dB, limit {line.golden_limit_db:.1f} dB{rule}"


def agreement_cells(line: ArtifactResult) -> tuple[str, str]:
    """Return agreement and SQNR on labelled images, or twice `-` for the baseline itself."""
    if line.drop_lower95 == line.drop_upper95 == 0:  # its figures are those of the golden images
        return NONE, NONE
    return percentage(line.agreement, 2), f"{line.sqnr_db:.1f} dB"


def decision_sentence(result: Verification) -> str:
    """Return how many labelled images decide about the accuracy drop, without a full stop."""
    # With labels, only the baseline of the drop is merely reproduced.
    judged = [line for line in result.results if line.verdict is not Verdict.REPRODUCED]
    needed = [
        (MAX_IMAGES + 1 if line.images_to_decide is None else line.images_to_decide, line)
        for line in judged or result.results
    ]
    counts = {(count, _with_use(line)) for count, line in needed}
    graphs = [graph for _, graph in counts]

    def name(line: ArtifactResult) -> str:  # the backend, too, if those of a graph differ
        graph = _with_use(line)
        return f"{graph} on {line.backend}" if graphs.count(graph) > 1 else graph

    most = max(count for count, _ in needed)
    slowest = [line for count, line in needed if count == most]
    # Without labels, FP32 is compared with nothing but itself. A limit of all graphs names none.
    is_general = not judged or (len(needed) > 1 and len(slowest) == len(needed))
    of_graph = "" if is_general else f" of {joined([*dict.fromkeys(map(name, slowest))])}"
    begin = "about" if most <= MAX_IMAGES else "not even"
    images = plural(min(most, MAX_IMAGES), "labelled image")
    limit = plural(result.decided_drop, "point")
    fewer = result.max_drop is not None and most < result.images
    verb = "would have been enough to decide" if fewer else "decide"
    sentence = f"{begin} {images} {verb} whether the drop{of_graph} is at most {limit}"
    if result.max_drop is None:
        return (
            f"accuracy is not judged: by a rough estimate from the export, {sentence}; "
            "--data FOLDER gives a better one"
        )
    drops = {signed(line.drop or 0.0, 2) for line in slowest}
    if len(drops) == 1:
        drop = drops.pop()
        given = "there is no drop, as on these"
        if drop != signed(0.0, 2):
            given = f"{'the drop is' if fewer else 'it stays at'} {drop} points, as on these"
    else:
        given = f"the drops {'are' if fewer else 'stay'} as on these"
    others: dict[int, dict[str, None]] = {}
    for count, line in needed:
        if count < most and line.verdict is Verdict.INCONCLUSIVE:
            others.setdefault(count, {})[name(line)] = None
    more = "".join(f"; about {n:,} decide about {joined([*names])}" for n, names in others.items())
    return f"{sentence}, if {given}{more}"


def answered_lines(result: Verification) -> list[str]:
    """Return a line for each warning of the export that the labelled images answer."""
    return [
        f"the accuracy on these images settles a warning of the export: {warning.message}"
        for warning in result.answered
    ]


def verification_summary(result: Verification) -> str:
    """Return one sentence with the outcome of a verification."""
    failed, undecided = (
        _by_backend([line for line in result.results if line.verdict is found])
        for found in (Verdict.FAIL, Verdict.INCONCLUSIVE)
    )
    images = f"{result.images:,} labelled images"
    if result.max_drop is None:
        images = result.golden.described
    if failed:
        rest = f"; they do not decide about {undecided}" if undecided else ""
        return f"Verification failed on {images}: {failed}{rest}."
    if undecided:
        return f"{capitalised(images)} do not decide about {undecided}."
    if result.max_drop is None:
        return (
            f"This machine computes what the export computed ({images}). That says nothing about "
            f"accuracy: {decision_sentence(result).partition(': ')[2]}."
        )
    bound = max(line.drop_upper95 or 0.0 for line in result.results)
    limit = f"limit {plural(result.max_drop, 'point')}"
    if round(bound, 2) <= 0:
        return f"No graph is less accurate than FP32 (95 % confidence, {images}); {limit}."
    return (
        f"No graph is more than {bound:.2f} points less accurate than FP32 (95 % confidence, "
        f"{images}); {limit}."
    )


def _by_backend(lines: Sequence[ArtifactResult]) -> str:
    """Return the graphs of each backend in words; empty without lines."""
    graphs: dict[str, list[str]] = {}
    for line in lines:
        graphs.setdefault(line.backend, []).append(_graph(line))
    found = [f"{joined(names)} with {backend}" for backend, names in graphs.items()]
    return joined(found) if found else ""


def verification_section(result: Verification) -> Section:
    """Return tables of a verification; with labels also the drops and the confusion matrix."""
    if result.max_drop is None:
        return Section(title="Agreement", blocks=(_golden_check(result),))
    notes = [
        f"{decision_sentence(result)}.",
        "if the training chose its epoch on these images, their top-1 accuracy may be "
        "overestimated.",
    ]
    if result.used_before:
        notes.append(
            f"the export chose INT8 ranges or layers on {result.used_before:,} of the images, "
            "so their INT8 accuracy may be overestimated, too."
        )
    checked = [_graph(line) for line in result.results if line.backend in CPU_BACKENDS]
    foreign = [graph for graph in dict.fromkeys(checked) if graph not in CPU_GRAPHS]
    if foreign:
        uses = joined([f"{graph} for {USES[graph]}" for graph in foreign])
        notes.append(f"made for other machines, and only checked on this CPU: {uses}.")
    unread = unread_lines(result.unreadable, result.passed_over)
    notes += [f"{line}." for line in unread]
    tables = (_accuracy(result), _drops(result), _agreement(result), _golden_check(result))
    texts = (Text(text=capitalised(note)) for note in notes)
    blocks = (*tables, *texts, *_confusion(result))
    return Section(title="Accuracy", blocks=blocks)


def _accuracy(result: Verification) -> Table:
    rows = []
    for line in result.results:
        assert line.top1 is not None
        low, high = wilson_interval(round(line.top1 * result.images / 100), result.images)
        rows.append(
            (
                _name(line),
                line.verdict.value,
                signed(line.drop or 0.0, 2),
                signed(line.drop_upper95 or 0.0, 2),
                percentage(line.top1, 2),
                f"{low:.2f} to {high:.2f}",
            )
        )
    return Table(
        caption=f"Top-1 accuracy on {result.images:,} labelled images. A graph passes if its "
        f"accuracy is at most {plural(result.max_drop or 0.0, 'point')} below that of FP32, with "
        "95 % confidence; FP32 itself is reproduced if this machine computes what the export "
        "computed. Drop: "
        "accuracy of FP32 less that of the graph, in percentage points. "
        "95 % bound: the true drop is not larger, with 95 % confidence. Top-1: share of the images "
        "whose most likely class is the label, with its 95 % confidence interval.",
        head=("graph on backend", "verdict", DROP, "95 % bound", "top-1", "95 % interval"),
        rows=tuple(rows),
    )


def _drops(result: Verification) -> Figure:
    assert result.max_drop is not None
    rows = []
    for line in result.results:
        low, drop, high = line.drop_lower95 or 0.0, line.drop or 0.0, line.drop_upper95 or 0.0
        rows.append((_name(line), low, drop, high))
    return Figure(
        svg=intervals(
            rows,
            axis="drop of top-1 accuracy, in points",
            description="Drop of top-1 accuracy against FP32, in points.",
            marks=(0.0, result.max_drop),
        ),
        caption="Drop of top-1 accuracy against FP32, and its bounds. The true drop is not smaller "
        "than the left end of a line, nor larger than its right end, with 95 % confidence each.",
        legend=(("mark0", "no drop"), ("mark1", f"limit: {plural(result.max_drop, 'point')}")),
    )


def _agreement(result: Verification) -> Table:
    rows = tuple((_name(line), *agreement_cells(line)) for line in result.results)
    return Table(
        caption=f"Agreement with FP32 on {result.images:,} labelled images. Agreement: share of "
        f"the images with the same predicted class. {SQNR_TEXT} The median is shown.",
        head=("graph on backend", "agreement", "SQNR"),
        rows=rows,
    )


def _golden_check(result: Verification) -> Table:
    """Return the check of the arithmetic; without labelled images, it decides the verdicts."""
    judges, golden = result.max_drop is None, result.golden
    rows = tuple(
        (
            _name(line),
            *((line.verdict.value, percentage(line.agreement, 2)) if judges else ()),
            golden_cell(line),
        )
        for line in result.results
    )
    words = (
        f" Agreement: share of the images with the same predicted class. {SQNR_TEXT}"
        if judges
        else ""
    )
    exact = (
        " Bit-exact: all logits must be equal, bit for bit."
        if any(line.rule is Rule.BIT_EXACT for line in result.results)
        else ""
    )
    fixed = {
        line.precision.upper(): line.golden_limit_db
        for line in result.results
        if line.encoding is Encoding.FLOAT
    }
    limits = "".join(f"{limit:g} dB for {name}; " for name, limit in fixed.items())
    return Table(
        caption=f"Arithmetic of this machine on {golden.described}. The bundle stores these images "
        f"with the logits of {golden.reference_name}. Limits: {limits}for INT8, 3 dB below the "
        f"SQNR of the same graph at the export, but never below 3 dB.{exact}{words}",
        head=("graph on backend", *(("verdict", "agreement") if judges else ()), "SQNR and limit"),
        rows=rows,
    )


def _confusion(result: Verification) -> list[Block]:
    """Return the confusion matrix and the most frequent errors of one graph.

    That is the INT8 graph for CPUs if it did not fail, otherwise the last graph that did not fail.
    """
    known = [line for line in result.results if line.confusion and line.verdict is not Verdict.FAIL]
    if not known or not result.labels:
        return []
    baseline = known[0]
    shown = next((line for line in known if line.encoding is Encoding.CPU), known[-1])
    counts = {_graph(line): line.confusion for line in (shown, baseline)}
    return confusion_blocks(result.labels, counts, _name(shown))


def _graph(line: ArtifactResult) -> str:
    return graph_name(line.precision, line.encoding)


def _name(line: ArtifactResult) -> str:
    return f"{_graph(line)} on {line.backend}"


def _with_use(line: ArtifactResult) -> str:
    return with_use(_graph(line), line.encoding)
