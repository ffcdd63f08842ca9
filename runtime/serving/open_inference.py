"""Conversion between the Open Inference Protocol's tensors and arrays, without input or output.

`schemas` names the sources. N is the number of images, S the side of the model's input in pixels,
K the number of classes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import numpy as np

from resdeploy.bundle.golden import Float32Array
from resdeploy.bundle.manifest import INPUT_NAME, OUTPUT_NAME
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.runtime.serving.request_errors import RequestError, TooLarge
from resdeploy.runtime.serving.schemas import (
    INPUT_TYPE,
    OUTPUT_TYPE,
    InferRequest,
    InputTensor,
    OutputParameters,
    OutputTensor,
    RequestParameters,
)

# Parsing this much JSON blocks the event loop for about 0.1 s. It is 20 images of 224 pixels.
MAX_JSON_BYTES = 12 << 20

Document = TypeVar("Document")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFormat:
    """The form in which a client wants the logits."""

    binary: bool = False
    """True for bytes after the JSON document, False for values in it."""
    classes: int = 0
    """Number of most likely classes to return as text; 0 to return all logits as numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedRequest:
    """A valid inference request, from HTTP or gRPC."""

    images: UInt8Array
    """Images (N, S, S, 3)."""
    id: str = ""
    output: OutputFormat = OutputFormat()
    timeout: float | None = None
    """Timeout in seconds."""


def parse_request(body: bytes, json_bytes: int | None, size: int, classes: int) -> ParsedRequest:
    """Parse a request body: a JSON document, optionally with binary tensors after it.

    Args:
        body: Complete body.
        json_bytes: Length of the document in bytes; None if it is the whole body.
        size: Side S of the model's input in pixels.
        classes: Number of classes K.

    Raises:
        RequestError: The body does not follow the protocol or does not suit the model.
        TooLarge: The document is longer than `MAX_JSON_BYTES`.
    """
    length = len(body) if json_bytes is None else json_bytes
    if not 0 <= length <= len(body):
        raise RequestError(f"the JSON part has {length} bytes of a body of {len(body)}")
    if length > MAX_JSON_BYTES:
        raise TooLarge(
            f"a JSON document of {length} bytes; {MAX_JSON_BYTES} are allowed, send binary tensors"
        )
    view = memoryview(body)
    try:
        request = msgspec.json.decode(view[:length], type=InferRequest)
    except msgspec.ValidationError as error:
        raise RequestError(f"the request is invalid: {error}") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the request is not a JSON document: {error}") from error
    parameters = request.parameters
    output = request.outputs[0].parameters if request.outputs else OutputParameters()
    return ParsedRequest(
        images=_images(request.inputs[0], view[length:], size),
        id=request.id,
        output=output_format(output, classes, binary=parameters.binary_data_output),
        timeout=timeout_seconds(parameters),
    )


def convert(value: object, kind: type[Document]) -> Document:
    """Return `value`, a tree of plain objects, as an instance of a type of `schemas`.

    Raises:
        RequestError: A value has the wrong type or range.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise RequestError(f"the request is invalid: {error}") from error


def output_format(parameters: OutputParameters, classes: int, *, binary: bool) -> OutputFormat:
    """Return the requested form of the output; `binary` is the default of the request."""
    return OutputFormat(
        binary=binary if parameters.binary_data is None else parameters.binary_data,
        classes=min(parameters.classification, classes),
    )


def timeout_seconds(parameters: RequestParameters) -> float | None:
    """Return the timeout of a request in seconds; None for none or zero."""
    return parameters.timeout / 1e6 if parameters.timeout else None


def images_from_bytes(data: Any, shape: Sequence[int], datatype: str, size: int) -> UInt8Array:
    """Return a buffer as images (N, S, S, 3), without a copy.

    Raises:
        RequestError: The type, shape or length does not suit the model.
    """
    return _reshape(data, check_input(datatype, shape, size), size)


def check_input(datatype: str, shape: Sequence[int], size: int) -> int:
    """Return the number of images N of an input.

    Raises:
        RequestError: The type or shape does not suit the model.
    """
    if datatype != INPUT_TYPE:
        raise RequestError(f"input {INPUT_NAME} has another datatype than {INPUT_TYPE}")
    if len(shape) != 4 or tuple(shape[1:]) != (size, size, 3) or shape[0] < 1:
        raise RequestError(
            f"input {INPUT_NAME} has shape {list(shape)[:4]}, not [N, {size}, {size}, 3] with N "
            "at least 1"
        )
    return shape[0]


def classify(logits: Float32Array, labels: Sequence[str], count: int) -> list[list[str]]:
    """Return `value:index:label` of the `count` largest logits of each row, in descending order."""
    order = np.argsort(-logits, axis=1, kind="stable")[:, :count]
    return [
        [f"{row[index]:f}:{index}:{labels[index]}" for index in indices]
        for row, indices in zip(logits, order)
    ]


def encode_strings(rows: Sequence[Sequence[str]]) -> bytes:
    """Encode BYTES elements: each is its length in four bytes and its text in UTF-8."""
    texts = [text.encode() for row in rows for text in row]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def encode_output(
    logits: Float32Array, labels: Sequence[str], output: OutputFormat
) -> tuple[OutputTensor, bytes]:
    """Return the output tensor of a response and the binary data after the JSON document.

    Args:
        logits: Logits (N, K).
        labels: Label of each class.
        output: Requested form.
    """
    data: list[Any]
    if output.classes:
        rows = classify(logits, labels, output.classes)
        datatype, shape = "BYTES", [len(rows), output.classes]
        binary = encode_strings(rows) if output.binary else b""
        data = [text for row in rows for text in row]
    else:
        datatype, shape = OUTPUT_TYPE, list(logits.shape)
        binary = encode_floats(logits) if output.binary else b""
        data = [] if output.binary else logits.ravel().tolist()
    return (
        OutputTensor(
            name=OUTPUT_NAME,
            datatype=datatype,
            shape=shape,
            data=msgspec.UNSET if output.binary else data,
            parameters={"binary_data_size": len(binary)} if output.binary else msgspec.UNSET,
        ),
        binary,
    )


def encode_floats(values: Float32Array) -> bytes:
    """Return the values in row-major order as little-endian float32."""
    return values.astype("<f4", copy=False).tobytes()


def _images(tensor: InputTensor, binary: memoryview, size: int) -> UInt8Array:
    count = check_input(tensor.datatype, tensor.shape, size)
    announced = tensor.parameters.binary_data_size
    if announced is not None:
        if announced != len(binary) or tensor.data is not None:
            raise RequestError(
                f"input {INPUT_NAME} announces other binary data than the {len(binary)} bytes "
                "after the JSON document"
            )
        return _reshape(binary, count, size)
    if len(binary):
        raise RequestError("no input announces the bytes after the JSON document")
    if tensor.data is None:
        raise RequestError(f"input {INPUT_NAME} has no data")
    return _images_from_list(tensor.data, count, size)


def _reshape(data: Any, count: int, size: int) -> UInt8Array:
    expected = count * size * size * 3
    if len(data) != expected:
        raise RequestError(
            f"input {INPUT_NAME} has {len(data)} bytes where its shape needs {expected}"
        )
    return np.frombuffer(data, np.uint8).reshape(count, size, size, 3)


def _images_from_list(data: list[Any], count: int, size: int) -> UInt8Array:
    shape = (count, size, size, 3)
    try:
        values = np.array(data)
    except ValueError as error:  # ragged, or nested too deep
        raise RequestError(f"the data of input {INPUT_NAME} has no regular shape") from error
    if values.dtype.kind != "i" or values.size != math.prod(shape):
        raise RequestError(f"input {INPUT_NAME} needs {math.prod(shape)} integers")
    if values.min() < 0 or values.max() > 255:
        raise RequestError(f"the data of input {INPUT_NAME} is not between 0 and 255")
    return values.astype(np.uint8).reshape(shape)
