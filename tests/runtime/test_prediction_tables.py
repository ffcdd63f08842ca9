"""Predictions as CSV and as JSON lines."""

from __future__ import annotations

import csv
import json
import os
from itertools import product
from pathlib import Path

import pytest

from resdeploy.errors import OutputError
from resdeploy.json_documents import jsonable
from resdeploy.predictions import Prediction
from resdeploy.runtime.file_predictions import FilePredictions
from resdeploy.runtime.prediction_tables import COLUMNS, new_csv, new_jsonl, safe_cell

LABELS = ("cat", '=HYPERLINK("http://x")', "a,b\n;+1")


def answer(
    path: str, *, error: str | None = None, labels: tuple[str, ...] = LABELS
) -> FilePredictions:
    predictions = tuple(
        Prediction(label=label, index=index, probability=0.1 + 0.2**index)
        for index, label in enumerate(() if error else labels)
    )
    return FilePredictions(
        path=Path(path), predictions=predictions, backend="b", artifact="a", error=error
    )


def test_csv_has_a_row_per_file_with_the_same_columns(tmp_path: Path) -> None:
    with new_csv(tmp_path / "p.csv", 3) as write:
        for file in (answer("-a.jpg"), answer("b.jpg", error="@broken"), answer("\xe9\udcff.jpg")):
            write(file)
        assert not (tmp_path / "p.csv").exists()  # only when it is complete
    with (tmp_path / "p.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == [
        *COLUMNS,
        "label_2",
        "index_2",
        "probability_2",
        "label_3",
        "index_3",
        "probability_3",
    ]
    assert rows[1] == [
        "'-a.jpg", "cat", "0", "1.1", "", "", "'" + LABELS[1], "1", repr(0.1 + 0.2), r"a,b\x0a;'+1",
        "2", repr(0.1 + 0.2**2),
    ]  # fmt: skip
    assert rows[2] == ["b.jpg", "", "", "", "'@broken", "", *6 * [""]]
    assert rows[3][0] == "\xe9\\xff.jpg"


def test_no_cell_is_a_formula_however_it_is_split() -> None:
    starts = ("=", "+", "-", "@", "\uff1d")
    for characters in product((*starts, *"\t\r\n;, '\"a"), repeat=3):
        cell = safe_cell("".join(characters))
        for separator in (";", ",", "|", "\t"):
            assert not any(part.strip().startswith(starts) for part in cell.split(separator))


def test_a_line_of_json_is_the_result_itself(tmp_path: Path) -> None:
    path = os.fsdecode(b"\xff\n\x1b.jpg")
    files = [answer(path), answer("b.jpg", error="broken")]
    with new_jsonl(tmp_path / "p.jsonl") as write:
        for file in files:
            write(file)
    lines = (tmp_path / "p.jsonl").read_bytes().decode("ascii").splitlines()
    assert [json.loads(line) for line in lines] == [jsonable(file) for file in files]
    assert lines[0].startswith('{"schema": "resdeploy.prediction/1", "path": "\\udcff\\n')


def test_a_failure_leaves_no_file(tmp_path: Path) -> None:
    for table in (new_csv(tmp_path / "p", 1), new_jsonl(tmp_path / "p")):
        with pytest.raises(RuntimeError, match="engine"), table as write:
            write(answer("a.jpg", labels=("cat",)))
            raise RuntimeError("the engine failed")
        assert os.listdir(tmp_path) == []
    with pytest.raises(OutputError, match="cannot write"), new_jsonl(Path("/proc/none/p")):
        pass
