"""The Open Inference Protocol over gRPC, with the models, queues and limits of HTTP."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
import msgspec
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2_grpc

from resdeploy.bundle.manifest import INPUT_NAME, OUTPUT_NAME
from resdeploy.errors import ServeError, one_line_reason
from resdeploy.filesystem import read_limited
from resdeploy.images.preprocessing import ImageSize, UInt8Array
from resdeploy.runtime.serving.config import MAX_PEM_BYTES, PEM_HINT, ServeConfig
from resdeploy.runtime.serving.grpc.call_guard import CallGuard
from resdeploy.runtime.serving.grpc.messages import SERVICE, load_methods
from resdeploy.runtime.serving.grpc.standard_services import HealthService, ReflectionService
from resdeploy.runtime.serving.http.listener import listen
from resdeploy.runtime.serving.open_inference import (
    OutputFormat,
    ParsedRequest,
    convert,
    encode_output,
    images_from_bytes,
    images_from_values,
)
from resdeploy.runtime.serving.request_errors import RequestError
from resdeploy.runtime.serving.request_log import RequestRecord
from resdeploy.runtime.serving.schemas import MAX_ID_LENGTH, OutputParameters, RequestParameters
from resdeploy.runtime.serving.service import VERSION, Service

# Maximum size of the names, shapes and parameters beside the tensors of a message.
ENVELOPE_BYTES = 64 << 10
PUBLIC_METHODS = ("ServerLive", "ServerReady")

Fields = dict[str, Any]
Call = Callable[[Any, Any, RequestRecord], Awaitable[Fields]]


class InferenceService:
    """The inference service; its `handler` is registered with a gRPC server."""

    def __init__(self, service: Service, guard: CallGuard) -> None:
        self._service = service
        self._guard = guard
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
        response = self._methods[name].response

        async def guarded(request: Any, context: Any) -> Any:
            async with self._guard.call(name, context, public=name in PUBLIC_METHODS) as record:
                return response(**await call(request, context, record))

        return guarded

    async def _server_live(self, request: Any, context: Any, record: RequestRecord) -> Fields:
        return {"live": True}

    async def _server_ready(self, request: Any, context: Any, record: RequestRecord) -> Fields:
        return {"ready": self._service.readiness.is_server_ready()}

    async def _model_ready(self, request: Any, context: Any, record: RequestRecord) -> Fields:
        model = self._service.model(request.name, request.version)
        return {"ready": self._service.readiness.is_model_ready(model)}

    async def _server_metadata(self, request: Any, context: Any, record: RequestRecord) -> Fields:
        return dict(msgspec.to_builtins(self._service.server_metadata()))

    async def _model_metadata(self, request: Any, context: Any, record: RequestRecord) -> Fields:
        model = self._service.model(request.name, request.version)
        return dict(msgspec.to_builtins(self._service.model_metadata(model)))

    async def _model_infer(self, request: Any, context: Any, record: RequestRecord) -> Fields:
        model = self._service.model(request.model_name, request.model_version)
        record.model = model.name
        loaded = model.loaded_bundle()
        parsed = parse_call(request, loaded.image_size, len(loaded.labels))
        record.images = len(parsed.images)
        limits = [self._service.config.timeout_ms / 1000, parsed.timeout, context.time_remaining()]
        deadline = record.arrived + min(seconds for seconds in limits if seconds is not None)
        result = await self._service.infer(loaded, parsed, deadline)
        output, binary = encode_output(result.answer.logits, loaded.labels, parsed.output)
        return {
            "model_name": model.name,
            "model_version": VERSION,
            "id": parsed.id,
            "parameters": {
                name: {"string_param": text} for name, text in result.parameters.items()
            },
            "outputs": [{"name": output.name, "datatype": output.datatype, "shape": output.shape}],
            "raw_output_contents": [binary],
        }


def parse_call(request: Any, size: ImageSize, classes: int) -> ParsedRequest:
    """Parse a ModelInferRequest.

    Args:
        request: Message of the protocol.
        size: Size of the model's input in pixels.
        classes: Number of classes.

    Raises:
        RequestError: The message does not follow the protocol or does not suit the model.
    """
    if len(request.inputs) != 1 or request.inputs[0].name != INPUT_NAME:
        raise RequestError(f"the model has one input, {INPUT_NAME}")
    if [output.name for output in request.outputs] not in ([], [OUTPUT_NAME]):
        raise RequestError(f"the model has one output, {OUTPUT_NAME}")
    parameters = convert(_parameters(request.parameters), RequestParameters)
    requested = _parameters(request.outputs[0].parameters) if request.outputs else {}
    output = convert(requested, OutputParameters)
    if len(request.id) > MAX_ID_LENGTH:
        raise RequestError(f"the id has {len(request.id)} characters; {MAX_ID_LENGTH} are allowed")
    return ParsedRequest(
        images=_images(request, size),
        id=request.id,
        output=OutputFormat(binary=True, classes=min(output.classification, classes)),
        timeout=parameters.timeout / 1e6 if parameters.timeout else None,
    )


async def start_grpc(service: Service, config: ServeConfig, token: bytes | None) -> tuple[Any, int]:
    """Start a gRPC server in this event loop; return the server and its port.

    Raises:
        ServeError: The server cannot listen on the address.
    """
    options: Sequence[tuple[str, int]] = (
        ("grpc.max_receive_message_length", config.max_body + ENVELOPE_BYTES),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", 32 << 10),
        ("grpc.so_reuseport", 0),
        ("grpc.max_connection_idle_ms", 1000 * config.idle_seconds),
    )
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=config.connections)
    guard = CallGuard(service, token)
    server.add_generic_rpc_handlers((InferenceService(service, guard).handler,))
    health_pb2_grpc.add_HealthServicer_to_server(HealthService(service, guard), server)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(ReflectionService(guard), server)
    host = f"[{config.host}]" if ":" in config.host else config.host
    address = f"{host}:{config.grpc_port}"
    try:
        if config.tls_cert is not None and config.tls_key is not None:
            key, chain = (
                read_limited(file, MAX_PEM_BYTES, ServeError, PEM_HINT)
                for file in (config.tls_key, config.tls_cert)
            )
            port = server.add_secure_port(address, grpc.ssl_server_credentials([(key, chain)]))
        else:
            port = server.add_insecure_port(address)
    except RuntimeError as error:
        assert config.grpc_port is not None
        listen(config.host, config.grpc_port, "--grpc-port").close()  # raises with the reason
        raise ServeError(
            f"gRPC cannot listen on {address}: {one_line_reason(error)}",
            "choose another --host or --grpc-port",
        ) from error
    await server.start()
    return server, port


def _images(request: Any, size: ImageSize) -> UInt8Array:
    tensor = request.inputs[0]
    shape = list(tensor.shape)
    if len(request.raw_input_contents) == 1 and not tensor.HasField("contents"):
        return images_from_bytes(request.raw_input_contents[0], shape, tensor.datatype, size)
    if request.raw_input_contents:
        raise RequestError(f"input {INPUT_NAME} has both raw data and contents; send one of them")
    return images_from_values(tensor.contents.uint_contents, shape, tensor.datatype, size)


def _parameters(parameters: Any) -> dict[str, Any]:
    return {
        name: getattr(value, value.WhichOneof("parameter_choice") or "bool_param")
        for name, value in parameters.items()
    }
