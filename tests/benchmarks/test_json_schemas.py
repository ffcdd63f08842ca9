"""Tests that the committed JSON Schemas are those of the dataclasses, and are complete."""

from __future__ import annotations

import json
import re

import jsonschema_rs
import pytest

from benchmarks.json_schemas import FOLDER, make_schemas
from tests.results import read_document
from tests.test_layout import TREES


def test_the_committed_schemas_are_up_to_date() -> None:
    committed = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}
    assert committed == make_schemas(), "run python -m benchmarks.json_schemas"


def test_every_result_has_a_schema() -> None:
    named = {
        text
        for path in TREES
        if "benchmarks" not in path.parts
        for text in re.findall(r'SCHEMA\b.*"(resdeploy\..+/\d+)"', path.read_text(), re.IGNORECASE)
    }
    schemas = [json.loads(text)["properties"]["schema"] for text in make_schemas().values()]
    assert sorted(schema["const"] for schema in schemas) == sorted(named)
    assert "resdeploy.predictions/1" in named


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ('"index": 1', "label"),
        ('"label": "a", "index": "one"', "not of type"),
    ],
)
def test_a_schema_refuses_what_a_command_does_not_print(change: str, reason: str) -> None:
    """Without this, a schema that accepts everything would pass every other test."""
    line = (
        '{"schema": "resdeploy.prediction/1", "path": "a", "backend": "b", "artifact": "c",'
        ' "error": null, "single_colour": false,'
        f' "predictions": [{{"probability": 1.0, {change}}}]}}'
    )
    with pytest.raises(jsonschema_rs.ValidationError, match=reason):
        read_document(line)
    assert read_document(line.replace(change, '"index": 1, "label": "a"'))
