"""The Open Inference Protocol over gRPC: same models, same queue, same limits as over HTTP."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
import numpy as np

from resdeploy.bundle.manifest import INPUT_NAME, OUTPUT_NAME
from resdeploy.errors import ServeError
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.runtime.serving.config import ServeConfig
from resdeploy.runtime.serving.grpc.messages import SERVICE, load_methods
from resdeploy.runtime.serving.open_inference import (
    InferenceRequest,
    OutputRequest,
    check_input,
    classify,
    encode_floats,
    encode_strings,
    images_from_bytes,
    parse_classes,
    parse_id,
    parse_timeout,
)
from resdeploy.runtime.serving.request_errors import RequestError
from resdeploy.runtime.serving.request_log import (
    RequestRecord,
    check_token,
    finish_request,
    request_id,
)
from resdeploy.runtime.serving.served_model import LoadedBundle
from resdeploy.runtime.serving.service import InferenceResult, Service

logger = logging.getLogger(__name__)

REQUEST_ID = "x-request-id"
# Beside the tensors there are names, shapes and parameters in a message.
ENVELOPE_BYTES = 64 << 10
OPEN_CALLS = ("ServerLive", "ServerReady")

Call = Callable[[Any, Any, RequestRecord], Awaitable[Any]]


class GrpcService:
    """Answers calls; `handler` is what a gRPC server takes."""

    def __init__(self, service: Service, token: bytes | None) -> None:
        """Serve what `service` serves, to those who know the token if there is one."""
        self._service = service
        self._token = token
        self._methods = load_methods()
        calls: dict[str, Call] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._model_infer,
        }
        self.handler = grpc.method_handlers_generic_handler(
            SERVICE,
            {
                name: grpc.unary_unary_rpc_method_handler(
                    self._guarded(name, call),
                    request_deserializer=self._methods[name].request.FromString,
                    response_serializer=self._methods[name].response.SerializeToString,
                )
                for name, call in calls.items()
            },
        )

    def _guarded(self, name: str, call: Call) -> Callable[[Any, Any], Awaitable[Any]]:
        """The call with what the gateway does for HTTP."""

        async def guarded(request: Any, context: Any) -> Any:
            metadata = dict(context.invocation_metadata())
            given = str(metadata.get(REQUEST_ID, "")).encode()
            record = RequestRecord(request_id(given), time.monotonic(), endpoint=f"grpc/{name}")
            await context.send_initial_metadata(((REQUEST_ID, record.id),))
            try:
                if self._token is not None and name not in OPEN_CALLS:
                    check_token(str(metadata.get("authorization", "")).encode(), self._token)
                return await call(request, context, record)
            except RequestError as refusal:
                record.outcome = refusal.outcome
                await context.abort(grpc.StatusCode[refusal.grpc], str(refusal))
            except asyncio.CancelledError:
                record.outcome = "disconnected"
                raise
            except Exception:
                logger.exception("a call failed", extra={"fields": {"request_id": record.id}})
                record.outcome = "failed"
                await context.abort(grpc.StatusCode.INTERNAL, "the server failed")
            finally:
                access_log = self._service.config.access_log
                finish_request(
                    record, self._service.metrics, access_log=access_log, path=record.endpoint
                )

        return guarded

    async def _server_live(self, request: Any, context: Any, record: RequestRecord) -> Any:
        return self._methods["ServerLive"].response(live=True)

    async def _server_ready(self, request: Any, context: Any, record: RequestRecord) -> Any:
        return self._methods["ServerReady"].response(ready=self._service.ready)

    async def _model_ready(self, request: Any, context: Any, record: RequestRecord) -> Any:
        model = self._service.model(request.name, request.version)
        ready = model.ready and not self._service.draining
        return self._methods["ModelReady"].response(ready=ready)

    async def _server_metadata(self, request: Any, context: Any, record: RequestRecord) -> Any:
        return self._methods["ServerMetadata"].response(**self._service.server_metadata())

    async def _model_metadata(self, request: Any, context: Any, record: RequestRecord) -> Any:
        model = self._service.model(request.name, request.version)
        return self._methods["ModelMetadata"].response(**self._service.model_metadata(model))

    async def _model_infer(self, request: Any, context: Any, record: RequestRecord) -> Any:
        model = self._service.model(request.model_name, request.model_version)
        record.model = model.name
        generation = model.generation()
        parsed = parse_call(request, generation.image_size, len(generation.labels))
        record.images = len(parsed.images)
        allowed = [self._service.config.timeout_ms / 1000, parsed.timeout, context.time_remaining()]
        deadline = record.arrived + min(seconds for seconds in allowed if seconds is not None)
        inferred = await self._service.infer(generation, parsed, deadline)
        head = inferred.head(model.name, parsed.id)
        parameters = {name: {"string_param": text} for name, text in head["parameters"].items()}
        response = self._methods["ModelInfer"].response(**{**head, "parameters": parameters})
        _fill(response, inferred, generation, parsed.wanted)
        return response


def parse_call(request: Any, size: int, classes: int) -> InferenceRequest:
    """Read a ModelInferRequest; see `tensors.parse_request`.

    Raises:
        RequestError: it is not what the protocol and the model ask for.
    """
    if len(request.inputs) != 1 or request.inputs[0].name != INPUT_NAME:
        raise RequestError(f"the model takes one input, {INPUT_NAME}")
    if [output.name for output in request.outputs] not in ([], [OUTPUT_NAME]):
        raise RequestError(f"the model gives one output, {OUTPUT_NAME}")
    parameters = _parameters(request.parameters)
    wanted = _parameters(request.outputs[0].parameters) if request.outputs else {}
    return InferenceRequest(
        images=_images(request, size),
        id=parse_id(request.id),
        wanted=OutputRequest(
            binary=True, classes=parse_classes(wanted.get("classification", 0), classes)
        ),
        timeout=parse_timeout(parameters.get("timeout")),
    )


def _images(request: Any, size: int) -> UInt8Array:
    entry = request.inputs[0]
    shape = list(entry.shape)
    values = entry.contents.uint_contents
    if len(request.raw_input_contents) == 1 and not entry.HasField("contents"):
        return images_from_bytes(request.raw_input_contents[0], shape, entry.datatype, size)
    if request.raw_input_contents:
        raise RequestError(f"input {INPUT_NAME} needs its data once: raw, or as contents")
    count = check_input(entry.datatype, shape, size)
    if len(values) != count * size * size * 3:
        raise RequestError(
            f"input {INPUT_NAME} has {len(values)} elements, which its shape does not"
        )
    numbers = np.array(values, np.uint32)
    if numbers.max() > 255:
        raise RequestError(f"the data of input {INPUT_NAME} are not all from 0 to 255")
    return numbers.astype(np.uint8).reshape(shape)


def _fill(
    response: Any, inferred: InferenceResult, generation: LoadedBundle, wanted: OutputRequest
) -> None:
    logits = inferred.answer.logits
    if wanted.classes:
        rows = classify(logits, generation.labels, wanted.classes)
        shape = [len(rows), wanted.classes]
        response.outputs.add(name=OUTPUT_NAME, datatype="BYTES", shape=shape)
        response.raw_output_contents.append(encode_strings(rows))
    else:
        response.outputs.add(name=OUTPUT_NAME, datatype="FP32", shape=list(logits.shape))
        response.raw_output_contents.append(encode_floats(logits))


def _parameters(parameters: Any) -> dict[str, Any]:
    return {
        name: getattr(value, value.WhichOneof("parameter_choice") or "bool_param")
        for name, value in parameters.items()
    }


async def start_grpc(service: Service, config: ServeConfig, token: bytes | None) -> tuple[Any, int]:
    """A server that runs in this event loop, and its port.

    Raises:
        ServeError: it cannot listen there.
    """
    largest = config.max_body + ENVELOPE_BYTES
    options: Sequence[tuple[str, int]] = (
        ("grpc.max_receive_message_length", largest),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", 32 << 10),
        ("grpc.so_reuseport", 0),
        ("grpc.max_connection_idle_ms", 1000 * config.idle_seconds),
    )
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=config.connections)
    server.add_generic_rpc_handlers((GrpcService(service, token).handler,))
    address = f"[{config.host}]" if ":" in config.host else config.host
    where = f"{address}:{config.grpc_port}"
    try:
        if config.tls_cert is not None and config.tls_key is not None:
            pair = (config.tls_key.read_bytes(), config.tls_cert.read_bytes())
            port = server.add_secure_port(where, grpc.ssl_server_credentials([pair]))
        else:
            port = server.add_insecure_port(where)
    except (OSError, RuntimeError) as error:
        raise ServeError(
            f"gRPC cannot listen on {where}", "choose another --grpc-port, or stop what has it"
        ) from error
    await server.start()
    return server, port
