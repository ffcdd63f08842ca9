"""The HTTP routes: the Open Inference Protocol, picture classification, the page and metrics.

Handlers raise `RequestError`; the middleware turns it into a response.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.resources import files
from typing import Any, TypeVar

import msgspec
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from resdeploy.images.preprocessing import height_and_width
from resdeploy.predictions import top_predictions
from resdeploy.readable_text import readable
from resdeploy.runtime.serving.batching.interface import Answer
from resdeploy.runtime.serving.http.body import (
    Body,
    ByteBudget,
    Disconnected,
    Reservation,
    parse_integer,
    read_body,
)
from resdeploy.runtime.serving.http.connection_table import client_network
from resdeploy.runtime.serving.http.docs_page import (
    EXAMPLE,
    IMAGE_SIZE,
    DocsPage,
    example_answer,
    style_of,
)
from resdeploy.runtime.serving.http.host_check import AUTHORITY
from resdeploy.runtime.serving.http.openapi import MODEL, VERSIONED_MODEL, openapi_document
from resdeploy.runtime.serving.http.responses import json_response, page_policy, page_response
from resdeploy.runtime.serving.http.uploads import MAX_SHOWN, Upload, read_uploads
from resdeploy.runtime.serving.interruptible import interruptible
from resdeploy.runtime.serving.open_inference import ParsedRequest, encode_output, parse_request
from resdeploy.runtime.serving.request_errors import (
    DeadlineExceeded,
    NotSupported,
    QueueFull,
    RequestError,
    Unavailable,
    UnsupportedMediaType,
)
from resdeploy.runtime.serving.request_log import OK, PARTIAL, RequestRecord
from resdeploy.runtime.serving.schemas import (
    Classification,
    InferResponse,
    Live,
    ModelList,
    ModelReady,
    PictureClasses,
    Ready,
    RepositoryIndexRequest,
    StageMilliseconds,
    json_line,
)
from resdeploy.runtime.serving.service import VERSION, InferenceResult, Service
from resdeploy.runtime.serving.triton.refusals import REFUSED_PATHS

JSON_LENGTH = "Inference-Header-Content-Length"
MAX_CLASSES = 1000
MAX_TIMEOUT_MS = 999_999_999
# Larger documents, forms and responses are converted in a thread: these take about 2 ms.
MAX_INLINE_BYTES = 256 << 10
# In JSON. An answer of 64 pictures with 1000 classes each is 6 MB and takes 0.1 s or more.
BYTES_PER_LOGIT, BYTES_PER_CLASS = 20, 100
MAX_QUERY_BYTES = 1024  # 32 KiB of parameters would take 50 ms or more
MAX_INDEX_BYTES = 1024  # of a request for the index, which has one field
MAX_CONVERSIONS = 32  # that run or wait; one of the largest JSON document takes about 0.3 s

Result = TypeVar("Result")


def make_app(service: Service, *, needs_token: bool) -> ASGIApp:
    """Return an ASGI application with all routes; `needs_token` if clients need a bearer token."""
    api = _Api(service, needs_token=needs_token)
    paths: dict[str, tuple[str, Callable[[Request], Coroutine[Any, Any, Response]]]] = {
        "/v1/classify": ("POST", api.classify),  # the router tries them in order
        "/": ("GET", api.page),
        "/docs": ("GET", api.docs),
        "/healthz": ("GET", api.live),
        "/metrics": ("GET", api.metrics),
        "/openapi.json": ("GET", api.openapi),
        "/v1/stats": ("GET", api.stats),
        "/v2": ("GET", api.server_metadata),
        "/v2/health/live": ("GET", api.live),
        "/v2/health/ready": ("GET", api.ready),
        "/v2/models": ("GET", api.models),
        "/v2/models/stats": ("GET", api.model_statistics),
        "/v2/repository/index": ("GET POST", api.repository_index),
    }
    for prefix in (MODEL, VERSIONED_MODEL):
        paths[prefix] = ("GET", api.model_metadata)
        paths[prefix + "/config"] = ("GET", api.model_config)
        paths[prefix + "/infer"] = ("POST", api.infer)
        paths[prefix + "/ready"] = ("GET", api.model_ready)
        paths[prefix + "/stats"] = ("GET", api.model_statistics)
    routes = [Route(path, call, methods=method.split()) for path, (method, call) in paths.items()]
    routes += [
        Route(path, _refusal(reason), methods=["GET", "POST"])
        for path, reason in REFUSED_PATHS.items()
    ]
    router = Router(routes, redirect_slashes=False)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = router  # makes the router raise an exception for an unknown path
        await router(scope, receive, send)

    return app


class _Api:
    def __init__(self, service: Service, *, needs_token: bool) -> None:
        self._service = service
        self._config = service.config
        self._budget = ByteBudget(service.config.bodies_mib << 20)
        # One thread: each holds Python's lock for milliseconds, and the event loop needs it, too.
        self._converter = ThreadPoolExecutor(1, thread_name_prefix="convert")
        self._conversions = 0
        self._page = files("resdeploy.runtime.serving.http").joinpath("page.html").read_bytes()
        self._openapi = json_line(openapi_document(list(service.models)))
        self._policy = page_policy(self._page)
        # `/docs` is public: if clients need a token, it names no model.
        self._shown = [] if needs_token else list(service.models)
        style = style_of(self._page.decode())
        self._docs = DocsPage(style, openapi_document([]), needs_token=needs_token)

    async def live(self, request: Request) -> Response:
        return json_response(Live(live=True))

    async def ready(self, request: Request) -> Response:
        ready = self._service.readiness.is_server_ready()
        return json_response(Ready(ready=ready), 200 if ready else 503)

    async def server_metadata(self, request: Request) -> Response:
        return json_response(self._service.server_metadata())

    async def model_metadata(self, request: Request) -> Response:
        model = self._service.model(**_model_and_version(request))
        return json_response(self._service.model_metadata(model))

    async def model_ready(self, request: Request) -> Response:
        model = self._service.model(**_model_and_version(request))
        ready = self._service.readiness.is_model_ready(model)
        return json_response(ModelReady(name=model.name, ready=ready), 200 if ready else 503)

    async def model_config(self, request: Request) -> Response:
        model = self._service.model(**_model_and_version(request))
        return json_response(self._service.model_config(model))

    async def model_statistics(self, request: Request) -> Response:
        return json_response(self._service.model_statistics(**_model_and_version(request)))

    async def models(self, request: Request) -> Response:
        return json_response(ModelList(list(self._service.models)))

    async def repository_index(self, request: Request) -> Response:
        network = client_network(request.scope["record"].client)
        with self._budget.reservation(network) as reserve:
            seconds = self._config.body_seconds
            body = await read_body(request, reserve, MAX_INDEX_BYTES, seconds)
        try:
            wanted = msgspec.json.decode(bytes(body) or b"{}", type=RepositoryIndexRequest)
        except ValueError as error:
            raise RequestError(f"the request is invalid: {error}") from error
        return json_response(self._service.repository_index(ready=wanted.ready))

    async def infer(self, request: Request) -> Response:
        deadline = self._deadline(request)
        model = self._service.model(**_model_and_version(request))
        record = _update_record(request, "infer", model.name)
        _check_not_compressed(request)
        network = client_network(record.client)
        self._service.check_capacity(model, network)
        with self._budget.reservation(network) as reserve:
            body = await self._read_body(request, reserve)
            loaded = model.loaded_bundle()
            length = self._json_length(request)
            size = len(body) if length is None else length
            parsed = await self._in_turn(
                size, deadline, parse_request, body, length, loaded.image_size, len(loaded.labels)
            )
            record.images = len(parsed.images)
            if parsed.timeout is not None:
                deadline = min(deadline, record.arrived + parsed.timeout)
            result = await _cancel_on_disconnect(
                request, self._service.infer(loaded, parsed, deadline, network)
            )
        size = _answer_bytes(result.answer, parsed.output.classes)
        return await self._in_turn(size, deadline, _inference, model.name, parsed, result)

    async def classify(self, request: Request) -> Response:
        deadline = self._deadline(request)
        if len(request.scope["query_string"]) > MAX_QUERY_BYTES:
            raise RequestError(f"the query is longer than {MAX_QUERY_BYTES} bytes")
        query = request.query_params
        if len(query.multi_items()) > len(query):
            raise RequestError("a parameter of the query occurs twice")
        if unknown := set(query) - {"model", "top"}:
            name = readable(min(unknown))[:MAX_SHOWN]
            raise RequestError(f"the query has no parameter '{name}'; it has model and top")
        top = parse_integer(query.get("top", "5"), "top", 1, MAX_CLASSES)
        model = self._service.model(query.get("model", ""))
        record = _update_record(request, "classify", model.name)
        _check_not_compressed(request)
        network = client_network(record.client)
        self._service.check_capacity(model, network, decode=True)
        with self._budget.reservation(network) as reserve:
            body = await self._read_body(request, reserve)
            kind, max_files = request.headers.get("content-type", ""), self._config.max_files
            # A picture that is the body needs no search for its end.
            size = len(body) if "form" in kind.lower() else 0
            uploads = await self._in_turn(size, deadline, read_uploads, kind, body, max_files)
            record.images = len(uploads)
            contents = [upload.data for upload in uploads]
            result = await _cancel_on_disconnect(
                request, self._service.classify(model, contents, deadline, network)
            )
        record.images = len(result.answer.logits)
        record.outcome = OK if record.images == len(uploads) else PARTIAL
        size = _answer_bytes(result.answer, top)
        return await self._in_turn(
            size, deadline, _classification, model.name, uploads, top, result
        )

    async def stats(self, request: Request) -> Response:
        return json_response(self._service.stats())

    async def metrics(self, request: Request) -> Response:
        metrics = self._service.metrics.exposition(self._service.states())
        return Response(metrics, media_type=CONTENT_TYPE_LATEST)

    async def openapi(self, request: Request) -> Response:
        return Response(self._openapi, media_type="application/json")

    async def page(self, request: Request) -> Response:
        return page_response(self._page, self._policy)

    async def docs(self, request: Request) -> Response:
        host = request.headers.get("host", "")
        host = host if AUTHORITY.fullmatch(host.encode()) else "localhost:8000"
        url = f"{request.scope.get('scheme', 'http')}://{host}"
        size, example = IMAGE_SIZE, EXAMPLE
        if self._shown:
            with suppress(Unavailable):
                model = self._service.model()
                loaded = model.loaded_bundle()
                size = height_and_width(loaded.image_size)
                if instance := model.active_instance:
                    used = instance.artifact
                    precision = loaded.precision(used).value
                    example = example_answer(
                        model.name, loaded.labels, instance.backend, used, precision
                    )
        page = self._docs.render(url, self._shown, size, example)
        return page_response(page, self._policy)

    async def _read_body(self, request: Request, reservation: Reservation) -> Body:
        max_bytes, seconds = self._config.max_body, self._config.body_seconds
        return await read_body(request, reservation, max_bytes, seconds)

    async def _in_turn(
        self, size: int, deadline: float, function: Callable[..., Result], *arguments: Any
    ) -> Result:
        """Return the result of a conversion; those of many bytes run one at a time in a thread.

        Raises:
            QueueFull, DeadlineExceeded: The conversion would have to wait too long.
        """
        if size <= MAX_INLINE_BYTES:
            return function(*arguments)

        def convert_in_time() -> Result:
            if time.monotonic() > deadline:
                raise DeadlineExceeded("the deadline passed before the request was converted")
            return function(*arguments)

        if self._conversions >= MAX_CONVERSIONS:
            raise QueueFull("too many large documents at once")
        self._conversions += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._converter, convert_in_time)
        finally:
            self._conversions -= 1

    def _deadline(self, request: Request) -> float:
        """Return the deadline on the event loop's clock; a client can only shorten it."""
        arrived: float = request.scope["record"].arrived
        milliseconds = self._config.timeout_ms
        if (text := request.headers.get("x-timeout-ms")) is not None:
            shorter = parse_integer(text, "the header X-Timeout-Ms", 0, MAX_TIMEOUT_MS)
            milliseconds = min(shorter, milliseconds)
        return arrived + milliseconds / 1000

    def _json_length(self, request: Request) -> int | None:
        if (text := request.headers.get(JSON_LENGTH)) is None:
            return None
        return parse_integer(text, f"the header {JSON_LENGTH}", 0, self._config.max_body)


async def _cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Return the result of `work`, but cancel it when the client disconnects."""

    async def wait_for_disconnect() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        interrupt(Disconnected())

    with interruptible(math.inf, Disconnected()) as interrupt:
        disconnect = asyncio.ensure_future(wait_for_disconnect())
        try:
            return await work
        finally:
            disconnect.cancel()


def _model_and_version(request: Request) -> dict[str, str]:
    path = request.path_params
    return {"name": path.get("model", ""), "version": path.get("version", "")}


def _refusal(reason: str) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    async def refuse(request: Request) -> Response:
        raise NotSupported(reason)

    return refuse


def _update_record(request: Request, endpoint: str, model: str) -> RequestRecord:
    record: RequestRecord = request.scope["record"]
    record.endpoint, record.model = endpoint, model
    return record


def _check_not_compressed(request: Request) -> None:
    if request.headers.get("content-encoding", "identity") != "identity":
        raise UnsupportedMediaType("compressed bodies are not supported")


def _answer_bytes(answer: Answer, classes: int) -> int:
    """Return about how many bytes of JSON hold the logits or classes; both take time."""
    images, logits = answer.logits.shape
    return int(images * (BYTES_PER_LOGIT * logits + BYTES_PER_CLASS * min(classes, logits)))


def _inference(model: str, parsed: ParsedRequest, result: InferenceResult) -> Response:
    output, binary = encode_output(result.answer.logits, result.loaded.labels, parsed.output)
    document = InferResponse(
        model_name=model,
        model_version=VERSION,
        id=parsed.id or msgspec.UNSET,
        parameters=result.parameters,
        outputs=[output],
    )
    if not parsed.output.binary:
        return json_response(document)
    head = msgspec.json.encode(document)
    headers = {JSON_LENGTH: str(len(head))}
    return Response(head + binary, headers=headers, media_type="application/octet-stream")


def _classification(
    model: str, uploads: list[Upload], top: int, result: InferenceResult
) -> Response:
    answer, loaded, rows = result.answer, result.loaded, iter(result.answer.logits)
    classification = Classification(
        model=model,
        backend=answer.backend,
        artifact=answer.artifact,
        precision=loaded.precision(answer.artifact).value,
        batch=answer.batch,
        milliseconds=StageMilliseconds(
            decode=1000 * result.decode_seconds,
            queue=1000 * answer.queue_seconds,
            inference=1000 * answer.inference_seconds,
        ),
        results=[
            PictureClasses(upload.name, [], error)
            if error
            else PictureClasses(upload.name, top_predictions(next(rows), loaded.labels, top))
            for upload, error in zip(uploads, result.errors)
        ],
    )
    return json_response(classification)
