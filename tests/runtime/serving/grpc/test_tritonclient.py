"""Triton's own client against this server, over HTTP and gRPC."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from resdeploy.bundle.bundle import Bundle
from resdeploy.machine.device import available_cores
from resdeploy.runtime import load
from resdeploy.runtime.serving.grpc.messages import SERVICE, load_methods, load_pool
from tests.samples import CLASSES, SIZE
from tests.serving_process import PATIENCE, ServerProcess

KINDS = {"http": tritonclient.http, "grpc": tritonclient.grpc}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def client(server: ServerProcess, kind: str) -> Iterator[Any]:
    port = server.port if kind == "http" else server.grpc_port
    client = KINDS[kind].InferenceServerClient(f"127.0.0.1:{port}")
    yield client
    client.close()


def make_input(kind: str, images: np.ndarray, datatype: str = "UINT8", **options: Any) -> Any:
    tensor = KINDS[kind].InferInput("images", images.shape, datatype)
    tensor.set_data_from_numpy(images, **options)
    return tensor


def test_health_and_metadata(client: Any, kind: str) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny", "1")
    options = {} if kind == "http" else {"as_json": True}
    assert client.get_server_metadata(**options)["name"] == "resdeploy"
    metadata = client.get_model_metadata("tiny", **options)
    assert metadata["name"] == "tiny"
    assert metadata["inputs"][0]["datatype"] == "UINT8"
    assert [int(size) for size in metadata["outputs"][0]["shape"]] == [-1, 3]


@pytest.mark.parametrize("binary", [True, False])
def test_inference(client: Any, kind: str, tiny_bundle: Bundle, binary: bool) -> None:
    if kind == "grpc" and not binary:
        pytest.skip("tritonclient sends tensors over gRPC as bytes")
    images = tiny_bundle.golden().images[:3]
    with load(tiny_bundle.path, threads=1) as model:
        expected = model.run(images)
    options: dict[str, Any] = {"binary_data": binary} if kind == "http" else {}
    result = client.infer(
        "tiny",
        [make_input(kind, images, **options)],
        outputs=[KINDS[kind].InferRequestedOutput("logits", **options)],
        request_id="seven",
    )
    np.testing.assert_allclose(result.as_numpy("logits"), expected, rtol=1e-5)
    response = result.get_response()
    assert (response["id"] if kind == "http" else response.id) == "seven"


def test_all_outputs_are_the_default(client: Any, kind: str, tiny_bundle: Bundle) -> None:
    result = client.infer("tiny", [make_input(kind, tiny_bundle.golden().images)])
    assert result.as_numpy("logits").shape == (24, 3)


def test_classes_as_text(client: Any, kind: str, tiny_bundle: Bundle) -> None:
    images = tiny_bundle.golden().images[:2]
    wanted = KINDS[kind].InferRequestedOutput("logits", class_count=2)
    rows = client.infer("tiny", [make_input(kind, images)], outputs=[wanted]).as_numpy("logits")
    assert rows.shape == (2, 2)
    for row in rows:
        values, indices, labels = zip(*(text.decode().split(":") for text in row))
        assert float(values[0]) >= float(values[1])
        assert [CLASSES[int(index)] for index in indices] == list(labels)


def test_concurrent_requests(client: Any, kind: str, tiny_bundle: Bundle) -> None:
    golden = tiny_bundle.golden()
    tensors = [make_input(kind, golden.images[i : i + 1]) for i in range(16)]
    if kind == "http":
        results = [client.async_infer("tiny", [tensor]) for tensor in tensors]
        answers = [result.get_result() for result in results]
    else:
        done: dict[int, Any] = {}
        for number, tensor in enumerate(tensors):
            client.async_infer(
                "tiny", [tensor], lambda result, error, n=number: done.update({n: (result, error)})
            )
        deadline = time.monotonic() + PATIENCE
        while len(done) < len(tensors) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert all(error is None for _, error in done.values())
        answers = [done[number][0] for number in range(len(tensors))]
    rows = np.concatenate([answer.as_numpy("logits") for answer in answers])
    assert (rows.argmax(1) == golden.logits[:16].argmax(1)).mean() > 0.8


ZEROS = np.zeros((1, SIZE, SIZE, 3), np.uint8)

# Triton's extensions


def as_json(kind: str) -> dict[str, bool]:
    return {} if kind == "http" else {"as_json": True}


def test_the_configuration_is_what_serves(client: Any, kind: str) -> None:
    config = client.get_model_config("tiny", **as_json(kind))
    config = config if kind == "http" else config["config"]
    assert client.get_model_config("tiny", "1", **as_json(kind))
    assert config["max_batch_size"] == 256
    (images,), (logits,) = config["input"], config["output"]
    assert (images["name"], images["data_type"]) == ("images", "TYPE_UINT8")
    assert [int(size) for size in images["dims"]] == [SIZE, SIZE, 3]
    assert (logits["name"], logits["data_type"]) == ("logits", "TYPE_FP32")
    assert [int(size) for size in logits["dims"]] == [3]
    (group,) = config["instance_group"]
    assert group["kind"] == "KIND_CPU"
    assert 1 <= group["count"] <= available_cores()
    assert int(config["dynamic_batching"]["max_queue_delay_microseconds"]) == 2000
    assert config["parameters"]["artifact"]["string_value"] == "int8-cpu"


def test_the_statistics_count_requests_images_and_batches(client: Any, kind: str) -> None:
    def totals(*arguments: str) -> dict[str, Any]:
        (entry,) = client.get_inference_statistics(*arguments, **as_json(kind))["model_stats"]
        assert (entry["name"], entry["version"]) == ("tiny", "1")
        stats = entry["inference_stats"]
        counted = {
            name: (int(stats[name].get("count", 0)), int(stats[name].get("ns", 0)))
            for name in ("success", "fail", "queue", "compute_infer")
        }
        sizes = {int(size["batch_size"]): size["compute_infer"] for size in entry["batch_stats"]}
        images = int(entry.get("inference_count", 0))
        assert images == sum(size * int(time["count"]) for size, time in sizes.items())
        return {**counted, "images": images, "last": int(entry.get("last_inference", 0))}

    before = totals()
    start = time.time_ns()
    client.infer("tiny", [make_input(kind, np.zeros((2, SIZE, SIZE, 3), np.uint8))])
    with pytest.raises(InferenceServerException):
        client.infer("tiny", [make_input(kind, ZEROS)], timeout=1)
    elapsed = time.time_ns() - start
    after = totals("tiny", "1")
    assert after["images"] == before["images"] + 2
    assert after["last"] >= start // 1_000_000
    for name, count in {"success": 1, "fail": 1, "compute_infer": 1, "queue": 1}.items():
        assert after[name][0] == before[name][0] + count, name
        assert 0 < after[name][1] - before[name][1] < elapsed, name


def test_the_index_lists_all_models(client: Any, kind: str) -> None:
    index = client.get_model_repository_index(**as_json(kind))
    (entry,) = index if kind == "http" else index["models"]
    assert (entry["name"], entry["version"], entry["state"]) == ("tiny", "1", "READY")


REFUSED = {
    "load_model": ("tiny",),
    "unload_model": ("tiny",),
    "update_trace_settings": (),
    "get_trace_settings": ("tiny",),
    "update_log_settings": ({},),
    "get_log_settings": (),
    "get_system_shared_memory_status": (),
    "register_system_shared_memory": ("name", "/key", 1),
    "unregister_system_shared_memory": (),
    "get_cuda_shared_memory_status": ("name",),
    "register_cuda_shared_memory": ("name", b"aGFuZGxl", 0, 1),
    "unregister_cuda_shared_memory": ("name",),
}
ANSWERED = {
    "is_server_live", "is_server_ready", "is_model_ready", "get_server_metadata",
    "get_model_metadata", "get_model_config", "get_inference_statistics",
    "get_model_repository_index", "infer", "async_infer",
}  # fmt: skip
NOT_SENT = {
    "close", "plugin", "register_plugin", "unregister_plugin", "generate_request_body",
    "parse_response_body", "stop_stream", "start_stream", "async_stream_infer",
}  # fmt: skip


def test_the_rest_of_the_client_is_refused_with_a_reason(client: Any, kind: str) -> None:
    methods = {name for name in dir(client) if not name.startswith("_")}
    assert methods - NOT_SENT == ANSWERED | set(REFUSED)
    for name, arguments in REFUSED.items():
        with pytest.raises(
            InferenceServerException, match=r"not supported|server starts"
        ) as caught:
            getattr(client, name)(*arguments)
        assert caught.value.status() in ("501", "StatusCode.UNIMPLEMENTED"), name


def test_a_stream_is_refused_with_a_reason(server: ServerProcess) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    with KINDS["grpc"].InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        client.start_stream(lambda result, error: answers.put(error))
        with suppress(InferenceServerException):  # the refusal may have arrived before
            client.async_stream_infer("tiny", [make_input("grpc", ZEROS)])
        assert "call ModelInfer for each request" in str(answers.get(timeout=PATIENCE))


def test_shared_memory_is_refused(client: Any, kind: str) -> None:
    shared = KINDS[kind].InferInput("images", ZEROS.shape, "UINT8")
    shared.set_shared_memory("region", ZEROS.nbytes)
    output = KINDS[kind].InferRequestedOutput("logits")
    output.set_shared_memory("region", 12)
    for tensor, outputs in ((shared, None), (make_input(kind, ZEROS), [output])):
        with pytest.raises(InferenceServerException, match="shared memory is not supported"):
            client.infer("tiny", [tensor], outputs=outputs)


def test_our_messages_are_those_of_the_client() -> None:
    from tritonclient.grpc import model_config_pb2, service_pb2

    theirs: dict[str, Any] = {
        **service_pb2.DESCRIPTOR.message_types_by_name,
        **model_config_pb2.DESCRIPTOR.message_types_by_name,
    }
    ours = load_pool().FindServiceByName(SERVICE).file.message_types_by_name
    assert len(ours) >= 30
    for name, message in ours.items():
        for field in message.fields:
            other = theirs[name].fields_by_name[field.name]
            assert (field.number, field.type) == (other.number, other.type), field.full_name


@pytest.mark.parametrize(
    ("images", "datatype", "model", "version", "message"),
    [
        (ZEROS, "UINT8", "none", "", "no such model; this server has tiny"),
        (ZEROS, "UINT8", "tiny", "7", "no such version of the model; it has version 1"),
        (ZEROS.astype(np.float32), "FP32", "tiny", "", "another datatype than UINT8"),
        (ZEROS[:, 1:], "UINT8", "tiny", "", "has shape"),
        (np.zeros((300, SIZE, SIZE, 3), np.uint8), "UINT8", "tiny", "", "256 are allowed"),
    ],
)
def test_errors_describe_the_cause(
    client: Any, kind: str, images: np.ndarray, datatype: str, model: str, version: str,
    message: str,
) -> None:  # fmt: skip
    with pytest.raises(InferenceServerException, match=message):
        client.infer(model, [make_input(kind, images, datatype)], model_version=version)
    with pytest.raises(InferenceServerException, match=r"\^images\$|one input, images"):
        other = KINDS[kind].InferInput("pixels", ZEROS.shape, "UINT8")
        other.set_data_from_numpy(ZEROS)
        client.infer("tiny", [other])


def test_a_timeout_in_microseconds_is_a_deadline(client: Any, kind: str) -> None:
    with pytest.raises(InferenceServerException, match="deadline"):
        client.infer("tiny", [make_input(kind, ZEROS)], timeout=1)


# gRPC only


@pytest.fixture
def channel(server: ServerProcess) -> Iterator[Any]:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield channel


def call(channel: Any, name: str, **options: Any) -> Any:
    """Call a method with a stub made from our own descriptors."""
    method = load_methods()[name]
    return channel.unary_unary(
        f"/inference.GRPCInferenceService/{name}",
        request_serializer=method.request.SerializeToString,
        response_deserializer=method.response.FromString,
    )(method.request(**options.pop("fields", {})), **options)


def infer_fields(**changes: Any) -> dict[str, Any]:
    entry = {
        "name": "images",
        "datatype": "UINT8",
        "shape": [1, SIZE, SIZE, 3],
        "contents": {"uint_contents": [7] * ZEROS.size},
    }
    return {"model_name": "tiny", "inputs": [{**entry, **changes.pop("entry", {})}], **changes}


def test_contents_may_be_integers(channel: Any) -> None:
    answer = call(channel, "ModelInfer", fields=infer_fields())
    raw = {"contents": None}
    images = np.full(ZEROS.shape, 7, np.uint8)
    other = call(
        channel,
        "ModelInfer",
        fields=infer_fields(entry=raw, raw_input_contents=[images.tobytes()]),
    )
    assert answer.raw_output_contents == other.raw_output_contents
    assert answer.parameters["artifact"].string_param == "int8-cpu"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (infer_fields(raw_input_contents=[b"x"]), "both raw data and contents"),
        (
            infer_fields(entry={"contents": {"uint_contents": [1]}}),
            "needs 3072 integers, but has 1 values",
        ),
        (
            infer_fields(entry={"contents": {"uint_contents": [999] * ZEROS.size}}),
            "between 0 and 255",
        ),
        (infer_fields(entry={"contents": None}), "needs 3072 integers, but has 0 values"),
        (infer_fields(outputs=[{"name": "scores"}]), "one output"),
        (infer_fields(parameters={"timeout": {"string_param": "x"}}), r"`\$\.timeout`"),
        (infer_fields(id="x" * 257), "257 characters"),
        ({"model_name": "tiny"}, "one input"),
    ],
)
def test_invalid_calls_are_rejected(channel: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(grpc.RpcError, match=message) as caught:
        call(channel, "ModelInfer", fields=fields)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_the_deadline_of_the_client_is_respected(channel: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, "ModelInfer", fields=infer_fields(), timeout=0.0005)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_the_request_id_is_returned(channel: Any) -> None:
    stub = channel.unary_unary(
        "/inference.GRPCInferenceService/ServerLive",
        request_serializer=load_methods()["ServerLive"].request.SerializeToString,
        response_deserializer=load_methods()["ServerLive"].response.FromString,
    )
    request = load_methods()["ServerLive"].request()
    _, done = stub.with_call(request, metadata=(("x-request-id", "job-9"),))
    assert dict(done.initial_metadata())["x-request-id"] == "job-9"


@pytest.mark.parametrize("data", [b"", b"\xff" * 20, b"\x0a\x04tiny"])
def test_random_bytes_are_an_error_without_consequences(channel: Any, data: bytes) -> None:
    for name in load_methods():
        stub = channel.unary_unary(f"/inference.GRPCInferenceService/{name}")
        try:
            stub(data)
        except grpc.RpcError as error:
            assert error.code() is not grpc.StatusCode.UNAVAILABLE
    assert call(channel, "ServerReady").ready
