"""Report about bundles, benchmarks, verifications and comparisons, on one page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from resdeploy.bundle.analysis import Analysis, read_analysis
from resdeploy.bundle.bundle import Bundle, open_bundle
from resdeploy.bundle.file_check import check_files
from resdeploy.bundle.manifest import ExportWarning, Manifest
from resdeploy.bundle.quality import grouped_by_hint, named_warnings, open_warnings
from resdeploy.filesystem import refuse_existing_file, write_file
from resdeploy.pages.blocks import Page, Section
from resdeploy.pages.markdown import to_markdown
from resdeploy.pages.template import to_html
from resdeploy.readable_text import readable
from resdeploy.report.accuracy import (
    answered_lines,
    verification_section,
    verification_summary,
)
from resdeploy.report.comparison import comparison_section, comparison_summary
from resdeploy.report.contents import (
    BundleContents,
    bundle_sections,
    export_environment,
    network_text,
)
from resdeploy.report.graphs import export_summary
from resdeploy.report.latency import benchmark_section, benchmark_summary
from resdeploy.report.origin import made_text, origin_section, subject_text
from resdeploy.report.recommendation import recommendation
from resdeploy.result_files import benchmark, comparison, verification
from resdeploy.result_files.benchmark import Benchmark, LayerTimes
from resdeploy.result_files.comparison import Comparison
from resdeploy.result_files.provenance import shown_path
from resdeploy.result_files.reader import read_results
from resdeploy.result_files.verification import Verification, accurate_graphs
from resdeploy.statistics import Verdict, worst_verdict
from resdeploy.tables import capitalised, joined

LayerTimer = Callable[[Bundle], LayerTimes]
"""Function that measures the layers of a bundle on this machine."""
DOCUMENTS: dict[str, type[Benchmark] | type[Verification] | type[Comparison]] = {
    benchmark.SCHEMA: Benchmark,
    verification.SCHEMA: Verification,
    comparison.SCHEMA: Comparison,
}


@dataclass(slots=True)
class ReportInputs:
    """Bundles and results that a report is about."""

    bundles: list[BundleContents] = field(default_factory=list)
    verifications: list[Verification] = field(default_factory=list)
    benchmarks: list[Benchmark] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    verification_file: str = "verification.json"
    """Name of the source of the last verification, for commands."""

    def add(self, name: str, *, time_layers: LayerTimer | None = None) -> None:
        """Read a bundle, or a file of results that is named as for `read_results`.

        Raises:
            BundleError: The bundle is damaged.
            DocumentError: The file holds no results that can be read.
        """
        if Path(name).is_dir():
            bundle = open_bundle(Path(name))
            warnings = (*check_files(bundle), *bundle.manifest.warnings)
            times = time_layers(bundle) if time_layers else None
            analysis = read_analysis(bundle)
            manifest = replace(bundle.manifest, warnings=warnings)
            name = shown_path(bundle.path)
            self.bundles.append(BundleContents(name, manifest, analysis, times))
            return
        for result in read_results(name, DOCUMENTS):
            if isinstance(result, Benchmark):
                self.benchmarks.append(result)
            elif isinstance(result, Verification):
                self.verifications.append(result)
                self.verification_file = name
            else:
                self.comparisons.append(result)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A report that was written or is to be printed."""

    report: Path | None
    """File that was written; None if the Markdown is only printed."""
    verdict: Verdict | None
    markdown: str
    schema: str = "resdeploy.report/1"


def report(
    sources: Sequence[str],
    *,
    output: Path | None,
    markdown: bool,
    time_layers: LayerTimer | None = None,
    force: bool = False,
) -> Report:
    """Read the bundles and results that `sources` name, and write a page about them.

    Args:
        sources: Names as for `ReportInputs.add`.
        output: File to write; None for `report.html`, or for no file if `markdown` is set.
        markdown: True for Markdown instead of HTML.
        time_layers: Function that measures the layers of the bundles, if they are to be measured.
        force: True to replace an existing file.

    Raises:
        BundleError, DocumentError: A source is damaged.
        MissingDependencyError: Jinja2, which HTML needs, is not installed.
        OutputError: The file exists, or cannot be written.
    """
    if output is None and not markdown:
        output = Path("report.html")
    if output is not None:
        refuse_existing_file(output, force=force)
    inputs = ReportInputs()
    for source in sources:
        inputs.add(source, time_layers=time_layers)
    page = make_page(inputs)
    text = readable(to_markdown(page), keep="\n")
    if output is not None:
        write_file(output, text.encode() if markdown else to_html(page))
    return Report(report=output, verdict=page.verdict, markdown=text)


def make_page(inputs: ReportInputs) -> Page:
    """Return the page of a report: verdict, summary, results, environments and commands."""
    bundles = [_with_open_warnings(bundle, inputs.verifications) for bundle in inputs.bundles]
    environments = [
        *((f"Export of {bundle.name}", export_environment(bundle.manifest)) for bundle in bundles),
        *(("Verification", result.environment) for result in inputs.verifications),
        *(("Benchmark", result.environment) for result in inputs.benchmarks),
        *(("Comparison", result.environment) for result in inputs.comparisons),
    ]
    verdicts = [
        *(result.verdict for result in inputs.comparisons),
        *(result.verdict for result in inputs.verifications),
    ]
    names = [bundle.name for bundle in bundles]
    doubts, owners = _warnings(inputs)
    advice = recommendation(
        names,
        inputs.comparisons,
        inputs.verifications,
        inputs.benchmarks,
        doubts,
        inputs.verification_file,
    )
    return Page(
        title=_title(inputs),
        lead=_lead(bundles),
        # A bundle alone has no verdict: nothing was judged on images that could decide.
        verdict=worst_verdict(verdicts) if verdicts else None,
        subject="; ".join(
            [
                *(
                    f"{result.second} compared with {result.first} {made_text(result.environment)}"
                    for result in inputs.comparisons
                ),
                *(
                    f"{subject_text(result.environment)} verified {made_text(result.environment)}"
                    for result in inputs.verifications
                ),
            ]
        ),
        recommendation=advice.sentence,
        commands=advice.commands,
        warnings=tuple(grouped_by_hint(doubts, owners)),
        summary=(
            *(line for result in inputs.comparisons for line in comparison_summary(result)),
            *map(verification_summary, inputs.verifications),
            *(
                f"{capitalised(line)}."
                for result in inputs.verifications
                for line in answered_lines(result)
            ),
            *map(benchmark_summary, inputs.benchmarks),
            *(
                line
                for bundle in (() if inputs.comparisons else bundles)
                for line in export_summary(bundle.manifest, bundle.name if bundles[1:] else "")
            ),
        ),
        sections=_distinct(
            [
                *map(comparison_section, inputs.comparisons),
                *map(verification_section, inputs.verifications),
                *(
                    benchmark_section(result, alone=len(inputs.benchmarks) == 1)
                    for result in inputs.benchmarks
                ),
                *bundle_sections(bundles, timed=bool(inputs.benchmarks or inputs.comparisons)),
                origin_section(environments),
            ]
        ),
    )


def _distinct(sections: Sequence[Section]) -> tuple[Section, ...]:
    """Return sections with a number in titles that several of them have."""
    titles = [section.title for section in sections]
    return tuple(
        replace(section, title=f"{section.title} ({titles[: index + 1].count(section.title)})")
        if titles.count(section.title) > 1
        else section
        for index, section in enumerate(sections)
    )


def bundle_page(name: str, manifest: Manifest, analysis: Analysis | None) -> Page:
    """Return the report of a bundle that is being exported."""
    return make_page(ReportInputs(bundles=[BundleContents(name, manifest, analysis)]))


def _warnings(inputs: ReportInputs) -> tuple[list[ExportWarning], set[str]]:
    """Return the warnings of all inputs, with several bundles each with its bundle's name.

    Return also the names of all bundles.
    """
    owned: list[tuple[str | None, Sequence[ExportWarning]]] = [
        *((result.environment.bundle, result.warnings) for result in inputs.verifications),
        *((result.environment.bundle, result.warnings) for result in inputs.benchmarks),
        *((bundle.name, bundle.manifest.warnings) for bundle in inputs.bundles),
    ]
    for bundle in inputs.bundles:
        accurate = _accurate(bundle.name, inputs.verifications)
        owned = [
            (
                name,
                open_warnings(bundle.manifest, found, accurate) if name == bundle.name else found,
            )
            for name, found in owned
        ]
    several = inputs.comparisons or len({Path(name).name for name, _ in owned if name}) > 1
    names = {name for name, _ in owned if name}
    names.update(name for result in inputs.comparisons for name in (result.first, result.second))
    return [
        *(warning for result in inputs.comparisons for warning in result.warnings),
        *(
            warning
            for name, found in owned
            for warning in (named_warnings(name, found) if several and name else found)
        ),
    ], names


def _with_open_warnings(
    bundle: BundleContents, verifications: Sequence[Verification]
) -> BundleContents:
    """Return the contents of a bundle without the warnings that these verifications answer."""
    manifest, accurate = bundle.manifest, _accurate(bundle.name, verifications)
    warnings = tuple(open_warnings(manifest, manifest.warnings, accurate))
    return replace(bundle, manifest=replace(manifest, warnings=warnings))


def _accurate(name: str, verifications: Sequence[Verification]) -> set[str]:
    """Return the graphs of the bundle called `name` whose accuracy passed in a verification."""
    return {
        graph
        for result in verifications
        if result.environment.bundle == name
        for graph in accurate_graphs(result.results)
    }


def _lead(bundles: Sequence[BundleContents]) -> str:
    names: dict[str, list[str]] = {}
    for bundle in bundles:
        names.setdefault(network_text(bundle.manifest), []).append(bundle.name)
    if len(bundles) == 1:
        return network_text(bundles[0].manifest)
    return "; ".join(f"{joined(found)}: {network}" for network, found in names.items())


def _title(inputs: ReportInputs) -> str:
    if inputs.bundles and not inputs.comparisons:
        return ", ".join(bundle.name for bundle in inputs.bundles)
    titles: dict[str, list[str]] = {}
    for result in inputs.comparisons:
        titles[f"{result.second} with {result.first}"] = ["comparison"]
    for kind, results in (("verification", inputs.verifications), ("benchmark", inputs.benchmarks)):
        for subject in dict.fromkeys(subject_text(result.environment) for result in results):
            titles.setdefault(subject, []).append(kind)
    text = "; ".join(f"{' and '.join(kinds)} of {name}" for name, kinds in titles.items())
    return capitalised(text)
