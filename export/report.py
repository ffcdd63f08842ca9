"""`report.html`: what is in a bundle and how it was proven, on one page that needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from resdeploy.bundle import Artifact, Encoding
from resdeploy.errors import needs_extra
from resdeploy.export.calibrate import Calibration
from resdeploy.export.plots import cost_bars, worst_histograms
from resdeploy.preprocessing import Preprocessing

TEMPLATE = "report.html.j2"


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
    with needs_extra():
        import jinja2

    text = resources.files("resdeploy.export").joinpath(TEMPLATE).read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(text).render(
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
    return page.encode()
