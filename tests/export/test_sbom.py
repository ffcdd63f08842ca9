"""The bill of materials names every installed package, in valid CycloneDX."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import jsonschema_rs
from cyclonedx.schema import _res

from resdeploy.bundle.bundle import SBOM, Bundle

BASE = "http://cyclonedx.org/schema/"
SCHEMAS = Path(next(iter(_res.__path__)))


def test_the_bill_of_materials_is_valid_and_complete(tiny_bundle: Bundle) -> None:
    document = json.loads(tiny_bundle.read(SBOM))
    schema = json.loads((SCHEMAS / "bom-1.6.SNAPSHOT.schema.json").read_text())
    others = ("spdx.SNAPSHOT.schema.json", "jsf-0.82.SNAPSHOT.schema.json")
    resources = [(BASE + name, json.loads((SCHEMAS / name).read_text())) for name in others]
    registry = jsonschema_rs.Registry(resources)
    jsonschema_rs.validator_for(schema, registry=registry).validate(document)
    assert document["metadata"]["component"]["name"] == "tiny.bundle"
    versions = {entry["name"]: entry["version"] for entry in document["components"]}
    for package in ("torch", "onnx", "numpy", "onnxruntime"):
        assert versions[package] == metadata.version(package)
