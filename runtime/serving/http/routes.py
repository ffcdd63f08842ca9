"""The routes: the Open Inference Protocol, pictures, the page, metrics.

Handlers raise `RequestError`; the gateway makes it an answer.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import Callable, Coroutine, Mapping
from importlib.resources import files
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from resdeploy.runtime.serving.http.body import ByteBudget, Disconnected, read_body
from resdeploy.runtime.serving.http.uploads import Upload, read_uploads
from resdeploy.runtime.serving.metrics import CONTENT_TYPE
from resdeploy.runtime.serving.open_inference import encode_response, parse_request
from resdeploy.runtime.serving.request_errors import RequestError, UnsupportedMediaType
from resdeploy.runtime.serving.request_log import RequestRecord
from resdeploy.runtime.serving.service import ClassificationResult, Service

JSON_LENGTH = "inference-header-content-length"
TIMEOUT = "x-timeout-ms"
MOST_CLASSES = 1000
# Forms are parsed in Python: beside the event loop from this size on.
SMALL_FORM = 1 << 20

Result = TypeVar("Result")


def make_app(service: Service) -> ASGIApp:
    """All paths, as an ASGI application."""
    api = _Api(service)
    model = "/v2/models/{model}"
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
    for prefix in (model, model + "/versions/{version}"):
        paths[prefix] = ("GET", api.model_metadata)
        paths[prefix + "/ready"] = ("GET", api.model_ready)
        paths[prefix + "/infer"] = ("POST", api.infer)
    routes = [Route(path, call, methods=[method]) for path, (method, call) in paths.items()]
    router = Router(routes, redirect_slashes=False)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = router  # so that the router raises what it cannot find
        await router(scope, receive, send)

    return app


def page_policy(page: bytes) -> str:
    """What the page may do: run its own script and style, and talk to this server.

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
        folder = files("resdeploy.runtime.serving.http")
        self._page = folder.joinpath("page.html").read_bytes()
        self._page_headers = {
            "content-security-policy": page_policy(self._page),
            "permissions-policy": "camera=(self)",
            "referrer-policy": "no-referrer",
        }
        document = json.loads(folder.joinpath("openapi.json").read_bytes())
        for path in document["paths"].values():
            for parameter in path.get("parameters", ()):
                if parameter["name"] == "model":
                    parameter["schema"]["enum"] = list(service.models)
        self._openapi = document

    async def live(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(self, request: Request) -> Response:
        ready = self._service.ready
        return JSONResponse({"ready": ready}, status_code=200 if ready else 503)

    async def server_metadata(self, request: Request) -> Response:
        return JSONResponse(self._service.server_metadata())

    async def model_metadata(self, request: Request) -> Response:
        model = self._service.model(**_names(request))
        return JSONResponse(self._service.model_metadata(model))

    async def model_ready(self, request: Request) -> Response:
        model = self._service.model(**_names(request))
        ready = model.ready and not self._service.draining
        document = {"name": model.name, "ready": ready}
        return JSONResponse(document, status_code=200 if ready else 503)

    async def infer(self, request: Request) -> Response:
        deadline = self._deadline(request)
        model = self._service.model(**_names(request))
        record = _record(request, "infer", model.name)
        _refuse_encoded(request)
        self._service.check(model)
        with self._budget.share() as share:
            body = await read_body(request, share, self._config.max_body, self._config.body_seconds)
            generation = model.generation()
            labels = generation.labels
            parsed = parse_request(body, _json_length(request), generation.image_size, len(labels))
            record.images = len(parsed.images)
            if parsed.timeout is not None:
                deadline = min(deadline, self._after(request, parsed.timeout))
            inferred = await _unless_disconnected(
                request, self._service.infer(generation, parsed, deadline)
            )
        head = inferred.head(model.name, parsed.id)
        document, binary = encode_response(head, inferred.answer.logits, labels, parsed.wanted)
        if not parsed.wanted.binary:
            return Response(document, media_type="application/json")
        headers = {JSON_LENGTH: str(len(document))}
        return Response(document + binary, headers=headers, media_type="application/octet-stream")

    async def classify(self, request: Request) -> Response:
        deadline = self._deadline(request)
        top = _top(request.query_params)
        model = self._service.model(request.query_params.get("model", ""))
        record = _record(request, "classify", model.name)
        _refuse_encoded(request)
        self._service.check(model, decode=True)
        with self._budget.share() as share:
            body = await read_body(request, share, self._config.max_body, self._config.body_seconds)
            uploads = await self._uploads(request.headers.get("content-type", ""), body)
            record.images = len(uploads)
            contents = [upload.data for upload in uploads]
            classified = await _unless_disconnected(
                request, self._service.classify(model, contents, top, deadline)
            )
        return JSONResponse(_classification(model.name, uploads, classified))

    async def stats(self, request: Request) -> Response:
        states = self._service.states()
        models = [
            {
                "name": name,
                "ready": state.ready and not self._service.draining,
                "queue": state.depth,
                "backend": state.backend,
                "artifact": state.artifact,
            }
            for name, state in states.items()
        ]
        return JSONResponse({"models": models, **self._service.metrics.recent()})

    async def metrics(self, request: Request) -> Response:
        return Response(self._service.metrics.exposition(), media_type=CONTENT_TYPE)

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(self._openapi)

    async def page(self, request: Request) -> Response:
        return Response(self._page, headers=self._page_headers, media_type="text/html")

    async def _uploads(self, content_type: str, body: bytes) -> list[Upload]:
        most = self._config.max_files
        if len(body) <= SMALL_FORM:
            return read_uploads(content_type, body, most)
        return await asyncio.to_thread(read_uploads, content_type, body, most)

    def _deadline(self, request: Request) -> float:
        """On the event loop's clock: from when the request came, as it asks, or as configured."""
        text = request.headers.get(TIMEOUT)
        if text is None:
            return self._after(request, self._config.timeout_ms / 1000)
        if not text.isascii() or not text.isdigit() or not 1 <= len(text) <= 9:
            raise RequestError("the header X-Timeout-Ms must be an integer of milliseconds")
        return self._after(request, int(text) / 1000)

    def _after(self, request: Request, seconds: float) -> float:
        arrived: float = request.scope["record"].arrived
        return arrived + seconds


async def _unless_disconnected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Do the work, but stop as soon as the client is gone."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Disconnected
        return task.result()
    finally:
        gone.cancel()
        task.cancel()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _names(request: Request) -> dict[str, str]:
    """The path's model and version."""
    return {
        "name": request.path_params["model"],
        "version": request.path_params.get("version", ""),
    }


def _record(request: Request, endpoint: str, model: str) -> RequestRecord:
    record: RequestRecord = request.scope["record"]
    record.endpoint, record.model = endpoint, model
    return record


def _refuse_encoded(request: Request) -> None:
    if request.headers.get("content-encoding", "identity") != "identity":
        raise UnsupportedMediaType("compressed bodies are not read here")


def _json_length(request: Request) -> int | None:
    text = request.headers.get(JSON_LENGTH)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 12:
        raise RequestError("the header Inference-Header-Content-Length is no number")
    return int(text)


def _top(query: Mapping[str, str]) -> int:
    text = query.get("top", "5")
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= MOST_CLASSES:
        raise RequestError(f"top must be an integer from 1 to {MOST_CLASSES}")
    return int(text)


def _classification(
    model: str, uploads: list[Upload], classified: ClassificationResult
) -> dict[str, Any]:
    answer = classified.inferred.answer
    return {
        "model": model,
        "backend": answer.backend,
        "artifact": answer.artifact,
        "precision": classified.inferred.generation.precision(answer.artifact).value,
        "batch": answer.batch,
        "milliseconds": {
            "decode": 1000 * classified.decode_seconds,
            "queue": 1000 * answer.queue_seconds,
            "inference": 1000 * answer.inference_seconds,
        },
        "results": [
            {
                "image": upload.name,
                "predictions": [
                    {"label": one.label, "index": one.index, "probability": one.probability}
                    for one in predictions
                ],
            }
            for upload, predictions in zip(uploads, classified.predictions)
        ],
    }
