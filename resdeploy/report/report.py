"""`resdeploy report`: bundles, benchmarks, verifications and comparisons on one page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from resdeploy.bundle.analysis import read_analysis
from resdeploy.bundle.bundle import Bundle, open_bundle
from resdeploy.pages.blocks import Page
from resdeploy.pages.markdown import to_markdown
from resdeploy.report.accuracy import verification_section, verification_summary
from resdeploy.report.bundle_page import BundleContents, bundle_sections, to_html
from resdeploy.report.comparison import comparison_section, comparison_verdict
from resdeploy.report.contents import export_environment, export_summary
from resdeploy.report.latency import benchmark_section, benchmark_summary
from resdeploy.report.origin import commands_section, origin_section
from resdeploy.results import benchmark, comparison, verification
from resdeploy.results.benchmark import Benchmark, LayerTimes
from resdeploy.results.comparison import Comparison
from resdeploy.results.files import read_results
from resdeploy.results.verification import Verification
from resdeploy.statistics import Verdict, worst_verdict
from resdeploy.storage import refuse_existing_file, write_file

LayerTimer = Callable[[Bundle], LayerTimes]
DEFAULT = Path("report.html")
KINDS: dict[str, type[Benchmark] | type[Verification] | type[Comparison]] = {
    benchmark.SCHEMA: Benchmark,
    verification.SCHEMA: Verification,
    comparison.SCHEMA: Comparison,
}


@dataclass(slots=True)
class ReportInputs:
    """All that a report is about."""

    bundles: list[BundleContents] = field(default_factory=list)
    verifications: list[Verification] = field(default_factory=list)
    benchmarks: list[Benchmark] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)

    def add(self, name: str, *, time_layers: LayerTimer | None = None) -> None:
        """Read a bundle, or a file of results.

        Args:
            name: Of a folder or a file; see `read_results`.
            time_layers: Measures the layers of a bundle on this machine; None leaves them out.

        Raises:
            BundleError, DocumentError: it is damaged, or something else.
        """
        if Path(name).is_dir():
            bundle = open_bundle(Path(name))
            times = time_layers(bundle) if time_layers else None
            analysis = read_analysis(bundle)
            self.bundles.append(BundleContents(bundle.path.name, bundle.manifest, analysis, times))
            return
        for result in read_results(name, KINDS):
            if isinstance(result, Benchmark):
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
    time_layers: LayerTimer | None = None,
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
    material = ReportInputs()
    for source in sources:
        material.add(source, time_layers=time_layers)
    page = make_page(material)
    text = to_markdown(page)
    if output is not None:
        write_file(output, text.encode() if markdown else to_html(page))
    return Report(report=output, verdict=page.verdict, markdown=text)


def make_page(material: ReportInputs) -> Page:
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
        verdict=worst_verdict(verdicts) if verdicts else None,
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
            *bundle_sections(bundles),
            origin_section(environments),
            commands_section([environment for _, environment in environments]),
        ),
    )


def _title(material: ReportInputs) -> str:
    if material.bundles:
        return ", ".join(one.name for one in material.bundles)
    environments = [one.environment for one in material.verifications]
    environments += [one.environment for one in material.benchmarks]
    models = dict.fromkeys(one.model or "a network" for one in environments)
    return ", ".join(models) or "comparison"
