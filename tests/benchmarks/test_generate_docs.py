"""The page about performance is what its generator makes of the committed results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.generate_docs import PAGE, README, RESULTS, page, read_parts, with_tables
from resdeploy.documents import jsonable
from tests.results import benchmark


def test_the_committed_page_is_what_is_generated() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(*read_parts(RESULTS)), (
        "run python -m benchmarks.generate_docs"
    )


def test_the_tables_of_the_readme_are_what_is_generated() -> None:
    readme = README.read_text(encoding="utf-8")
    parts, _ = read_parts(RESULTS)
    assert readme.count("<!-- table ") == 3
    assert with_tables(readme, parts) == readme, "run python -m benchmarks.generate_docs"


def test_every_table_names_its_machine_and_its_date() -> None:
    parts, _ = read_parts(RESULTS)
    assert {"latency", "training", "quantization"} <= set(parts)
    for part in parts.values():
        assert "Measured on 20" in part.origin
        assert "cores" in part.origin


def test_what_is_measured_anew_is_shown(tmp_path: Path) -> None:
    documents = [jsonable(benchmark()), jsonable(benchmark(cpu="Other <CPU>"))]
    (tmp_path / "latency.json").write_text(json.dumps(documents))
    (tmp_path / "unknown.json").write_text('{"schema": "elsewhere/1"}')
    parts, others = read_parts(tmp_path)
    text = page(parts, others)
    assert "4.32x" in text
    assert "AMD EPYC, 2 cores and Other &lt;CPU&gt;, 2 cores" in text
    assert "* [unknown.json](results/unknown.json)" in text


def test_a_damaged_result_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "latency.json").write_text('{"schema": "resdeploy.benchmark/1"}')
    with pytest.raises(ValueError, match="has no environment"):
        read_parts(tmp_path)
