"""Fail a CI job if a bundle is less accurate than its FP32 graph.

    pip install '.[cpu]'
    python examples/ci_gate.py candidate.bundle photos --max-drop 0.5

`photos` holds one folder of pictures per class. On GitHub, the result is also a table on the page
of the job. `deploy/ci/resdeploy.yml` is a whole workflow, which also compares with the last bundle.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import resdeploy

EXIT_CODES = {"pass": 0, "fail": 1, "inconclusive": 3}  # those of `resdeploy verify`


def main() -> int:
    """Print a table; return 0 if all graphs pass, 1 if one fails, 3 for too few pictures."""
    parser = argparse.ArgumentParser(description="Judge the accuracy of a bundle.")
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    parser.add_argument("photos", type=Path, help="folder of labelled pictures")
    parser.add_argument("--max-drop", type=float, default=0.5, help="in percentage points")
    options = parser.parse_args()

    result = resdeploy.verify(options.bundle, data=options.photos, max_drop=options.max_drop)
    lines = ["| graph | backend | top-1 | bound of the drop | verdict |", "|--|--|--|--|--|"]
    lines += [
        f"| {line.precision.value} {line.encoding.value} | {line.backend} | {line.top1:.2f} % "
        f"| {line.drop_upper95:+.2f} points | {line.verdict.value} |"
        for line in result.results
    ]
    print("\n".join(lines))
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(summary).open("a", encoding="utf-8") as page:
            page.write("\n".join(lines) + "\n")
    return EXIT_CODES[result.verdict.value]


if __name__ == "__main__":
    sys.exit(main())
