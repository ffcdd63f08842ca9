"""The bill of materials names every installed package, in valid CycloneDX."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import jsonschema_rs
from cyclonedx.schema import _res

from resdeploy.bundle.bundle import SBOM, Bundle

SCHEMAS = Path(next(iter(_res.__path__)))


def test_the_bill_of_materials_is_valid_and_complete(tiny_bundle: Bundle) -> None:
    document = json.loads(tiny_bundle.read(SBOM))
    names = {"bom-1.6": "bom-1.6", "spdx": "spdx", "jsf-0.82": "jsf-0.82"}
    schemas = {name: json.loads((SCHEMAS / f"{file}.SNAPSHOT.schema.json").read_text()) for name, file in names.items()}
    schema = schemas.pop("bom-1.6")
    resources = [(other["$id"], other) for other in schemas.values()]
    registry = jsonschema_rs.Registry(resources)
    jsonschema_rs.validator_for(schema, registry=registry).validate(document)
    assert document["metadata"]["component"]["name"] == "tiny.bundle"
    versions = {entry["name"]: entry["version"] for entry in document["components"]}
    for package in ("torch", "onnx", "numpy", "onnxruntime"):
        assert versions[package] == metadata.version(package)
