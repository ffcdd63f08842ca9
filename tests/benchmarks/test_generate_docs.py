"""Tests that the performance page and the README tables match the committed results."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.generate_docs import (
    PAGE,
    PICTURE,
    README,
    RESULTS,
    SUPPORT_PAGE,
    make_performance_page,
    make_picture,
    read_tables,
    update_readme,
    update_support,
)
from benchmarks.results import QUANTIZATION_DATA
from resdeploy.json_documents import jsonable
from tests.results import benchmark


def test_the_committed_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == make_performance_page(*read_tables(RESULTS)), (
        "run python -m benchmarks.generate_docs"
    )


def test_the_table_of_the_readme_is_up_to_date() -> None:
    readme = README.read_text(encoding="utf-8")
    assert readme.count("<!-- table -->") == 1
    assert update_readme(readme, RESULTS) == readme, "run python -m benchmarks.generate_docs"


def test_the_matrix_of_networks_is_up_to_date() -> None:
    page = SUPPORT_PAGE.read_text(encoding="utf-8")
    assert page.count("<!-- table -->") == 1
    assert update_support(page, RESULTS) == page, "run python -m benchmarks.generate_docs"


def test_the_picture_of_the_readme_is_up_to_date() -> None:
    picture = PICTURE.read_text(encoding="utf-8")
    assert picture == make_picture(RESULTS), "run python -m benchmarks.generate_docs"
    assert "resdeploy int8-cpu.onnx" in picture
    ElementTree.fromstring(picture)  # well-formed


def test_the_data_set_of_the_quantisers_is_that_of_the_command() -> None:
    command = json.loads((RESULTS / "quantization.json").read_text())["environment"]["command"]
    assert QUANTIZATION_DATA.replace("-", "").lower() in command.split()


def test_every_table_names_its_machine_and_date() -> None:
    tables, _ = read_tables(RESULTS)
    assert {"latency", "training", "quantization"} <= set(tables)
    for table in tables.values():
        assert "Measured on 20" in table.origin
        assert "cores" in table.origin


def test_the_page_explains_each_kind_of_result_once_and_each_file() -> None:
    tables, others = read_tables(RESULTS)
    text = make_performance_page(tables, others)
    assert text.count("python -m benchmarks.latency") == text.count("Share of the limit:") == 1
    assert text.count("\n## Latency\n") == 1
    assert text.count("\n### ") == sum(name.startswith("latency") for name in tables) > 1
    assert "| 1 | pytorch-eager | fp32 |" in text
    assert "| :-- | :-- | :-- | --: |" in text  # words are aligned to the left
    for line in others:
        assert re.fullmatch(r"\[([\w-]+\.json)\]\(results/\1\): .+ on .+, 2026-\d\d-\d\d", line)


def test_new_results_appear_on_the_page(tmp_path: Path) -> None:
    documents = [jsonable(benchmark()), jsonable(benchmark(cpu="Other <CPU>"))]
    (tmp_path / "latency.json").write_text(json.dumps(documents))
    (tmp_path / "unknown.json").write_text('{"schema": "elsewhere/1"}')
    tables, others = read_tables(tmp_path)
    text = make_performance_page(tables, others)
    assert "4.32x" in text
    assert "AMD EPYC, 2 cores and Other &lt;CPU&gt;, 2 cores" in text
    assert "* [unknown.json](results/unknown.json)\n" in text


def test_rejects_a_damaged_result(tmp_path: Path) -> None:
    (tmp_path / "latency.json").write_text('{"schema": "resdeploy.benchmark/1"}')
    with pytest.raises(ValueError, match="has no environment"):
        read_tables(tmp_path)
