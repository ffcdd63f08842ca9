"""The `report.html` inside a bundle."""

from __future__ import annotations

from resdeploy.bundle.analysis import Analysis
from resdeploy.bundle.manifest import Manifest
from resdeploy.report.contents import BundleContents
from resdeploy.report.report import ReportInputs, make_page, to_html


def bundle_page(name: str, manifest: Manifest, analysis: Analysis | None) -> bytes:
    """Return the page about a bundle that is being exported.

    Raises:
        MissingDependencyError: Jinja2 is not installed.
    """
    return to_html(make_page(ReportInputs(bundles=[BundleContents(name, manifest, analysis)])))
