"""The OpenAPI document: complete, without dangling references, and true to the responses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from resdeploy.runtime.serving import schemas
from resdeploy.runtime.serving.http.routes import MAX_CLASSES, MAX_TIMEOUT_MS
from resdeploy.runtime.serving.request_errors import NoAnswer
from resdeploy.runtime.serving.request_log import REQUEST_ID
from resdeploy.runtime.serving.service import VERSION
from tests.serving_process import ServerProcess, form, picture


@pytest.fixture(scope="module")
def document(server: ServerProcess) -> dict[str, Any]:
    reply: dict[str, Any] = server.ask("/openapi.json").json
    return reply


def test_every_reference_has_a_target(document: dict[str, Any]) -> None:
    text = json.dumps(document)
    references = {part.split('"')[0] for part in text.split('"$ref": "#/')[1:]}
    assert len(references) > 10
    for reference in references:
        target: Any = document
        for key in reference.split("/"):
            target = target[key]
        assert target


def test_every_path_is_answered(document: dict[str, Any], server: ServerProcess) -> None:
    for path, operations in document["paths"].items():
        method = "GET" if "get" in operations else "POST"
        filled = path.replace("{model}", "tiny").replace("{version}", "1")
        assert server.ask(filled, method=method).status not in (404, 405), path


def test_operation_identifiers_are_unique(document: dict[str, Any]) -> None:
    identifiers = [
        operation["operationId"]
        for operations in document["paths"].values()
        for method, operation in operations.items()
        if method != "parameters"
    ]
    assert len(identifiers) == len(set(identifiers))


def test_limits_are_those_of_the_code(document: dict[str, Any]) -> None:
    parameters = document["components"]["parameters"]
    top = document["paths"]["/v1/classify"]["post"]["parameters"][0]
    assert (top["name"], top["schema"]["maximum"]) == ("top", MAX_CLASSES)
    assert parameters["Timeout"]["schema"]["maximum"] == MAX_TIMEOUT_MS
    assert parameters["RequestId"]["schema"]["pattern"] == f"^{REQUEST_ID.pattern.decode()}$"
    assert parameters["Version"]["schema"]["enum"] == [VERSION]
    reference = {"$ref": "#/components/schemas/ModelName"}
    model = document["paths"]["/v1/classify"]["post"]["parameters"][1]
    assert model["schema"] == parameters["Model"]["schema"] == reference
    assert document["components"]["schemas"]["ModelName"]["enum"] == ["tiny"]


def test_a_form_has_fields_of_any_name(
    document: dict[str, Any], server: ServerProcess, image_data: Path
) -> None:
    validator = pytest.importorskip("jsonschema_rs").validator_for
    content = document["paths"]["/v1/classify"]["post"]["requestBody"]["content"]
    schema = content["multipart/form-data"]["schema"]
    assert schema["additionalProperties"] == {"type": "string", "format": "binary"}
    for names in (["a", "b"], ["image"], []):
        reply = server.ask("/v1/classify", *form(*((name, picture(image_data)) for name in names)))
        is_valid = validator(schema).is_valid(dict.fromkeys(names, ""))
        assert is_valid == (reply.status == 200), names


SHARED = json.dumps({
    "inputs": [{"name": "images", "datatype": "UINT8", "shape": [1, 1, 1, 3],
                "parameters": {"shared_memory_region": "a"}}]
})  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/v1/stats", "", {"Host": "evil.example"}, 403),
        ("/v2/models/{model}", "", {"Host": "evil.example"}, 403),
        ("/v2/models/{model}/infer", SHARED, {}, 501),
        ("/v2/models/{model}/infer", "{}", {"Content-Encoding": "gzip"}, 415),
        ("/v2/repository/index", "[", {}, 400),
        ("/v2/repository/index", "x" * 2000, {}, 413),
    ],
)
def test_errors_are_documented(
    document: dict[str, Any],
    server: ServerProcess,
    path: str,
    body: str,
    headers: dict[str, str],
    status: int,
) -> None:
    filled = path.replace("{model}", "tiny")
    assert server.ask(filled, body.encode() or None, headers).status == status
    operation = document["paths"][path]["post" if body else "get"]
    assert operation["responses"][str(status)] == {"$ref": "#/components/responses/Error"}


def test_a_model_without_an_answer_is_documented(document: dict[str, Any]) -> None:
    for path in (
        "/v1/classify",
        "/v2/models/{model}/infer",
        "/v2/models/{model}/versions/{version}/infer",
    ):
        assert str(NoAnswer.status) in document["paths"][path]["post"]["responses"]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/healthz", schemas.Live),
        ("/v2/health/ready", schemas.Ready),
        ("/v2", schemas.ServerMetadata),
        ("/v2/models/tiny", schemas.ModelMetadata),
        ("/v2/models/tiny/ready", schemas.ModelReady),
        ("/v2/models/none", schemas.Error),
        ("/v1/stats", schemas.Stats),
        ("/v2/models", schemas.ModelList),
        ("/v2/repository/index", list[schemas.RepositoryEntry]),
    ],
)
def test_responses_have_the_documented_type(server: ServerProcess, path: str, kind: Any) -> None:
    reply = msgspec.json.decode(server.ask(path).body, type=kind)
    assert msgspec.json.encode(reply) + b"\n" == server.ask(path).body or path == "/v1/stats"


def test_a_classification_has_the_documented_type(server: ServerProcess, image_data: Path) -> None:
    body = server.ask("/v1/classify", picture(image_data)).body
    msgspec.json.decode(body, type=schemas.Classification)
