"""`resdeploy report`: bundles, benchmarks, verifications and comparisons on one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from resdeploy.bundle import Manifest, open_bundle
from resdeploy.page import render_page
from resdeploy.report.accuracy import verification_section, verification_summary
from resdeploy.report.analysis import Analysis, read_analysis
from resdeploy.report.blocks import Page, Section
from resdeploy.report.comparison import comparison_section, comparison_verdict
from resdeploy.report.contents import contents_sections, export_environment, export_summary
from resdeploy.report.latency import benchmark_section, benchmark_summary
from resdeploy.report.layer_times import LayerTimes, time_layers
from resdeploy.report.markdown import to_markdown
from resdeploy.report.origin import commands_section, origin_section
from resdeploy.runtime import bench, compare, verify
from resdeploy.runtime.benchmark_document import BenchmarkDocument
from resdeploy.runtime.compare import Comparison
from resdeploy.runtime.results import read_results
from resdeploy.runtime.verify import Verification
from resdeploy.statistics import Verdict, worst
from resdeploy.storage import refuse_existing_file, write_file

TEMPLATE = "report/report.html.j2"
DEFAULT = Path("report.html")
KINDS: dict[str, type[BenchmarkDocument] | type[Verification] | type[Comparison]] = {
    bench.SCHEMA: BenchmarkDocument,
    verify.SCHEMA: Verification,
    compare.SCHEMA: Comparison,
}


@dataclass(frozen=True, slots=True)
class Contents:
    """A bundle's manifest, and what its export found out."""

    name: str
    manifest: Manifest
    analysis: Analysis | None
    times: LayerTimes | None = None


@dataclass(slots=True)
class Material:
    """All that a report is about."""

    bundles: list[Contents] = field(default_factory=list)
    verifications: list[Verification] = field(default_factory=list)
    benchmarks: list[BenchmarkDocument] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)

    def add(self, name: str, *, with_times: bool = False) -> None:
        """Read a bundle, or a file of results.

        Args:
            name: Of a folder or a file; see `read_results`.
            with_times: Whether to time the layers of a bundle here and now.

        Raises:
            BundleError, DocumentError: it is damaged, or something else.
        """
        if Path(name).is_dir():
            bundle = open_bundle(Path(name))
            times = time_layers(bundle) if with_times else None
            analysis = read_analysis(bundle)
            self.bundles.append(Contents(bundle.path.name, bundle.manifest, analysis, times))
            return
        for result in read_results(name, KINDS):
            if isinstance(result, BenchmarkDocument):
                self.benchmarks.append(result)
            elif isinstance(result, Verification):
                self.verifications.append(result)
            else:
                self.comparisons.append(result)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What `resdeploy report` wrote."""

    report: Path | None
    """None for what was only printed."""
    verdict: Verdict | None
    markdown: str
    """What it says, briefly."""


def report(
    sources: Sequence[str],
    *,
    output: Path | None,
    markdown: bool,
    with_times: bool = False,
    force: bool = False,
) -> Report:
    """Read `sources` and write one page to `output`, or `report.html`; Markdown needs no file.

    Raises:
        BundleError, DocumentError: a source is damaged, or something else.
        MissingDependencyError: Jinja2 is not installed; Markdown does without.
        OutputError: the file exists already, or cannot be written.
    """
    if output is None and not markdown:
        output = DEFAULT
    if output is not None:
        refuse_existing_file(output, force=force)
    material = Material()
    for source in sources:
        material.add(source, with_times=with_times)
    page = make_page(material)
    text = to_markdown(page)
    if output is not None:
        write_file(output, text.encode() if markdown else to_html(page))
    return Report(report=output, verdict=page.verdict, markdown=text)


def make_page(material: Material) -> Page:
    """Verdict first, then what speaks for it, then where it is from."""
    bundles = material.bundles
    environments = [
        *((f"Export of {one.name}", export_environment(one.manifest)) for one in bundles),
        *(("Verification", one.environment) for one in material.verifications),
        *(("Benchmark", one.environment) for one in material.benchmarks),
        *(("Comparison", one.environment) for one in material.comparisons),
    ]
    verdicts = [
        *(one.verdict for one in material.comparisons),
        *(one.verdict for one in material.verifications),
        *(Verdict.PASS for _ in bundles),  # an export that does not agree writes no bundle
    ]
    return Page(
        title=_title(material),
        verdict=worst(verdicts) if verdicts else None,
        summary=(
            *(comparison_verdict(one) for one in material.comparisons),
            *(verification_summary(one) for one in material.verifications),
            *(benchmark_summary(one) for one in material.benchmarks),
            *(export_summary(one.manifest) for one in bundles),
        ),
        sections=(
            *(comparison_section(one) for one in material.comparisons),
            *(verification_section(one) for one in material.verifications),
            *(benchmark_section(one) for one in material.benchmarks),
            *_contents(bundles),
            origin_section(environments),
            commands_section([environment for _, environment in environments]),
        ),
    )


def to_html(page: Page) -> bytes:
    """One file that needs no network and no script.

    Raises:
        MissingDependencyError: Jinja2 is not installed.
    """
    return render_page(TEMPLATE, page=page)


def bundle_page(name: str, manifest: Manifest, analysis: Analysis | None) -> bytes:
    """The `report.html` that lies in a bundle.

    Raises:
        MissingDependencyError: Jinja2 is not installed.
    """
    return to_html(make_page(Material(bundles=[Contents(name, manifest, analysis)])))


def _contents(bundles: Sequence[Contents]) -> list[Section]:
    sections = []
    for one in bundles:
        for section in contents_sections(one.manifest, one.analysis, one.times):
            title = f"{section.title} of {one.name}" if len(bundles) > 1 else section.title
            sections.append(Section(title=title, blocks=section.blocks))
    return sections


def _title(material: Material) -> str:
    if material.bundles:
        return ", ".join(one.name for one in material.bundles)
    environments = [one.environment for one in material.verifications]
    environments += [one.environment for one in material.benchmarks]
    models = dict.fromkeys(one.model or "a network" for one in environments)
    return ", ".join(models) or "comparison"
