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
    schemas.Stats, schemas.ModelList, schemas.RepositoryEntry, schemas.RepositoryIndexRequest,
)  # fmt: skip
MODEL = "/v2/models/{model}"
VERSIONED_MODEL = MODEL + "/versions/{version}"
INDEX = "/v2/repository/index"
# Paths that answer GET with one document: identifier and summary of the operation, and the type;
# Triton's documentation describes the documents without one.
ONE_DOCUMENT = {
    "/healthz": ("health", "Liveness of the process.", "Live"),
    "/v2/health/live": ("live", "Liveness of the server.", "Live"),
    "/v2/health/ready": ("ready", "Readiness of all models.", "Ready"),
    "/v1/stats": ("stats", "Statistics of the last seconds.", "Stats"),
    "/v2": ("server", "Metadata of the server.", "ServerMetadata"),
    "/v2/models": ("models", "Names of all models.", "ModelList"),
    "/v2/models/stats": ("statistics", "Totals of all models.", ""),
    MODEL: ("model", "Inputs and outputs of a model.", "ModelMetadata"),
    f"{MODEL}/config": ("model_config", "Configuration of a model.", ""),
    f"{MODEL}/stats": ("model_statistics", "Totals of a model.", ""),
}
# Statuses of errors of requests with a body.
BODY_ERRORS = {
    INDEX: ("400", "408", "413"),
    "/v1/classify": ("400", "404", "408", "413", "415", "422"),
    f"{MODEL}/infer": ("400", "404", "408", "413", "415", "422", "501"),
}


def openapi_document(models: Sequence[str]) -> dict[str, Any]:
    """Return the description of a server with these models."""
    text = files("resdeploy.runtime.serving.http").joinpath("openapi.json").read_text("utf-8")
    document: dict[str, Any] = msgspec.json.decode(text)
    _, types = msgspec.json.schema_components(DOCUMENTS, ref_template="#/components/schemas/{name}")
    names = {"enum": list(models)} if models else {}
    document["components"]["schemas"] = {**types, "ModelName": {"type": "string", **names}}
    for path, (identifier, summary, kind) in ONE_DOCUMENT.items():
        schema = _reference("schemas", kind) if kind else {"type": "object"}
        document["paths"][path] = _item(path, identifier, summary, schema)
    entries = {"type": "array", "items": _reference("schemas", "RepositoryEntry")}
    index = _item(INDEX, "repository_index", "State of all models.", entries)
    wanted = _content(_reference("schemas", "RepositoryIndexRequest"))
    index["post"] = {
        **index["get"], "operationId": "repository_index_request", "requestBody": wanted,
        "responses": dict(index["get"]["responses"]),
    }  # fmt: skip
    document["paths"][INDEX] = index
    error = _reference("responses", "Error")
    for path, statuses in BODY_ERRORS.items():
        document["paths"][path]["post"]["responses"].update(dict.fromkeys(statuses, error))
    for item in document["paths"].values():
        for operation in (item[method] for method in ("get", "post") if method in item):
            if "security" not in operation:  # it is no probe
                operation["responses"].update(dict.fromkeys(("403", "429"), error))
    # The same operations with a version in their path; operation identifiers must be unique.
    for path in ("", "/config", "/infer", "/ready", "/stats"):
        item = dict(document["paths"][MODEL + path])
        parameters = [*item.pop("parameters"), {"$ref": "#/components/parameters/Version"}]
        ((method, operation),) = item.items()
        operation = {**operation, "operationId": f"{operation['operationId']}_version"}
        document["paths"][VERSIONED_MODEL + path] = {"parameters": parameters, method: operation}
    return document


def _item(path: str, identifier: str, summary: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Return the description of a path that answers GET with a document."""
    answer = {"description": summary, **_content(schema)}
    if path.startswith(("/healthz", "/v2/health")):  # without a token, and at any time
        operation = {"operationId": identifier, "summary": summary, "security": []}
        responses = dict.fromkeys(("200", "503") if identifier == "ready" else ("200",), answer)
        return {"get": {**operation, "responses": responses}}
    responses = {
        "200": answer,
        "401": _reference("responses", "Unauthorized"),
        "503": _reference("responses", "Unavailable"),
    }
    item: dict[str, Any] = {}
    if path.startswith(MODEL):
        item["parameters"] = [_reference("parameters", "Model")]
        responses["404"] = _reference("responses", "Error")
    item["get"] = {"operationId": identifier, "summary": summary, "responses": responses}
    return item


def _content(schema: dict[str, Any]) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}


def _reference(kind: str, name: str) -> dict[str, str]:
    return {"$ref": f"#/components/{kind}/{name}"}
