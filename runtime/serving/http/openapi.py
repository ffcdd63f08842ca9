"""The OpenAPI 3.1 description of the HTTP interface: `openapi.json` with the types of `schemas`.

Source: https://spec.openapis.org/oas/v3.1.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import msgspec

from resdeploy.runtime.serving import schemas

DOCUMENTS = (
    schemas.Error, schemas.Live, schemas.Ready, schemas.ModelReady, schemas.ServerMetadata,
    schemas.ModelMetadata, schemas.InferRequest, schemas.InferResponse, schemas.Classification,
    schemas.Stats,
)  # fmt: skip
MODEL = "/v2/models/{model}"
VERSIONED_MODEL = MODEL + "/versions/{version}"


def openapi_document(models: Sequence[str]) -> dict[str, Any]:
    """Return the description of a server with these models."""
    text = files("resdeploy.runtime.serving.http").joinpath("openapi.json").read_text("utf-8")
    document: dict[str, Any] = msgspec.json.decode(text)
    _, document["components"]["schemas"] = msgspec.json.schema_components(
        DOCUMENTS, ref_template="#/components/schemas/{name}"
    )
    document["components"]["parameters"]["Model"]["schema"]["enum"] = list(models)
    # The same operations with a version in their path; operation identifiers must be unique.
    for path in ("", "/ready", "/infer"):
        item = dict(document["paths"][MODEL + path])
        parameters = [*item.pop("parameters"), {"$ref": "#/components/parameters/Version"}]
        ((method, operation),) = item.items()
        operation = {**operation, "operationId": f"{operation['operationId']}_version"}
        document["paths"][VERSIONED_MODEL + path] = {"parameters": parameters, method: operation}
    return document
