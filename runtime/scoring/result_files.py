"""Files of predictions: Parquet for programs, CSV for spreadsheets, and JSON lines."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from itertools import chain
from typing import Any

import numpy as np

from resdeploy.errors import needs_extra
from resdeploy.json_documents import one_line
from resdeploy.runtime.prediction_tables import safe_cell
from resdeploy.runtime.scoring.scorer import Scores, prediction_columns


class TableFormat(str, Enum):
    """A format of the result."""

    PARQUET = "parquet"
    CSV = "csv"
    JSONL = "jsonl"


LISTS = ("label", "index", "probability")


def table_bytes(
    kind: TableFormat, scores: Scores, labels: Sequence[str], bundle_sha256: str, *, labelled: bool
) -> bytes:
    """Return the content of a file with the predictions of a part, in the order of its rows.

    Columns: path, label, index, probability, logits if they were kept, true_label if `labelled`,
    error, engine, bundle_sha256.
    """
    predictions = prediction_columns(scores, labels)
    after = ("error", "engine")
    columns = {
        "path": list(scores.paths),
        **{name: column for name, column in predictions.items() if name not in after},
        **({"true_label": list(scores.labels)} if labelled else {}),
        **{name: predictions[name] for name in after},
        "bundle_sha256": [bundle_sha256] * len(scores.paths),
    }
    return _WRITERS[kind](columns, scores.indices.shape[1], len(labels))


def _parquet(columns: Mapping[str, list[Any]], top: int, outputs: int) -> bytes:
    with needs_extra():
        import pyarrow as pa
        from pyarrow import parquet
    types = {
        "label": pa.list_(pa.string()), "index": pa.list_(pa.int32()),
        "probability": pa.list_(pa.float32()), "logits": pa.list_(pa.float32()),
    }  # fmt: skip
    fields = {name: types.get(name, pa.string()) for name in columns}
    stream = pa.BufferOutputStream()
    parquet.write_table(pa.table(dict(columns), schema=pa.schema(fields)), stream)
    return bytes(stream.getvalue())


def _csv(columns: Mapping[str, list[Any]], top: int, outputs: int) -> bytes:
    """Return rows in which the first class has the columns of `predict --csv`, and so on."""
    logits = columns.get("logits")
    count = outputs if logits else 0
    single = [name for name in columns if name not in (*LISTS, "logits")]
    ranks = [[f"{name}_{n}" if n > 1 else name for name in LISTS] for n in range(1, top + 1)]
    head = ["path", *ranks[0], *single[1:], *chain(*ranks[1:])]
    stream = io.StringIO()
    writer = csv.writer(stream, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow([*head, *[f"logit_{n}" for n in range(count)]])
    for row, label in enumerate(columns["label"]):
        if label is None:
            classes: list[list[Any]] = [["", "", ""]] * top
        else:
            others = (columns[name][row] for name in LISTS[1:])
            classes = [[safe_cell(name), *rest] for name, *rest in zip(label, *others)]
        path, *values = (safe_cell(columns[name][row] or "") for name in single)
        found = logits[row] if logits else None
        numbers = [""] * count if found is None else _as_list(found)
        writer.writerow([path, *classes[0], *values, *chain(*classes[1:]), *numbers])
    return stream.getvalue().encode()


def _jsonl(columns: Mapping[str, list[Any]], top: int, outputs: int) -> bytes:
    rows = (dict(zip(columns, values)) for values in zip(*columns.values()))
    return "".join(
        f"{one_line({name: _as_list(value) for name, value in row.items()})}\n" for row in rows
    ).encode()


def _as_list(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


_WRITERS: Mapping[TableFormat, Callable[[Mapping[str, list[Any]], int, int], bytes]] = {
    TableFormat.PARQUET: _parquet,
    TableFormat.CSV: _csv,
    TableFormat.JSONL: _jsonl,
}
