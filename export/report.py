"""`report.html`: what is in a bundle and how it was proven, on one page that needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from resdeploy.bundle import Artifact, Encoding
from resdeploy.export.calibrate import Calibration
from resdeploy.export.plots import cost_bars, worst_histograms
from resdeploy.page import render_page
from resdeploy.preprocessing import Preprocessing

TEMPLATE = "export/report.html.j2"


def render_report(
    model: Mapping[str, Any],
    preprocessing: Preprocessing,
    artifacts: Sequence[Artifact],
    calibration: Calibration | None,
    costs: Mapping[str, float],
    provenance: Mapping[str, Any],
) -> bytes:
    """The page, UTF-8; everything that comes from outside is escaped.

    `costs` are those of `sensitivity.costs_alone`; empty without an INT8 graph.

    Raises:
        MissingDependencyError: Jinja2 is not installed.
    """
    return render_page(
        TEMPLATE,
        model=model,
        preprocessing=preprocessing,
        artifacts=artifacts,
        calibration=calibration.summary() if calibration else None,
        bars=cost_bars(costs),
        histograms=worst_histograms(
            costs, calibration.recipes[Encoding.TENSORRT], calibration.statistics
        )
        if calibration
        else (),
        provenance=provenance,
    )
