"""Triton's own client against this server, over HTTP and gRPC."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from resdeploy.bundle.bundle import Bundle
from resdeploy.runtime import load
from resdeploy.runtime.serving.grpc.messages import load_methods
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


@pytest.mark.parametrize(
    ("images", "datatype", "model", "version", "message"),
    [
        (ZEROS, "UINT8", "none", "", "no such model"),
        (ZEROS, "UINT8", "tiny", "7", "no such version"),
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
