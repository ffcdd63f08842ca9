"""The Open Inference Protocol over gRPC, with the models, queues and limits of HTTP."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import grpc
import msgspec

from resdeploy.bundle.manifest import INPUT_NAME, OUTPUT_NAME
from resdeploy.bundle.signature import MAX_PEM_BYTES
from resdeploy.errors import ServeError, one_line_reason
from resdeploy.filesystem import read_limited
from resdeploy.images.preprocessing import ImageSize, UInt8Array
from resdeploy.runtime.serving.config import PEM_HINT, ServeConfig
from resdeploy.runtime.serving.grpc.call_guard import CallGuard
from resdeploy.runtime.serving.grpc.connections import end_connection, limit_addresses
from resdeploy.runtime.serving.grpc.message_reader import (
    ENVELOPE_BYTES,
    INTEGER_TENSOR_BYTES,
    READ_AHEAD_BYTES,
    MessageReader,
    parse_small,
    split_tensors,
)
from resdeploy.runtime.serving.grpc.messages import SERVICE, Method, load_methods
from resdeploy.runtime.serving.grpc.standard_services import HealthService, ReflectionService
from resdeploy.runtime.serving.http.connection_table import client_network
from resdeploy.runtime.serving.http.listener import listen
from resdeploy.runtime.serving.open_inference import (
    OutputFormat,
    ParsedRequest,
    convert,
    encode_output,
    images_from_bytes,
    images_from_values,
    refuse_shared_memory,
)
from resdeploy.runtime.serving.request_errors import NotSupported, RequestError
from resdeploy.runtime.serving.request_log import RequestRecord
from resdeploy.runtime.serving.schemas import (
    MAX_ID_LENGTH,
    InputParameters,
    OutputParameters,
    RequestParameters,
)
from resdeploy.runtime.serving.served_model import ServedModel
from resdeploy.runtime.serving.service import VERSION, Service
from resdeploy.runtime.serving.triton.refusals import REFUSED_METHODS

PUBLIC_METHODS = ("ServerLive", "ServerReady")  # their messages are empty, and never read
STREAMS = 128  # concurrent calls of one connection, as RFC 9113 recommends at least 100
METADATA_BYTES = 32 << 10  # as for the headers of HTTP
# After this time a client must connect again: calls whose answers are never read end then.
CONNECTION_AGE_MS = 600_000
KEEPALIVE_MS = 30_000  # how long a client that has vanished holds its calls


class InferenceService:
    """The inference service; its `handler` is registered with a gRPC server."""

    def __init__(self, service: Service, guard: CallGuard, reader: MessageReader) -> None:
        self._service = service
        self._guard = guard
        self._reader = reader
        # On the wire, a stream of one message is a unary call. gRPC would read the message of a
        # unary call before the handler can look at the token.
        self.handler = grpc.method_handlers_generic_handler(
            SERVICE,
            {
                name: grpc.stream_unary_rpc_method_handler(
                    partial(self._answer, name, kind), None, kind.response.SerializeToString
                )
                for name, kind in load_methods().items()
            }
            | {
                name: grpc.stream_unary_rpc_method_handler(partial(self._refuse, name, reason))
                for name, reason in REFUSED_METHODS.items()
            },
        )
        ready = service.readiness
        self._answers: dict[str, Callable[[Any], object]] = {
            "ServerLive": lambda _: {"live": True},
            "ServerReady": lambda _: {"ready": ready.is_server_ready()},
            "ServerMetadata": lambda _: service.server_metadata(),
            "ModelReady": lambda request: {"ready": ready.is_model_ready(_model(service, request))},
            "ModelMetadata": lambda request: service.model_metadata(_model(service, request)),
            "ModelConfig": lambda request: {
                "config": service.model_config(_model(service, request))
            },
            "ModelStatistics": lambda request: service.model_statistics(
                request.name, request.version
            ),
            "RepositoryIndex": lambda request: {
                "models": service.repository_index(ready=request.ready)
            },
        }

    async def _answer(self, name: str, method: Method, messages: Any, context: Any) -> Any:
        public = name in PUBLIC_METHODS
        async with self._guard.call(name, context, public=public) as record:
            data = b"" if public else await self._reader.read_only(context)
            held = self._reader.reserve(context)
            held.add(len(data))
            if name == "ModelInfer":
                answer = method.response(**await self._infer(method, data, context, record))
                held.release()
                held.arriving = lambda error: end_connection(context.peer())
                held.add(answer.ByteSize())
                return answer
            fields = self._answers[name](parse_small(method.request, data))
            return method.response(**msgspec.to_builtins(fields))

    async def _refuse(self, name: str, reason: str, messages: Any, context: Any) -> None:
        async with self._guard.call(name, context):
            raise NotSupported(reason)

    async def _infer(
        self, method: Method, data: bytes, context: Any, record: RequestRecord
    ) -> dict[str, Any]:
        others, tensors = split_tensors(data)
        limit = ENVELOPE_BYTES if tensors else INTEGER_TENSOR_BYTES
        request = parse_small(method.request, others, limit)
        model = self._service.model(request.model_name, request.model_version)
        record.model = model.name
        loaded = model.loaded_bundle()
        parsed = parse_call(request, tensors, loaded.image_size, len(loaded.labels))
        record.images = len(parsed.images)
        limits = [self._service.config.timeout_ms / 1000, parsed.timeout or math.inf]
        left = context.time_remaining()  # from now, until the client's own deadline
        ends = time.monotonic() + (math.inf if left is None else left)
        deadline = min(record.arrived + min(limits), ends)
        network = client_network(record.client)
        result = await self._service.infer(loaded, parsed, deadline, network)
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


def parse_call(
    request: Any, tensors: Sequence[memoryview], size: ImageSize, classes: int
) -> ParsedRequest:
    """Convert a ModelInferRequest, whose raw `tensors` were split off.

    The model's input has `size` pixels, its output `classes`.

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
    refuse_shared_memory(
        convert(_parameters(request.inputs[0].parameters), InputParameters), output
    )
    if len(request.id) > MAX_ID_LENGTH:
        raise RequestError(f"the id has {len(request.id)} characters; {MAX_ID_LENGTH} are allowed")
    return ParsedRequest(
        images=_images(request, tensors, size),
        id=request.id,
        output=OutputFormat(binary=True, classes=min(output.classification, classes)),
        timeout=parameters.timeout / 1e6 if parameters.timeout else None,
    )


async def start_grpc(service: Service, config: ServeConfig, token: bytes | None) -> tuple[Any, int]:
    """Start a gRPC server in this event loop; return the server and its port.

    Raises:
        ServeError: The server cannot listen on the address.
    """
    server = grpc.aio.server(
        options=channel_options(config), maximum_concurrent_rpcs=config.connections
    )
    guard, reader = CallGuard(service, token), MessageReader(config)
    server.add_generic_rpc_handlers(
        (
            InferenceService(service, guard, reader).handler,
            HealthService(service, guard, reader).handler,
            ReflectionService(guard, reader).handler,
        )
    )
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
    limiting = asyncio.ensure_future(limit_addresses(port, config.connections))
    stopped = asyncio.ensure_future(server.wait_for_termination())
    stopped.add_done_callback(lambda _: limiting.cancel())
    return server, port


def channel_options(config: ServeConfig) -> Sequence[tuple[str, int]]:
    """Return the limits that gRPC's core keeps itself.

    Source: https://github.com/grpc/grpc/blob/v1.71.0/include/grpc/impl/channel_arg_names.h.
    """
    return (
        # Checked before the handshake. Others are closed at once; these leave file handles to HTTP.
        ("grpc.max_allowed_incoming_connections", config.connections),
        ("grpc.server_handshake_timeout_ms", int(1000 * config.header_seconds)),
        ("grpc.max_connection_idle_ms", 1000 * config.idle_seconds),
        ("grpc.max_connection_age_ms", CONNECTION_AGE_MS),
        ("grpc.max_connection_age_grace_ms", int(1000 * config.body_seconds)),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", int(1000 * config.header_seconds)),
        ("grpc.max_concurrent_streams", STREAMS),
        ("grpc.max_metadata_size", METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", METADATA_BYTES),
        ("grpc.max_receive_message_length", config.max_body + ENVELOPE_BYTES),
        ("grpc.max_send_message_length", -1),
        # A message of 64 kB could unpack to max_body. 1: only the encoding "identity".
        ("grpc.compression_enabled_algorithms_bitset", 1),
        ("grpc.http2.lookahead_bytes", READ_AHEAD_BYTES),
        ("grpc.http2.bdp_probe", 0),  # it would enlarge the window above, up to 16 MiB
        ("grpc.so_reuseport", 0),
    )


def _model(service: Service, request: Any) -> ServedModel:
    return service.model(request.name, request.version)


def _images(request: Any, tensors: Sequence[memoryview], size: ImageSize) -> UInt8Array:
    tensor = request.inputs[0]
    shape = list(tensor.shape)
    if len(tensors) == 1 and not tensor.HasField("contents"):
        return images_from_bytes(tensors[0], shape, tensor.datatype, size)
    if tensors:
        raise RequestError(f"input {INPUT_NAME} has both raw data and contents; send one of them")
    return images_from_values(tensor.contents.uint_contents, shape, tensor.datatype, size)


def _parameters(parameters: Any) -> dict[str, Any]:
    return {
        name: getattr(value, value.WhichOneof("parameter_choice") or "bool_param")
        for name, value in parameters.items()
    }
