"""Files of predictions: CSV for spreadsheets, and JSON lines."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from resdeploy.filesystem import new_file
from resdeploy.json_documents import jsonable, one_line
from resdeploy.readable_text import readable
from resdeploy.runtime.file_predictions import FilePredictions

Write = Callable[[FilePredictions], object]
COLUMNS = ("path", "label", "index", "probability", "error", "warning")
SINGLE_COLOUR = "all pixels are equal, so the predictions mean nothing"
# Spreadsheets run a cell as a formula if it begins with one of these, also in their full width; in
# some countries they split cells at semicolons. Source: OWASP, "CSV Injection".
_FORMULA = re.compile(r"(^|[;,|])(?=\s*[=+\-@\uff1d\uff0b\uff0d\uff20])")


def safe_cell(text: str) -> str:
    """Return a text for a cell of CSV: on one line, with `'` before what a formula begins with."""
    return _FORMULA.sub(r"\1'", readable(text))


@contextmanager
def new_csv(path: Path, top: int) -> Iterator[Write]:
    """Yield a function that appends a row to a new CSV file, which is complete or not there.

    Columns: those of `COLUMNS` with the most likely class, then `label_2`, `index_2`,
    `probability_2` and so on for the others of `top`. UTF-8; all texts are in quotes.

    Raises:
        OutputError: The file cannot be written.
    """
    others = [f"{name}_{n}" for n in range(2, top + 1) for name in COLUMNS[1:4]]

    def to_row(values: Sequence[object]) -> bytes:
        text = io.StringIO()
        csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n").writerow(values)
        return text.getvalue().encode()

    def write(file: FilePredictions) -> None:
        classes = [(safe_cell(p.label), p.index, p.probability) for p in file.predictions]
        cells = [*chain(*classes), *[""] * (3 * (top - len(classes)))]
        notes = [safe_cell(file.error or ""), SINGLE_COLOUR if file.single_colour else ""]
        stream.write(to_row([safe_cell(str(file.path)), *cells[:3], *notes, *cells[3:]]))

    with new_file(path) as stream:
        stream.write(to_row([*COLUMNS, *others]))
        yield write


@contextmanager
def new_jsonl(path: Path) -> Iterator[Write]:
    """Yield a function that appends a line of JSON to a new file, which is complete or not there.

    Raises:
        OutputError: The file cannot be written.
    """
    with new_file(path) as stream:
        yield lambda file: stream.write(f"{one_line(jsonable(file))}\n".encode())
