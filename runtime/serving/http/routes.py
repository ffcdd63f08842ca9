"""The HTTP routes: the Open Inference Protocol, picture classification, the page and metrics.

Handlers raise `RequestError`; the middleware turns it into a response.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import Callable, Coroutine
from importlib.resources import files
from typing import Any, TypeVar

import msgspec
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from resdeploy.runtime.serving.http.body import (
    ByteBudget,
    Disconnected,
    parse_integer,
    read_body,
)
from resdeploy.runtime.serving.http.openapi import MODEL, VERSIONED_MODEL, openapi_document
from resdeploy.runtime.serving.http.uploads import Upload, read_uploads
from resdeploy.runtime.serving.open_inference import encode_output, parse_request
from resdeploy.runtime.serving.request_errors import UnsupportedMediaType
from resdeploy.runtime.serving.request_log import RequestRecord
from resdeploy.runtime.serving.schemas import (
    Classification,
    InferResponse,
    Live,
    ModelReady,
    PictureClasses,
    Ready,
    StageMilliseconds,
)
from resdeploy.runtime.serving.service import VERSION, ClassificationResult, Service

JSON_LENGTH = "Inference-Header-Content-Length"
MAX_CLASSES = 1000
MAX_TIMEOUT_MS = 999_999_999
# Larger forms are parsed in a thread, because python-multipart is pure Python.
MAX_INLINE_FORM_BYTES = 1 << 20

Result = TypeVar("Result")


def make_app(service: Service) -> ASGIApp:
    """Return an ASGI application with all routes."""
    api = _Api(service)
    paths: dict[str, tuple[str, Callable[[Request], Coroutine[Any, Any, Response]]]] = {
        "/": ("GET", api.page),
        "/healthz": ("GET", api.live),
        "/metrics": ("GET", api.metrics),
        "/openapi.json": ("GET", api.openapi),
        "/v1/classify": ("POST", api.classify),
        "/v1/stats": ("GET", api.stats),
        "/v2": ("GET", api.server_metadata),
        "/v2/health/live": ("GET", api.live),
        "/v2/health/ready": ("GET", api.ready),
    }
    for prefix in (MODEL, VERSIONED_MODEL):
        paths[prefix] = ("GET", api.model_metadata)
        paths[prefix + "/ready"] = ("GET", api.model_ready)
        paths[prefix + "/infer"] = ("POST", api.infer)
    routes = [Route(path, call, methods=[method]) for path, (method, call) in paths.items()]
    router = Router(routes, redirect_slashes=False)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = router  # makes the router raise an exception for an unknown path
        await router(scope, receive, send)

    return app


def page_policy(page: bytes) -> str:
    """Return the policy that lets the page run its own script and style and use this server only.

    Source: Content Security Policy Level 3, https://www.w3.org/TR/2024/WD-CSP3-20241017/
    """
    sources = {}
    for tag in (b"script", b"style"):
        found = re.search(b"<%s>(.*?)</%s>" % (tag, tag), page, re.DOTALL)
        digest = hashlib.sha256(found[1] if found else b"").digest()
        sources[tag.decode()] = f"'sha256-{base64.b64encode(digest).decode()}'"
    return (
        f"default-src 'none'; script-src {sources['script']}; style-src {sources['style']}; "
        "img-src blob:; media-src blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class _Api:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._config = service.config
        self._budget = ByteBudget(service.config.bodies_mib << 20)
        self._page = files("resdeploy.runtime.serving.http").joinpath("page.html").read_bytes()
        self._page_headers = {
            "content-security-policy": page_policy(self._page),
            "permissions-policy": "camera=(self)",
            "referrer-policy": "no-referrer",
        }
        self._openapi = msgspec.json.encode(openapi_document(list(service.models)))

    async def live(self, request: Request) -> Response:
        return _json_response(Live(live=True))

    async def ready(self, request: Request) -> Response:
        ready = self._service.readiness.is_server_ready()
        return _json_response(Ready(ready=ready), 200 if ready else 503)

    async def server_metadata(self, request: Request) -> Response:
        return _json_response(self._service.server_metadata())

    async def model_metadata(self, request: Request) -> Response:
        model = self._service.model(**_model_and_version(request))
        return _json_response(self._service.model_metadata(model))

    async def model_ready(self, request: Request) -> Response:
        model = self._service.model(**_model_and_version(request))
        ready = self._service.readiness.is_model_ready(model)
        return _json_response(ModelReady(name=model.name, ready=ready), 200 if ready else 503)

    async def infer(self, request: Request) -> Response:
        deadline = self._deadline(request)
        model = self._service.model(**_model_and_version(request))
        record = _update_record(request, "infer", model.name)
        _check_not_compressed(request)
        self._service.check_capacity(model)
        with self._budget.reservation() as reserve:
            body = await self._read_body(request, reserve)
            loaded = model.loaded_bundle()
            length = self._json_length(request)
            parsed = parse_request(body, length, loaded.image_size, len(loaded.labels))
            record.images = len(parsed.images)
            if parsed.timeout is not None:
                deadline = min(deadline, record.arrived + parsed.timeout)
            result = await _cancel_on_disconnect(
                request, self._service.infer(loaded, parsed, deadline)
            )
        output, binary = encode_output(result.answer.logits, loaded.labels, parsed.output)
        document = InferResponse(
            model_name=model.name,
            model_version=VERSION,
            id=parsed.id or msgspec.UNSET,
            parameters=result.parameters,
            outputs=[output],
        )
        if not parsed.output.binary:
            return _json_response(document)
        head = msgspec.json.encode(document)
        headers = {JSON_LENGTH: str(len(head))}
        return Response(head + binary, headers=headers, media_type="application/octet-stream")

    async def classify(self, request: Request) -> Response:
        deadline = self._deadline(request)
        top = parse_integer(request.query_params.get("top", "5"), "top", 1, MAX_CLASSES)
        model = self._service.model(request.query_params.get("model", ""))
        record = _update_record(request, "classify", model.name)
        _check_not_compressed(request)
        self._service.check_capacity(model, decode=True)
        with self._budget.reservation() as reserve:
            body = await self._read_body(request, reserve)
            uploads = await self._read_uploads(request.headers.get("content-type", ""), body)
            record.images = len(uploads)
            contents = [upload.data for upload in uploads]
            result = await _cancel_on_disconnect(
                request, self._service.classify(model, contents, top, deadline)
            )
        return _json_response(_classification(model.name, uploads, result))

    async def stats(self, request: Request) -> Response:
        return _json_response(self._service.stats())

    async def metrics(self, request: Request) -> Response:
        metrics = self._service.metrics.exposition(self._service.states())
        return Response(metrics, media_type=CONTENT_TYPE_LATEST)

    async def openapi(self, request: Request) -> Response:
        return Response(self._openapi, media_type="application/json")

    async def page(self, request: Request) -> Response:
        return Response(self._page, headers=self._page_headers, media_type="text/html")

    async def _read_body(self, request: Request, reserve: Callable[[int], None]) -> bytes:
        max_bytes, seconds = self._config.max_body, self._config.body_seconds
        return await read_body(request, reserve, max_bytes, seconds)

    async def _read_uploads(self, content_type: str, body: bytes) -> list[Upload]:
        max_files = self._config.max_files
        if len(body) <= MAX_INLINE_FORM_BYTES:
            return read_uploads(content_type, body, max_files)
        return await asyncio.to_thread(read_uploads, content_type, body, max_files)

    def _deadline(self, request: Request) -> float:
        """Return the deadline on the event loop's clock, from the header or the configuration."""
        arrived: float = request.scope["record"].arrived
        milliseconds = self._config.timeout_ms
        if (text := request.headers.get("x-timeout-ms")) is not None:
            asked = parse_integer(text, "the header X-Timeout-Ms", 0, MAX_TIMEOUT_MS)
            milliseconds = min(milliseconds, asked)  # a client may only shorten its deadline
        return arrived + milliseconds / 1000

    def _json_length(self, request: Request) -> int | None:
        if (text := request.headers.get(JSON_LENGTH)) is None:
            return None
        return parse_integer(text, f"the header {JSON_LENGTH}", 0, self._config.max_body)


async def _cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Return the result of `work`, but cancel it when the client disconnects."""
    task = asyncio.ensure_future(work)
    disconnect = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait({task, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Disconnected
        return task.result()
    finally:
        disconnect.cancel()
        task.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json_response(document: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(document), status, media_type="application/json")


def _model_and_version(request: Request) -> dict[str, str]:
    path = request.path_params
    return {"name": path["model"], "version": path.get("version", "")}


def _update_record(request: Request, endpoint: str, model: str) -> RequestRecord:
    record: RequestRecord = request.scope["record"]
    record.endpoint, record.model = endpoint, model
    return record


def _check_not_compressed(request: Request) -> None:
    if request.headers.get("content-encoding", "identity") != "identity":
        raise UnsupportedMediaType("compressed bodies are not supported")


def _classification(
    model: str, uploads: list[Upload], result: ClassificationResult
) -> Classification:
    answer = result.inference.answer
    return Classification(
        model=model,
        backend=answer.backend,
        artifact=answer.artifact,
        precision=result.inference.loaded.precision(answer.artifact).value,
        batch=answer.batch,
        milliseconds=StageMilliseconds(
            decode=1000 * result.decode_seconds,
            queue=1000 * answer.queue_seconds,
            inference=1000 * answer.inference_seconds,
        ),
        results=[
            PictureClasses(image=upload.name, predictions=predictions)
            for upload, predictions in zip(uploads, result.predictions)
        ],
    )
