"""Sources of scorings, and their results."""

from __future__ import annotations

import csv
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

from resdeploy.runtime.scoring.score import ScoringOptions
from resdeploy.runtime.scoring.scorer import ScorerOptions
from resdeploy.runtime.scoring.sources import Part, SourceSummary, list_parts
from resdeploy.runtime.scoring.table_source import ColumnNames

CPU = ScorerOptions(backend="onnxruntime-cpu", threads=1)


def listed(
    *sources: object, size: int = 10_000, columns: ColumnNames | None = None
) -> tuple[list[Part], SourceSummary]:
    """Return the parts of sources, and what is known of them."""
    summary = SourceSummary()
    parts = list_parts([str(source) for source in sources], columns or ColumnNames(), size, summary)
    return list(parts), summary


def names(parts: Sequence[Part]) -> list[str]:
    """Return the names of the rows in parts."""
    return [row.path for part in parts for row in (part.slice.rows() if part.slice else part.rows)]


def options(**changes: Any) -> ScoringOptions:
    """Return options with ONNX Runtime on one thread; some are of the scorer."""
    inner = {name: changes.pop(name) for name in ("top", "logits", "batch") if name in changes}
    return ScoringOptions(scorer=replace(CPU, **inner), **changes)


def result_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of all files of a result, in the order of the files."""
    rows: list[dict[str, Any]] = []
    for path in sorted(folder.glob("part-*")):
        if path.suffix == ".parquet":
            from pyarrow import parquet

            rows += parquet.read_table(path).to_pylist()
        elif path.suffix == ".csv":
            rows += csv.DictReader(path.read_text().splitlines())
        else:
            rows += map(json.loads, path.read_text().splitlines())
    return rows


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    """Write a tar file with these members."""
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, BytesIO(content))
    return path


def write_parquet(path: Path, columns: Mapping[str, Any], group: int = 1 << 20) -> Path:
    """Write a Parquet file whose groups have at most `group` rows."""
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table(dict(columns)), path, row_group_size=group)
    return path
