"""The picture of `README.md`: how much faster INT8 is, and how many predictions it changes."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from statistics import fmean

from benchmarks.results import QUANTIZATION_DATA, Quantization
from resdeploy.bundle.manifest import graph_name
from resdeploy.images.preprocessing import size_text
from resdeploy.pages.svg import bars
from resdeploy.result_files.benchmark import Benchmark
from resdeploy.result_files.provenance import Environment
from resdeploy.tables import factor

WIDTH, GAP = 480, 40  # of a plot, and between plots
TITLE = 44  # height of a plot's title
# A file on its own has no style sheet of a page. Browsers apply it in dark mode, too.
STYLE = """
  svg { font-family: system-ui, sans-serif; font-size: 14px; }
  .paper { fill: #fff; } text { fill: #1b1e22; } .dim { fill: #5d6369; font-size: 12px; }
  .title { font-size: 16px; font-weight: 600; } .axis { stroke: #5d6369; } .value { fill: #0072b2; }
  @media (prefers-color-scheme: dark) {
    .paper { fill: #16181b; } text { fill: #e6e8ea; } .dim { fill: #9aa1a8; }
    .axis { stroke: #9aa1a8; } .value { fill: #56b4e9; } }
"""


def make_result_picture(latency: Sequence[Benchmark], quantization: Quantization) -> str:
    """Return an SVG file with a plot of the speed-ups, and one of the changed predictions.

    Args:
        latency: Benchmarks; the last one is drawn.
        quantization: Quantisers; a row is the mean over their sets of calibration images.
    """
    timed = latency[-1].results
    speeds = [
        (
            f"{line.contender}, {graph_name(line.precision, line.encoding)}",
            line.speedup,
            f"{factor(line.speedup)}x",
        )
        for line in timed
        if line.speedup is not None
    ]
    names = dict.fromkeys(row.contender for row in quantization.rows)
    changed = [
        (name, 100 - fmean(row.agreement for row in quantization.rows if row.contender == name))
        for name in names
    ]
    plots = [
        (
            f"Speed-up: {_network(latency[-1].environment)}, {timed[0].threads} threads",
            bars(speeds, axis="times as fast as PyTorch eager", description="Speed-ups."),
        ),
        (
            f"Changed predictions: {_network(quantization.environment)}, {QUANTIZATION_DATA}",
            bars(
                [(name, share, f"{share:.2f} %") for name, share in changed],
                axis=f"% of {quantization.validation_images:,} images; the predicted class is not "
                "that of FP32",
                description="Changed predictions.",
            ),
        ),
    ]
    height = TITLE + max(_height(svg) for _, svg in plots) + 8
    alternative = escape(" ".join(title + "." for title, _ in plots))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH + GAP} {height}" '
        f'role="img" aria-label="{alternative}">',
        f"<style>{STYLE}</style>",
        '<rect class="paper" width="100%" height="100%"/>',
    ]
    for left, (title, svg) in zip((0, WIDTH + GAP), plots, strict=True):
        parts.append(f'<text class="title" x="{left + 8}" y="24">{escape(title)}</text>')
        parts.append(_placed(svg, left))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _network(environment: Environment) -> str:
    return f"{environment.model}, {size_text(environment.image_size)} pixels"


def _height(svg: str) -> int:
    return int(svg.split('height="', 1)[1].split('"', 1)[0])


def _placed(svg: str, left: int) -> str:
    return svg.replace("<svg ", f'<svg x="{left}" y="{TITLE}" width="{WIDTH}" ', 1)
