"""The report inside a bundle: its contents, how it was exported, and the command that did it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from resdeploy.bundle.analysis import Analysis
from resdeploy.bundle.manifest import Manifest
from resdeploy.pages.blocks import Page, Section
from resdeploy.pages.template import render_page
from resdeploy.report.contents import contents_sections, export_environment, export_summary
from resdeploy.report.origin import commands_section, origin_section
from resdeploy.results.benchmark import LayerTimes
from resdeploy.statistics import Verdict

TEMPLATE = "report/report.html.j2"


@dataclass(frozen=True, slots=True)
class BundleContents:
    """A bundle's manifest, and what its export found out."""

    name: str
    manifest: Manifest
    analysis: Analysis | None
    times: LayerTimes | None = None


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
    environment = export_environment(manifest)
    page = Page(
        title=name,
        verdict=Verdict.PASS,  # an export whose graphs disagree with PyTorch writes no bundle
        summary=(export_summary(manifest),),
        sections=(
            *bundle_sections([BundleContents(name, manifest, analysis)]),
            origin_section([(f"Export of {name}", environment)]),
            commands_section([environment]),
        ),
    )
    return to_html(page)


def bundle_sections(bundles: Sequence[BundleContents]) -> list[Section]:
    """Return the sections about each bundle; with several, each title names its bundle."""
    sections = []
    for one in bundles:
        for section in contents_sections(one.manifest, one.analysis, one.times):
            title = f"{section.title} of {one.name}" if len(bundles) > 1 else section.title
            sections.append(Section(title=title, blocks=section.blocks))
    return sections
