"""The generator of `docs/schemas`: a JSON Schema for each dataclass that says its `schema`.

    python -m benchmarks.json_schemas

It finds the dataclasses in the sources of the package.
"""

from __future__ import annotations

import inspect
import json
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec

import resdeploy
from resdeploy.bundle.manifest import ExportWarning
from resdeploy.filesystem import write_file
from resdeploy.runtime.file_predictions import FilePredictions
from resdeploy.runtime.scoring.job import PartRecord, ScoringJob

PACKAGE = Path(resdeploy.__file__).parent
FOLDER = PACKAGE.parent / "docs" / "schemas"
DIALECT = "https://json-schema.org/draft/2020-12/schema"


@cache
def make_schemas() -> dict[str, str]:
    """Return the text of each file in `docs/schemas` by its name."""
    folders = (PACKAGE, *(PACKAGE / stage for stage in ("export", "train", "runtime")))  # links
    schemas = {}
    for path in sorted({path for folder in folders for path in folder.rglob("*.py")}):
        if "    schema: str" not in path.read_text(encoding="utf-8"):
            continue
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for kind in filter(inspect.isclass, vars(import_module(name)).values()):
            default = getattr(kind, "__dataclass_fields__", {}).get("schema")
            if default is not None and kind.__module__ == name:
                short = default.default.removeprefix("resdeploy.").split("/")[0]
                schemas[f"{short}.json"] = _schema(kind, default.default)
    return schemas


def _schema(kind: Any, name: str) -> str:
    (_, warning), parts = msgspec.json.schema_components(
        (kind, ExportWarning),
        schema_hook=lambda path: {"type": "string"},
        ref_template="#/$defs/{name}",
    )
    document = parts[kind.__name__]
    document["properties"]["schema"] = {"const": name}
    if kind not in (FilePredictions, ScoringJob, PartRecord):  # lines and files, not documents
        document["properties"].setdefault("warnings", {"type": "array", "items": warning})
    for part in parts.values():
        if "properties" in part:  # a document has all fields; a reader accepts older ones
            part["required"] = sorted(part["properties"])
    schema = {"$schema": DIALECT, **parts.pop(kind.__name__), "$defs": parts}
    return json.dumps(schema, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def main() -> None:
    """Write `docs/schemas`."""
    for name, text in make_schemas().items():
        write_file(FOLDER / name, text.encode())


if __name__ == "__main__":
    main()
