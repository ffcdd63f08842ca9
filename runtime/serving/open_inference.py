"""The Open Inference Protocol's tensors: from bytes to images, from logits to bytes. Pure.

Sources: the protocol's REST document, https://github.com/kserve/open-inference-protocol (commit
011728e), and Triton's extensions "binary tensor data" and "classification",
https://github.com/triton-inference-server/server/tree/02c5c95/docs/protocol. N images, S the side
of the model's input in pixels, K classes.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from resdeploy.bundle.golden import Float32Array
from resdeploy.bundle.manifest import INPUT_NAME, OUTPUT_NAME
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.runtime.serving.request_errors import RequestError, TooLarge

INPUT_TYPE = "UINT8"
OUTPUT_TYPE = "FP32"
LONGEST_ID = 256
# JSON is parsed without a pause for anyone else, for about 0.1 s. 20 images of 224 pixels.
MAX_JSON_BYTES = 12 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputRequest:
    """What is to be sent back for the logits."""

    binary: bool = False
    """As bytes behind the JSON document."""
    classes: int = 0
    """As so many of the most likely classes in words; 0: as numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceRequest:
    """One request, whichever way it came."""

    images: UInt8Array
    """Shape (N, S, S, 3)."""
    id: str = ""
    wanted: OutputRequest = OutputRequest()
    timeout: float | None = None
    """In seconds."""


def parse_request(body: bytes, json_bytes: int | None, size: int, classes: int) -> InferenceRequest:
    """Read a request's body: a JSON document, and binary tensors behind it.

    Args:
        body: All of it.
        json_bytes: The document's length; None where there is nothing else.
        size: S.
        classes: K.

    Raises:
        RequestError: it is not what the protocol and the model ask for; the message says why.
        TooLarge: the document is longer than is parsed at once.
    """
    length = len(body) if json_bytes is None else json_bytes
    if not 0 <= length <= len(body):
        raise RequestError(f"the JSON part has {length} bytes of a body of {len(body)}")
    if length > MAX_JSON_BYTES:
        raise TooLarge(
            f"a JSON document of {length} bytes; {MAX_JSON_BYTES} are allowed, send binary tensors"
        )
    view = memoryview(body)
    document = _mapping(_load_json(view[:length]), "the request")
    parameters = _mapping(document.get("parameters", {}), "parameters")
    return InferenceRequest(
        images=_images(document.get("inputs"), view[length:], size),
        id=parse_id(document.get("id", "")),
        wanted=_wanted(document.get("outputs"), parameters, classes),
        timeout=parse_timeout(parameters.get("timeout")),
    )


def images_from_bytes(data: Any, shape: Sequence[Any], datatype: str, size: int) -> UInt8Array:
    """The images (N, S, S, 3) that a buffer holds; they are not copied.

    Raises:
        RequestError: type, shape or length are not those of the model's input.
    """
    return _reshape(data, check_input(datatype, shape, size), size)


def check_input(datatype: Any, shape: Any, size: int) -> int:
    """N of an input's shape.

    Raises:
        RequestError: type or shape are not those of the model's input.
    """
    if datatype != INPUT_TYPE:
        raise RequestError(f"input {INPUT_NAME} has another datatype than {INPUT_TYPE}")
    expected = f"[N, {size}, {size}, 3] with N at least 1"
    if not isinstance(shape, Sequence) or len(shape) != 4 or not all(map(_is_integer, shape)):
        raise RequestError(f"input {INPUT_NAME} needs a shape of {expected}")
    if tuple(shape[1:]) != (size, size, 3) or shape[0] < 1:
        raise RequestError(f"input {INPUT_NAME} has shape {list(shape)[:4]}, not {expected}")
    return int(shape[0])


def parse_id(value: Any) -> str:
    """What the answer repeats.

    Raises:
        RequestError: it is no string, or a long one.
    """
    if not isinstance(value, str) or len(value) > LONGEST_ID:
        raise RequestError(f"the id must be a string of at most {LONGEST_ID} characters")
    return value


def parse_timeout(value: Any) -> float | None:
    """Seconds of a parameter in microseconds; None for none.

    Raises:
        RequestError: it is no integer from 0.
    """
    if value is None:
        return None
    if not _is_integer(value) or not 0 <= value < 1 << 63:
        raise RequestError("parameter timeout must be an integer of microseconds")
    return int(value) / 1e6 or None


def parse_classes(value: Any, classes: int) -> int:
    """How many classes in words are wanted; 0 for none.

    Raises:
        RequestError: it is no integer from 0.
    """
    if not _is_integer(value) or value < 0:
        raise RequestError("parameter classification must be an integer from 0")
    return min(int(value), classes)


def parse_flag(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    """A boolean parameter.

    Raises:
        RequestError: it is something else.
    """
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise RequestError(f"parameter {name} must be true or false")
    return value


def classify(logits: Float32Array, labels: Sequence[str], count: int) -> list[list[str]]:
    """`value:index:label` of the `count` largest logits of each row, the largest first."""
    order = np.argsort(-logits, axis=1, kind="stable")[:, :count]
    return [
        [f"{row[index]:f}:{index}:{labels[index]}" for index in indices]
        for row, indices in zip(logits, order)
    ]


def encode_strings(rows: Sequence[Sequence[str]]) -> bytes:
    """BYTES elements: the length in four bytes, then the text in UTF-8."""
    texts = [text.encode() for row in rows for text in row]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def encode_response(
    head: Mapping[str, Any], logits: Float32Array, labels: Sequence[str], wanted: OutputRequest
) -> tuple[bytes, bytes]:
    """A response's JSON document, and the bytes behind it.

    Args:
        head: What the document says beside the outputs.
        logits: Shape (N, K).
        labels: One per class.
        wanted: In which form.
    """
    output: dict[str, Any] = {"name": OUTPUT_NAME}
    binary = b""
    if wanted.classes:
        rows = classify(logits, labels, wanted.classes)
        output |= {"datatype": "BYTES", "shape": [len(rows), wanted.classes]}
        if wanted.binary:
            binary = encode_strings(rows)
        else:
            output["data"] = [text for row in rows for text in row]
    else:
        output |= {"datatype": OUTPUT_TYPE, "shape": list(logits.shape)}
        if wanted.binary:
            binary = encode_floats(logits)
        else:
            output["data"] = logits.ravel().tolist()
    if wanted.binary:
        output["parameters"] = {"binary_data_size": len(binary)}
    return json.dumps({**head, "outputs": [output]}, allow_nan=False).encode(), binary


def encode_floats(values: Float32Array) -> bytes:
    """Row-major and little-endian."""
    return values.astype("<f4", copy=False).tobytes()


def _load_json(data: memoryview) -> Any:
    try:
        return json.loads(bytes(data), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError("the request is no JSON document") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _images(inputs: Any, binary: memoryview, size: int) -> UInt8Array:
    if not isinstance(inputs, list) or len(inputs) != 1:
        raise RequestError(f"the model takes one input, {INPUT_NAME}")
    (entry,) = inputs
    entry = _mapping(entry, "an input")
    if entry.get("name") != INPUT_NAME:
        raise RequestError(f"the model's input is called {INPUT_NAME}")
    parameters = _mapping(entry.get("parameters", {}), "parameters")
    count = check_input(entry.get("datatype"), entry.get("shape"), size)
    if "binary_data_size" in parameters:
        announced = parameters["binary_data_size"]
        if not _is_integer(announced) or announced != len(binary) or "data" in entry:
            raise RequestError(
                f"input {INPUT_NAME} announces other binary data than the {len(binary)} bytes "
                "behind the JSON document"
            )
        return _reshape(binary, count, size)
    if len(binary):
        raise RequestError("there are bytes behind the JSON document that no input announces")
    return _images_from_list(entry.get("data"), count, size)


def _reshape(data: Any, count: int, size: int) -> UInt8Array:
    expected = count * size * size * 3
    if len(data) != expected:
        raise RequestError(
            f"input {INPUT_NAME} has {len(data)} bytes where its shape needs {expected}"
        )
    return np.frombuffer(data, np.uint8).reshape(count, size, size, 3)


def _images_from_list(data: Any, count: int, size: int) -> UInt8Array:
    """The images of a flat or nested list of integers."""
    if not isinstance(data, list):
        raise RequestError(f"input {INPUT_NAME} has no data")
    shape = (count, size, size, 3)
    try:
        values = np.array(data)
    except ValueError as error:  # ragged, or nested too deep
        raise RequestError(f"the data of input {INPUT_NAME} have no regular shape") from error
    if values.dtype.kind != "i" or values.size != math.prod(shape):
        raise RequestError(f"input {INPUT_NAME} needs {math.prod(shape)} integers")
    if values.min() < 0 or values.max() > 255:
        raise RequestError(f"the data of input {INPUT_NAME} are not all from 0 to 255")
    return values.astype(np.uint8).reshape(shape)


def _wanted(outputs: Any, parameters: Mapping[str, Any], classes: int) -> OutputRequest:
    default = parse_flag(parameters, "binary_data_output", False)
    if outputs is None or outputs == []:
        return OutputRequest(binary=default)
    if not isinstance(outputs, list) or len(outputs) != 1:
        raise RequestError(f"the model gives one output, {OUTPUT_NAME}")
    entry = _mapping(outputs[0], "an output")
    if entry.get("name") != OUTPUT_NAME:
        raise RequestError(f"the model's output is called {OUTPUT_NAME}")
    own = _mapping(entry.get("parameters", {}), "parameters")
    return OutputRequest(
        binary=parse_flag(own, "binary_data", default),
        classes=parse_classes(own.get("classification", 0), classes),
    )


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RequestError(f"{what} must be a JSON object")
    return value


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
