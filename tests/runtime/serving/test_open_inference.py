"""The conversion of the protocol's tensors, for valid and invalid requests and responses."""

from __future__ import annotations

import json
import struct
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from resdeploy.runtime.serving.open_inference import (
    MAX_JSON_BYTES,
    OutputFormat,
    ParsedRequest,
    encode_output,
    images_from_values,
    parse_request,
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


def parse(body: Any, json_bytes: int | None = None) -> ParsedRequest:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return parse_request(data, json_bytes, SIZE, CLASSES)


def binary_request(images: np.ndarray, announced: Any = None) -> tuple[bytes, int]:
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


def test_the_other_fields_of_a_request_are_parsed() -> None:
    request = parse(document(id="a", parameters={"timeout": 1500, "binary_data_output": True}))
    assert request.id == "a"
    assert request.timeout == 0.0015
    assert request.output == OutputFormat(binary=True)
    assert parse(document(parameters={"timeout": 0})).timeout is None
    output = {"name": "logits", "parameters": {"binary_data": False, "classification": 99}}
    request = parse(document(outputs=[output], parameters={"binary_data_output": True}))
    assert request.output == OutputFormat(binary=False, classes=CLASSES)
    assert parse(document(outputs=[])).output == OutputFormat()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not a JSON document"),
        (b"\xff\xfe", "not a JSON document"),
        (b'{"id": "\xff"}', "not a JSON document"),
        (b"[" * 100_000, "Expected `object`, got `array`"),
        (b'{"inputs": [{"data": ' + b"[" * 100_000, "not a JSON document"),
        (b'{"inputs": NaN}', "not a JSON document"),
        (document(entry={"data": [float("nan")] * 12}), "not a JSON document"),
        (document(entry={"data": [float("inf")] * 12}), "not a JSON document"),
        (json.dumps(document()).replace("[7,", "[1e999,").encode(), "not integers"),
        (b"[]", "Expected `object`, got `array`"),
        ({}, "required field `inputs`"),
        ({"inputs": {}}, r"`\$\.inputs`"),
        ({"inputs": []}, r"`\$\.inputs`"),
        ({"inputs": [1]}, r"`\$\.inputs\[0\]`"),
        (document(entry={"name": "pixels"}), r"'\^images\$' - at `\$\.inputs\[0\]\.name`"),
        (document(entry={"datatype": "FP32"}), "another datatype than UINT8"),
        (document(entry={"datatype": None}), "required field `datatype`"),
        (document(entry={"shape": None}), "required field `shape`"),
        (document(entry={"shape": "1223"}), r"Expected `array`, got `str` .*\.shape`"),
        (document(entry={"shape": [1, 2, 2, True]}), r"got `bool` .*\.shape\[3\]`"),
        (document(entry={"shape": [1, 2, 2]}), r"at `\$\.inputs\[0\]\.shape`"),
        (document(entry={"shape": [0, 2, 2, 3]}), r"`int` >= 1 .*\.shape\[0\]`"),
        (document(entry={"shape": [-1, 2, 2, 3]}), r"`int` >= 1 .*\.shape\[0\]`"),
        (document(entry={"shape": [1, 3, 2, 2]}), r"has shape \[1, 3, 2, 2\], not \[N, 2, 2, 3\]"),
        (document(entry={"data": None}), "has no data"),
        (document(entry={"data": "7" * 12}), "not integers"),
        (document(entry={"data": {"7": 7}}), "not integers"),
        (document(entry={"data": 7}), "needs 12 integers, but has 1 values"),
        (document(entry={"data": []}), "has 0 values"),
        (document(entry={"data": [7] * 11 + ["7" * 100_000]}), "not integers"),
        (document(entry={"data": [7] * 11 + [[]]}), "no regular shape"),
        (document(entry={"data": [[]] * 12}), "no regular shape"),
        (document(entry={"data": [[[[[7] * 12]]]]}), "no regular shape"),
        (document(entry={"shape": [1 << 60, 2, 2, 3], "data": [7] * 12}), "but has 12 values"),
        (document(entry={"data": [7] * 11}), "needs 12 integers"),
        (document(entry={"data": [7.5] * 12}), "not integers between 0 and 255"),
        (document(entry={"data": [True] * 12}), "not integers between 0 and 255"),
        (document(entry={"data": [2**70] * 12}), "not integers between 0 and 255"),
        (document(entry={"data": [None] * 12}), "not integers between 0 and 255"),
        (document(entry={"data": [[1, 2], [3]]}), "has 3 values"),
        (document(entry={"data": [[7] * 5, [7] * 7]}), "no regular shape"),
        (document(entry={"data": [256] * 12}), "between 0 and 255"),
        (document(entry={"data": [-1] * 12}), "between 0 and 255"),
        (document(entry={"parameters": []}), r"`\$\.inputs\[0\]\.parameters`"),
        (document(parameters=7), r"`\$\.parameters`"),
        (document(parameters={"timeout": -1}), r"`int` >= 0 - at `\$\.parameters\.timeout`"),
        (document(parameters={"timeout": True}), r"`\$\.parameters\.timeout`"),
        (document(parameters={"timeout": "1"}), r"`\$\.parameters\.timeout`"),
        (document(parameters={"binary_data_output": 1}), r"`\$\.parameters\.binary_data_output`"),
        (document(id=7), r"`\$\.id`"),
        (document(id="x" * 257), r"length <= 256 - at `\$\.id`"),
        (document(outputs={}), r"`\$\.outputs`"),
        (document(outputs=[{"name": "logits"}] * 2), r"length <= 1 - at `\$\.outputs`"),
        (document(outputs=[{"name": "scores"}]), r"'\^logits\$' - at `\$\.outputs\[0\]\.name`"),
        (
            document(outputs=[{"name": "logits", "parameters": {"classification": -1}}]),
            r"`\$\.outputs\[0\]\.parameters\.classification`",
        ),
        (
            document(outputs=[{"name": "logits", "parameters": {"binary_data": "yes"}}]),
            r"`\$\.outputs\[0\]\.parameters\.binary_data`",
        ),
    ],
)
def test_an_invalid_request_gets_a_precise_message(body: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parse(body)


@pytest.mark.parametrize("announced", [0, 11, 13])
def test_binary_data_must_have_the_announced_length(announced: int) -> None:
    body, length = binary_request(np.ones((1, SIZE, SIZE, 3), np.uint8), announced)
    with pytest.raises(RequestError, match="announces other binary data"):
        parse(body, length)


@pytest.mark.parametrize("announced", [-12, 12.0, True, "12", 1 << 70])
def test_the_announced_length_must_be_a_natural_number(announced: Any) -> None:
    body, length = binary_request(np.ones((1, SIZE, SIZE, 3), np.uint8), announced)
    with pytest.raises(RequestError, match=r"`\$\.inputs\[0\]\.parameters\.binary_data_size`"):
        parse(body, length)


@pytest.mark.parametrize(
    "before", ['"id": "first"', '"outputs": []', '"parameters": {"a": 0, "a": 0}']
)
def test_repeated_keys_are_rejected(before: str) -> None:
    text = json.dumps(document(id="last", outputs=[]))
    with pytest.raises(RequestError, match="occurs twice"):
        parse(("{" + before + ", " + text[1:]).encode())
    for data in ("[1]", "0"):
        with pytest.raises(RequestError, match="occurs twice"):
            parse(text.replace('"data"', f'"data": {data}, "data"').encode())


def test_what_stands_beside_the_tensor_has_a_limit() -> None:
    assert parse(document(extra="x" * 60_000)).images.shape == (1, SIZE, SIZE, 3)
    for document_ in (
        document(extra=[[]] * 30_000),
        document(entry={"data": None}, id="x" * 70_000),
    ):
        with pytest.raises(RequestError):
            parse(document_)
    with pytest.raises(TooLarge, match="beside the tensor"):
        parse(document(extra="x" * 70_000))


def test_large_nested_data_is_parsed_in_pieces() -> None:
    images = np.random.default_rng(0).integers(0, 256, (9_000, SIZE, SIZE, 3), np.uint8)
    for data in (images.tolist(), images.reshape(9_000, -1).tolist(), images.ravel().tolist()):
        entry = {"shape": list(images.shape), "data": data}
        np.testing.assert_array_equal(parse(document(entry=entry)).images, images)


@pytest.mark.parametrize(
    ("values", "message"), [([7] * 11, "has 11 values"), ([7] * 11 + [256], "between 0 and 255")]
)
def test_values_of_messages_are_checked(values: list[int], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        images_from_values(values, [1, SIZE, SIZE, 3], "UINT8", SIZE)
    valid = images_from_values([7] * 12, [1, SIZE, SIZE, 3], "UINT8", SIZE)
    assert valid.shape == (1, SIZE, SIZE, 3)


def test_binary_data_must_have_the_length_of_the_shape() -> None:
    body, length = binary_request(np.ones((1, SIZE, SIZE, 3), np.uint8))
    longer = body.replace(b"[1, ", b"[2, ")
    with pytest.raises(RequestError, match="12 bytes where its shape needs 24"):
        parse(longer, length)


def test_unannounced_bytes_are_rejected() -> None:
    head = json.dumps(document()).encode()
    with pytest.raises(RequestError, match="no input announces"):
        parse(head + b"123", len(head))
    with pytest.raises(RequestError, match="announces other"):
        parse(document(entry={"parameters": {"binary_data_size": 0}}))


@pytest.mark.parametrize("json_bytes", [-1, 10**9])
def test_a_json_part_longer_than_the_body_is_rejected(json_bytes: int) -> None:
    with pytest.raises(RequestError, match="the JSON part has"):
        parse(b"{}", json_bytes)


def test_a_document_that_takes_too_long_to_parse_is_rejected() -> None:
    with pytest.raises(TooLarge, match="send binary tensors"):
        parse(b" " * (MAX_JSON_BYTES + 1))


@given(st.binary(max_size=200), st.integers(-5, 250) | st.none())
@example(b'{"inputs": [{"name": "images"}]}', None)
def test_random_bytes_are_rejected(body: bytes, json_bytes: int | None) -> None:
    with pytest.raises(RequestError):
        parse(body, json_bytes)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
FIELDS = ("name", "shape", "datatype", "data", "parameters")


@settings(max_examples=20)  # the fuzzer's target `request` makes millions
@given(st.dictionaries(st.sampled_from(FIELDS), VALUES), st.binary(max_size=24), VALUES, VALUES)
def test_any_document_is_parsed_or_rejected(
    entry: dict[str, Any], binary: bytes, outputs: Any, parameters: Any
) -> None:
    whole = document(entry=entry, outputs=outputs, parameters=parameters)
    head = json.dumps(whole).encode()
    try:
        request = parse(head + binary, len(head))
    except RequestError as error:
        assert len(str(error)) < 400
    else:
        assert request.images.shape[1:] == (SIZE, SIZE, 3)


# Responses


def encode(logits: np.ndarray, output: OutputFormat) -> tuple[dict[str, Any], bytes]:
    tensor, binary = encode_output(logits, LABELS, output)
    document: dict[str, Any] = json.loads(msgspec.json.encode(tensor))
    return document, binary


def test_logits_as_numbers_are_exact() -> None:
    logits = np.array([[0.1, -2.5, 1e-20], [3, 4, 5]], np.float32)
    output, binary = encode(logits, OutputFormat())
    assert binary == b""
    assert "parameters" not in output
    assert (output["name"], output["datatype"], output["shape"]) == ("logits", "FP32", [2, 3])
    np.testing.assert_array_equal(np.array(output["data"], np.float32).reshape(2, 3), logits)


def test_binary_logits_are_announced() -> None:
    logits = np.array([[1, 2, 3]], np.float32)
    output, binary = encode(logits, OutputFormat(binary=True))
    assert output["parameters"] == {"binary_data_size": 12}
    assert "data" not in output
    assert struct.unpack("<3f", binary) == (1, 2, 3)


def test_classes_as_text_are_sorted() -> None:
    logits = np.array([[1, 3.5, 2], [9, 8, 7]], np.float32)
    output, _ = encode(logits, OutputFormat(classes=2))
    assert output["datatype"] == "BYTES"
    assert output["shape"] == [2, 2]
    first, second = output["data"][:2], output["data"][2:]
    assert first == ["3.500000:1:green", "2.000000:2:red"]
    assert second == ["9.000000:0:blue", "8.000000:1:green"]


def test_binary_text_is_preceded_by_its_length() -> None:
    logits = np.array([[1, 3.5, 2]], np.float32)
    _, binary = encode_output(logits, ("b", "grün", "r"), OutputFormat(binary=True, classes=1))
    expected = "3.500000:1:grün".encode()
    assert binary == struct.pack("<I", len(expected)) + expected
