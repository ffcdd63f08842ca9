"""Files of a result: the same values as Parquet, CSV and JSON lines."""

from __future__ import annotations

import csv
import json
from io import BytesIO
from typing import Any

import numpy as np
import pytest

from resdeploy.predictions import softmax
from resdeploy.runtime.scoring.result_files import TableFormat, table_bytes
from resdeploy.runtime.scoring.scorer import Scores

pytest.importorskip("pyarrow")
from pyarrow import parquet

LABELS = ('=SUM("red")', "blue, green", "café")


def make_scores(*, failed: str = "b", logits: bool = True, top: int = 3) -> Scores:
    """Return scores of the rows a, b and c."""
    names = ("=a\n", "b", "c\\xe9")
    errors = tuple("-2 is broken" if name in failed else None for name in names)
    values = np.random.default_rng(0).normal(0, 1, (errors.count(None), 3)).astype(np.float32)
    order = np.argsort(-values, axis=1)[:, :top]
    return Scores(
        paths=names, labels=("red", None, "+blue"), errors=errors, indices=order.astype(np.int32),
        probabilities=np.take_along_axis(softmax(values), order, axis=1).astype(np.float32),
        logits=values if logits else None, engine="int8-cpu on onnxruntime-cpu",
    )  # fmt: skip


def written(kind: TableFormat, scores: Scores, *, labelled: bool = True) -> list[dict[str, Any]]:
    data = table_bytes(kind, scores, LABELS, "cafe" * 16, labelled=labelled)
    if kind is TableFormat.PARQUET:
        rows: list[dict[str, Any]] = parquet.read_table(BytesIO(data)).to_pylist()
        return rows
    if kind is TableFormat.JSONL:
        return [json.loads(line) for line in data.decode().splitlines()]
    return list(csv.DictReader(data.decode().splitlines(), quoting=csv.QUOTE_NONNUMERIC))


def test_parquet_has_a_type_for_each_column() -> None:
    data = table_bytes(TableFormat.PARQUET, make_scores(), LABELS, "cafe" * 16, labelled=True)
    types = {field.name: str(field.type) for field in parquet.read_schema(BytesIO(data))}
    assert types == {
        "path": "string", "label": "list<element: string>", "index": "list<element: int32>",
        "probability": "list<element: float>", "logits": "list<element: float>",
        "true_label": "string", "error": "string", "engine": "string", "bundle_sha256": "string",
    }  # fmt: skip


def test_values_are_those_of_the_scores() -> None:
    scores = make_scores()
    first, second, third = written(TableFormat.PARQUET, scores)
    assert scores.logits is not None
    assert first["path"] == "=a\n"
    assert first["index"] == scores.indices[0].tolist()
    assert first["label"] == [LABELS[n] for n in scores.indices[0]]
    assert np.float32(third["probability"]).tolist() == scores.probabilities[1].tolist()
    assert np.float32(third["logits"]).tolist() == scores.logits[1].tolist()
    assert (first["error"], first["true_label"], third["true_label"]) == (None, "red", "+blue")
    assert second["error"] == "-2 is broken"
    assert second["label"] is second["index"] is second["probability"] is second["logits"] is None
    assert {row["bundle_sha256"] for row in (first, second, third)} == {"cafe" * 16}


def test_json_lines_have_the_same_rows_as_parquet() -> None:
    for scores in (
        make_scores(),
        make_scores(logits=False, top=1),
        make_scores(failed="b=a\nc\\xe9"),
    ):
        assert written(TableFormat.JSONL, scores) == written(TableFormat.PARQUET, scores)


def test_csv_has_the_same_values_with_safe_cells() -> None:
    scores = make_scores()
    for cells, row in zip(written(TableFormat.CSV, scores), written(TableFormat.JSONL, scores)):
        for rank in range(3):
            end = f"_{rank + 1}" if rank else ""
            for name in ("label", "index", "probability"):
                expected = row[name][rank] if row[name] else ""
                if name == "label":
                    expected = expected.replace("=SUM", "'=SUM")
                assert cells[f"{name}{end}"] == expected
        for number in range(3):
            assert cells[f"logit_{number}"] == (row["logits"][number] if row["logits"] else "")
        assert cells["engine"] == row["engine"]
    first, second, third = written(TableFormat.CSV, scores)
    assert (first["path"], second["error"]) == ("'=a\\x0a", "'-2 is broken")
    assert (first["true_label"], second["true_label"], third["true_label"]) == ("red", "", "'+blue")


@pytest.mark.parametrize("kind", TableFormat)
def test_files_of_a_result_have_the_same_columns_whatever_failed(kind: TableFormat) -> None:
    some = written(kind, make_scores())
    none = written(kind, make_scores(failed="b=a\nc\\xe9"))
    assert list(none[0]) == list(some[0])
    assert "true_label" not in written(kind, make_scores(), labelled=False)[0]
    assert not [name for name in written(kind, make_scores(logits=False))[0] if "logit" in name]
