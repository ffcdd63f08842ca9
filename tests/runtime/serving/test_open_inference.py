"""The protocol's tensors: what is understood, what is refused, and nothing else happens."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from resdeploy.runtime.serving import open_inference as tensors
from resdeploy.runtime.serving.open_inference import (
    InferenceRequest,
    OutputRequest,
    encode_response,
)
from resdeploy.runtime.serving.request_errors import RequestError, TooLarge

SIZE, CLASSES = 2, 3
LABELS = ("blue", "green", "red")
COUNT = SIZE * SIZE * 3


def document(**changes: Any) -> dict[str, Any]:
    entry = {"name": "images", "datatype": "UINT8", "shape": [1, SIZE, SIZE, 3], "data": [7] * 12}
    entry.update(changes.pop("entry", {}))
    return {
        "inputs": [{key: value for key, value in entry.items() if value is not None}],
        **changes,
    }


def parse(body: Any, json_bytes: int | None = None) -> InferenceRequest:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return tensors.parse_request(data, json_bytes, SIZE, CLASSES)


def binary_request(images: np.ndarray, announced: int | None = None) -> tuple[bytes, int]:
    size = images.nbytes if announced is None else announced
    head = json.dumps(
        document(
            entry={
                "data": None,
                "shape": list(images.shape),
                "parameters": {"binary_data_size": size},
            }
        )
    ).encode()
    return head + images.tobytes(), len(head)


@given(st.binary(min_size=12, max_size=60).filter(lambda data: len(data) % 12 == 0))
def test_flat_nested_and_binary_data_are_the_same(data: bytes) -> None:
    images = np.frombuffer(data, np.uint8).reshape(-1, SIZE, SIZE, 3)
    entry = {"shape": list(images.shape)}
    flat = parse(document(entry={**entry, "data": images.ravel().tolist()}))
    nested = parse(document(entry={**entry, "data": images.tolist()}))
    binary = parse(*binary_request(images))
    for request in (flat, nested, binary):
        np.testing.assert_array_equal(request.images, images)
        assert request.images.dtype == np.uint8


def test_binary_images_are_not_copied() -> None:
    body, length = binary_request(np.ones((4, SIZE, SIZE, 3), np.uint8))
    assert not parse(body, length).images.flags.owndata


def test_what_else_a_request_says() -> None:
    request = parse(document(id="a", parameters={"timeout": 1500, "binary_data_output": True}))
    assert request.id == "a"
    assert request.timeout == 0.0015
    assert request.wanted == OutputRequest(binary=True)
    assert parse(document(parameters={"timeout": 0})).timeout is None
    output = {"name": "logits", "parameters": {"binary_data": False, "classification": 99}}
    request = parse(document(outputs=[output], parameters={"binary_data_output": True}))
    assert request.wanted == OutputRequest(binary=False, classes=CLASSES)
    assert parse(document(outputs=[])).wanted == OutputRequest()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "no JSON document"),
        (b"\xff\xfe", "no JSON document"),
        (b"[" * 100_000, "no JSON document"),
        (b'{"inputs": NaN}', "no JSON document"),
        (b"[]", "the request must be a JSON object"),
        ({}, "takes one input, images"),
        ({"inputs": {}}, "takes one input, images"),
        ({"inputs": [1]}, "an input must be a JSON object"),
        (document(entry={"name": "pixels"}), "input is called images"),
        (document(entry={"datatype": "FP32"}), "another datatype than UINT8"),
        (document(entry={"datatype": None}), "another datatype than UINT8"),
        (document(entry={"shape": None}), r"needs a shape of \[N, 2, 2, 3\]"),
        (document(entry={"shape": "1223"}), "needs a shape"),
        (document(entry={"shape": [1, 2, 2, True]}), "needs a shape"),
        (document(entry={"shape": [0, 2, 2, 3]}), "not .* with N at least 1"),
        (document(entry={"shape": [-1, 2, 2, 3]}), "with N at least 1"),
        (document(entry={"shape": [1, 3, 2, 2]}), "not "),
        (document(entry={"data": None}), "has no data"),
        (document(entry={"data": "7" * 12}), "has no data"),
        (document(entry={"data": [7] * 11}), "needs 12 integers"),
        (document(entry={"data": [7.5] * 12}), "needs 12 integers"),
        (document(entry={"data": [True] * 12}), "needs 12 integers"),
        (document(entry={"data": [2**70] * 12}), "needs 12 integers"),
        (document(entry={"data": [None] * 12}), "needs 12 integers"),
        (document(entry={"data": [[1, 2], [3]]}), "no regular shape"),
        (document(entry={"data": [256] * 12}), "from 0 to 255"),
        (document(entry={"data": [-1] * 12}), "from 0 to 255"),
        (document(entry={"parameters": []}), "parameters must be"),
        (document(parameters=7), "parameters must be"),
        (document(parameters={"timeout": -1}), "timeout must be"),
        (document(parameters={"timeout": True}), "timeout must be"),
        (document(parameters={"timeout": "1"}), "timeout must be"),
        (document(parameters={"binary_data_output": 1}), "binary_data_output must be"),
        (document(id=7), "the id must be"),
        (document(id="x" * 257), "the id must be"),
        (document(outputs={}), "gives one output, logits"),
        (document(outputs=[{}, {}]), "gives one output, logits"),
        (document(outputs=[{"name": "scores"}]), "output is called logits"),
        (
            document(outputs=[{"name": "logits", "parameters": {"classification": -1}}]),
            "classification must be",
        ),
        (
            document(outputs=[{"name": "logits", "parameters": {"binary_data": "yes"}}]),
            "binary_data must be",
        ),
    ],
)
def test_what_is_wrong_is_said(body: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parse(body)


@pytest.mark.parametrize("announced", [0, 11, 13, -12, 12.0, True, "12", 1 << 70])
def test_binary_data_must_be_as_long_as_is_announced(announced: Any) -> None:
    body, length = binary_request(np.ones((1, SIZE, SIZE, 3), np.uint8), announced)
    with pytest.raises(RequestError, match="announces other binary data"):
        parse(body, length)


def test_binary_data_must_be_as_long_as_the_shape_needs() -> None:
    body, length = binary_request(np.ones((1, SIZE, SIZE, 3), np.uint8))
    longer = body.replace(b"[1, ", b"[2, ")
    with pytest.raises(RequestError, match="12 bytes where its shape needs 24"):
        parse(longer, length)


def test_bytes_that_nobody_announces_are_refused() -> None:
    head = json.dumps(document()).encode()
    with pytest.raises(RequestError, match="no input announces"):
        parse(head + b"123", len(head))
    with pytest.raises(RequestError, match="announces other"):
        parse(document(entry={"parameters": {"binary_data_size": 0}}))


@pytest.mark.parametrize("json_bytes", [-1, 10**9])
def test_a_json_part_longer_than_the_body_is_refused(json_bytes: int) -> None:
    with pytest.raises(RequestError, match="the JSON part has"):
        parse(b"{}", json_bytes)


def test_a_document_that_takes_too_long_to_parse_is_refused() -> None:
    with pytest.raises(TooLarge, match="send binary tensors"):
        parse(b" " * (tensors.MAX_JSON_BYTES + 1))


@given(st.binary(max_size=200), st.integers(-5, 250) | st.none())
@example(b'{"inputs": [{"name": "images"}]}', None)
def test_any_bytes_are_understood_or_refused(body: bytes, json_bytes: int | None) -> None:
    with pytest.raises(RequestError):
        parse(body, json_bytes)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
FIELDS = ("name", "shape", "datatype", "data", "parameters")


@given(st.dictionaries(st.sampled_from(FIELDS), VALUES), st.binary(max_size=24), VALUES, VALUES)
def test_any_document_is_understood_or_refused(
    entry: dict[str, Any], binary: bytes, outputs: Any, parameters: Any
) -> None:
    whole = document(entry=entry, outputs=outputs, parameters=parameters)
    head = json.dumps(whole).encode()
    try:
        request = parse(head + binary, len(head))
    except RequestError as refusal:
        assert len(str(refusal)) < 400
    else:
        assert request.images.shape[1:] == (SIZE, SIZE, 3)


# Answers


def test_logits_as_numbers_keep_every_bit() -> None:
    logits = np.array([[0.1, -2.5, 1e-20], [3, 4, 5]], np.float32)
    text, binary = encode_response({"model_name": "m"}, logits, LABELS, OutputRequest())
    answer = json.loads(text)
    assert binary == b""
    assert answer["model_name"] == "m"
    (output,) = answer["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("logits", "FP32", [2, 3])
    np.testing.assert_array_equal(np.array(output["data"], np.float32).reshape(2, 3), logits)


def test_logits_as_bytes_are_announced() -> None:
    logits = np.array([[1, 2, 3]], np.float32)
    text, binary = encode_response({}, logits, LABELS, OutputRequest(binary=True))
    assert json.loads(text)["outputs"][0]["parameters"] == {"binary_data_size": 12}
    assert struct.unpack("<3f", binary) == (1, 2, 3)


def test_classes_in_words_are_sorted() -> None:
    logits = np.array([[1, 3.5, 2], [9, 8, 7]], np.float32)
    text, _ = encode_response({}, logits, LABELS, OutputRequest(classes=2))
    (output,) = json.loads(text)["outputs"]
    assert output["datatype"] == "BYTES"
    assert output["shape"] == [2, 2]
    first, second = output["data"][:2], output["data"][2:]
    assert first == ["3.500000:1:green", "2.000000:2:red"]
    assert second == ["9.000000:0:blue", "8.000000:1:green"]


def test_words_as_bytes_have_their_length_in_front() -> None:
    logits = np.array([[1, 3.5, 2]], np.float32)
    _, binary = encode_response(
        {}, logits, ("b", "grün", "r"), OutputRequest(binary=True, classes=1)
    )
    expected = "3.500000:1:grün".encode()
    assert binary == struct.pack("<I", len(expected)) + expected
