"""The generator of `docs/schemas`: a JSON Schema for each document that `--json` prints.

    python -m benchmarks.json_schemas

Dataclasses become objects with their fields; the docstrings of fields become descriptions.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec

from resdeploy.bundle.manifest import ExportWarning
from resdeploy.cli.options.console import Failure
from resdeploy.cli.sign import SigningResult
from resdeploy.demo import DemoResult
from resdeploy.export.inspection import CheckpointSummary
from resdeploy.export.noise_analysis import Explanation
from resdeploy.export.pipeline import ExportResult
from resdeploy.export.replace_golden import GoldenReplacement
from resdeploy.export.triton.repository import TritonRepository
from resdeploy.filesystem import write_file
from resdeploy.report.report import Report
from resdeploy.result_files.benchmark import Benchmark
from resdeploy.result_files.comparison import Comparison
from resdeploy.result_files.preprocessing_search import PreprocessingSearch
from resdeploy.result_files.verification import Verification
from resdeploy.runtime.backends.tensorrt.build import BuildReport
from resdeploy.runtime.backends.tensorrt.engine_cache import PruneReport
from resdeploy.runtime.camera import CameraReport
from resdeploy.runtime.diagnosis.doctor import Diagnosis
from resdeploy.runtime.diagnosis.slowdown import Slowdown
from resdeploy.runtime.file_predictions import FilePredictions, PredictionReport
from resdeploy.runtime.serving.server import ServeSummary
from resdeploy.train.run.results import TrainingResult

FOLDER = Path(__file__).parent.parent / "docs" / "schemas"
TYPES: tuple[type[Any], ...] = (
    DemoResult, TrainingResult, CheckpointSummary, PreprocessingSearch, ExportResult,
    GoldenReplacement, TritonRepository, BuildReport, PruneReport, SigningResult, Verification,
    Benchmark, Comparison, Report, PredictionReport, FilePredictions, CameraReport, ServeSummary,
    Explanation, Slowdown, Diagnosis, Failure,
)  # fmt: skip
DIALECT = "https://json-schema.org/draft/2020-12/schema"


@cache
def make_schemas() -> dict[str, str]:
    """Return the text of each file in `docs/schemas` by its name."""
    return {f"{schema_name(kind)}.json": _schema(kind) for kind in TYPES}


def schema_name(kind: Any) -> str:
    """Return the name of a document without its version, such as `predictions`."""
    return re.sub(r"resdeploy\.(.+)/\d+", r"\1", _default(kind))


def _schema(kind: Any) -> str:
    references, parts = msgspec.json.schema_components(
        (kind, ExportWarning),
        schema_hook=lambda path: {"type": "string"},
        ref_template="#/$defs/{name}",
    )
    classes = {each.__name__: each for each in (*_dataclasses(kind), ExportWarning)}
    for name, part in parts.items():
        if name in classes:  # the others are enums
            # A document has all fields; those with a default may be missing where one is read.
            part["required"] = sorted(part["properties"])
            for field, text in _docstrings(classes[name]).items():
                part["properties"][field]["description"] = text
    document = parts.pop(kind.__name__)
    document["properties"]["schema"] = {"const": _default(kind)}
    if kind is not FilePredictions:  # a line of a file
        warnings = {"type": "array", "items": references[1], "description": "Warnings of the run."}
        document["properties"].setdefault("warnings", warnings)
        document["required"] = sorted(document["properties"])
    schema = {"$schema": DIALECT, **document, "$defs": parts}
    return json.dumps(schema, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _default(kind: Any) -> str:
    (schema,) = (field.default for field in dataclasses.fields(kind) if field.name == "schema")
    return str(schema)


def _dataclasses(hint: Any) -> Iterator[Any]:
    """Yield the dataclasses of which a type consists."""
    if dataclasses.is_dataclass(hint):
        yield hint
        inner: Any = get_type_hints(hint).values()
    else:
        inner = get_args(hint)
    for each in inner:
        yield from _dataclasses(each)


def _docstrings(kind: Any) -> dict[str, str]:
    """Return the docstrings of fields, on one line."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    body = getattr(tree, "body", [])
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def main() -> None:
    """Write `docs/schemas`."""
    for name, text in make_schemas().items():
        write_file(FOLDER / name, text.encode())


if __name__ == "__main__":
    main()
