"""The OpenAPI 3.1 description of the HTTP interface; its schemas come from `schemas`.

Source: https://spec.openapis.org/oas/v3.1.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from resdeploy.runtime.serving import schemas
from resdeploy.runtime.serving.service import VERSION

MAX_TIMEOUT_MS = 999_999_999
MAX_CLASSES = 1000
DOCUMENTS = (
    schemas.Error, schemas.Live, schemas.Ready, schemas.ModelReady, schemas.ServerMetadata,
    schemas.ModelMetadata, schemas.InferRequest, schemas.InferResponse, schemas.Classification,
    schemas.Stats,
)  # fmt: skip
BINARY = {"schema": {"type": "string", "format": "binary"}}
HEADERS = (
    ("X-Timeout-Ms", {"type": "integer", "minimum": 0, "maximum": MAX_TIMEOUT_MS},
     "Deadline of the request in milliseconds after its arrival."),
    ("X-Request-ID", {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
     "Identifier that the response and the log repeat."),
)  # fmt: skip
JSON_LENGTH = (
    "Inference-Header-Content-Length", {"type": "integer", "minimum": 0},
    "Length in bytes of the JSON document if binary tensors follow it.",
)  # fmt: skip


def openapi_document(models: Sequence[str]) -> dict[str, Any]:
    """Return the description of a server with these models."""
    _, components = msgspec.json.schema_components(
        DOCUMENTS, ref_template="#/components/schemas/{name}"
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "resdeploy",
            "version": "1",
            "summary": "Image classification over the Open Inference Protocol and for pictures.",
        },
        "paths": {
            "/healthz": _probe("health", "Live", "Liveness of the process."),
            "/v2/health/live": _probe("live", "Live", "Liveness of the server."),
            "/v2/health/ready": _probe("ready", "Ready", "Readiness of all models.", "503"),
            "/v2": {
                "get": _operation("server", "Metadata of the server.", _json("ServerMetadata"))
            },
            **_model_paths("/v2/models/{model}", "", models),
            **_model_paths("/v2/models/{model}/versions/{version}", "_version", models),
            "/v1/classify": {"post": _classify_operation(models)},
            "/v1/stats": {
                "get": _operation("stats", "Statistics of the last seconds.", _json("Stats"))
            },
            "/metrics": {
                "get": _operation(
                    "metrics", "Metrics in the text format of Prometheus.",
                    {"text/plain": {"schema": {"type": "string"}}},
                )
            },
        },
        "security": [{}, {"bearer": []}],
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "responses": {
                "Error": _response("The request is invalid.", _json("Error")),
                "Unauthorized": {
                    **_response("A bearer token is needed.", _json("Error")),
                    "headers": {"WWW-Authenticate": {"schema": {"type": "string"}}},
                },
                "Unavailable": {
                    **_response("The server is not ready or overloaded, or the deadline cannot be "
                                "met.", _json("Error")),
                    "headers": {
                        "Retry-After": {
                            "schema": {"type": "integer"},
                            "description": "Time in seconds after which a retry may succeed.",
                        }
                    },
                },
            },
            "schemas": components,
        },
    }  # fmt: skip


def _json(*names: str) -> dict[str, Any]:
    schemas = [{"$ref": f"#/components/schemas/{name}"} for name in names]
    return {"application/json": {"schema": schemas[0] if len(names) == 1 else {"anyOf": schemas}}}


def _response(description: str, content: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": content}


def _parameter(
    name: str, schema: dict[str, Any], description: str, place: str = "header"
) -> dict[str, Any]:
    return {
        "name": name,
        "in": place,
        "required": place == "path",
        "schema": schema,
        "description": description,
    }


def _probe(identifier: str, schema: str, summary: str, *failures: str) -> dict[str, Any]:
    responses = {status: _response(summary, _json(schema)) for status in ("200", *failures)}
    return {
        "get": {
            "operationId": identifier,
            "summary": summary,
            "security": [],
            "responses": responses,
        }
    }


def _operation(
    identifier: str, summary: str, content: dict[str, Any], *errors: str, **fields: Any
) -> dict[str, Any]:
    return {
        "operationId": identifier,
        "summary": summary,
        **fields,
        "responses": {
            "200": _response(summary, content),
            "401": {"$ref": "#/components/responses/Unauthorized"},
            "503": {"$ref": "#/components/responses/Unavailable"},
            **{status: {"$ref": "#/components/responses/Error"} for status in errors},
        },
    }


def _model_paths(prefix: str, suffix: str, models: Sequence[str]) -> dict[str, Any]:
    """Return the paths below `prefix`; `suffix` makes their operation identifiers unique."""
    parameters = [
        _parameter("model", {"type": "string", "enum": list(models)}, "Name of a model.", "path")
    ]
    if suffix:
        version = {"type": "string", "enum": [VERSION]}
        parameters.append(_parameter("version", version, "Version of the model.", "path"))
    ready = _operation(
        f"model_ready{suffix}", "Readiness of a model.", _json("ModelReady"), "404"
    )  # fmt: skip
    ready["responses"]["503"] = _response(
        "The model is not ready, or there are too many connections.", _json("ModelReady", "Error")
    )
    infer = _operation(
        f"infer{suffix}", "Logits of images.",
        {**_json("InferResponse"), "application/octet-stream": BINARY},
        "400", "404", "408", "413", "415",
        parameters=[_parameter(*header) for header in (*HEADERS, JSON_LENGTH)],
        requestBody={
            "required": True,
            "content": {**_json("InferRequest"), "application/octet-stream": BINARY},
        },
    )  # fmt: skip
    about = _operation(
        f"model{suffix}", "Inputs and outputs of a model.", _json("ModelMetadata"), "404"
    )
    return {
        prefix: {"parameters": parameters, "get": about},
        f"{prefix}/ready": {"parameters": parameters, "get": ready},
        f"{prefix}/infer": {"parameters": parameters, "post": infer},
    }


def _classify_operation(models: Sequence[str]) -> dict[str, Any]:
    top = {"type": "integer", "minimum": 1, "maximum": MAX_CLASSES, "default": 5}
    form = {
        "type": "object", "properties": {"image": BINARY["schema"]}, "required": ["image"],
    }  # fmt: skip
    return _operation(
        "classify", "Most likely classes of pictures.", _json("Classification"),
        "400", "404", "408", "413", "415",
        parameters=[
            _parameter("top", top, "Number of classes per picture.", "query"),
            _parameter("model", {"type": "string"}, f"Name of a model.  [default: {models[0]}]",
                       "query"),
            *(_parameter(*header) for header in HEADERS),
        ],
        requestBody={
            "required": True,
            "content": {
                "multipart/form-data": {"schema": form},
                "image/*": BINARY,
                "application/octet-stream": BINARY,
            },
        },
    )  # fmt: skip
