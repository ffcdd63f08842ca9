"""Conversion between the Open Inference Protocol's tensors and arrays, without input or output.

`schemas` names the sources. N is the number of images, H and W are height and width of the model's
input in pixels, K is the number of classes.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from msgspec import Meta, Raw

from resdeploy.bundle.golden import Float32Array
from resdeploy.bundle.manifest import INPUT_NAME, OUTPUT_NAME
from resdeploy.images.preprocessing import ImageSize, UInt8Array, height_and_width, pixel_count
from resdeploy.runtime.serving.request_errors import NotSupported, RequestError, TooLarge
from resdeploy.runtime.serving.schemas import (
    INPUT_TYPE,
    OUTPUT_TYPE,
    InferRequest,
    InputParameters,
    InputTensor,
    OutputParameters,
    OutputTensor,
)
from resdeploy.runtime.serving.triton.refusals import SHARED_MEMORY

# Parsing this much JSON takes about 0.2 s in a thread. It is 20 images of 224 pixels.
MAX_JSON_BYTES = 12 << 20
# Maximum size of the names, shapes and parameters beside the tensor; as over gRPC.
MAX_JSON_BESIDE_TENSOR = 64 << 10
# Digits that become numbers at once: about a millisecond, in which no other thread runs.
DIGIT_BYTES = 64 << 10
PIXELS = msgspec.json.Decoder(list[Annotated[int, Meta(ge=0, le=255)]])
NO_DATA = Raw(b"null")
OUT_OF_RANGE = f"the data of input {INPUT_NAME} is not integers between 0 and 255"

Parameters = TypeVar("Parameters")


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
    """Images (N, H, W, 3)."""
    id: str = ""
    output: OutputFormat = OutputFormat()
    timeout: float | None = None
    """Timeout in seconds."""


def parse_request(
    body: bytes | bytearray, json_bytes: int | None, size: ImageSize, classes: int
) -> ParsedRequest:
    """Parse a request body: a JSON document, optionally with binary tensors after it.

    Args:
        body: Complete body.
        json_bytes: Length of the document in bytes; None if it is the whole body.
        size: Size of the model's input in pixels.
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
        _check_keys(view[:length], request.inputs[0].data)
    except msgspec.ValidationError as error:
        raise RequestError(f"the request is invalid: {error}") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the request is not a JSON document: {error}") from error
    parameters = request.parameters
    requested = request.outputs[0].parameters if request.outputs else OutputParameters()
    refuse_shared_memory(request.inputs[0].parameters, requested)
    return ParsedRequest(
        images=_images(request.inputs[0], view[length:], size),
        id=request.id,
        output=OutputFormat(
            binary=parameters.binary_data_output
            if requested.binary_data is None
            else requested.binary_data,
            classes=min(requested.classification, classes),
        ),
        timeout=parameters.timeout / 1e6 if parameters.timeout else None,
    )


def convert(value: object, kind: type[Parameters]) -> Parameters:
    """Return `value`, a tree of plain objects, as an instance of `kind`, a type of `schemas`.

    Raises:
        RequestError: A value has the wrong type or range.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise RequestError(f"the request is invalid: {error}") from error


def refuse_shared_memory(*tensors: InputParameters | OutputParameters) -> None:
    """Raise NotSupported if a tensor is to be in shared memory."""
    if any(parameters.shared_memory_region is not None for parameters in tensors):
        raise NotSupported(SHARED_MEMORY)


def images_from_bytes(
    data: Any, shape: Sequence[int], datatype: str, size: ImageSize
) -> UInt8Array:
    """Return a buffer as images (N, H, W, 3), without a copy.

    Raises:
        RequestError: The type, shape or length does not suit the model.
    """
    count = _check_input(datatype, shape, size)
    expected = count * pixel_count(size) * 3
    if len(data) != expected:
        raise RequestError(
            f"input {INPUT_NAME} has {len(data)} bytes where its shape needs {expected}"
        )
    return np.frombuffer(data, np.uint8).reshape(count, *height_and_width(size), 3)


def images_from_values(
    data: Any, shape: Sequence[int], datatype: str, size: ImageSize
) -> UInt8Array:
    """Return a flat sequence of integers as images (N, H, W, 3).

    Raises:
        RequestError: The type, the shape or a value does not suit the model.
    """
    count = _check_input(datatype, shape, size)
    _check_count(len(data), count * pixel_count(size) * 3)
    try:
        values = np.frombuffer(bytes(data), np.uint8)
    except ValueError as error:
        raise RequestError(OUT_OF_RANGE) from error
    return values.reshape(count, *height_and_width(size), 3)


def images_from_json(data: Raw, shape: Sequence[int], datatype: str, size: ImageSize) -> UInt8Array:
    """Return a flat or nested list of integers in JSON as images (N, H, W, 3).

    The text becomes bytes in pieces, without an object for each value: memory is at most about
    five times the text, and no piece holds Python's lock for more than a few milliseconds.

    Raises:
        RequestError: The type, the shape or a value does not suit the model.
    """
    count = _check_input(datatype, shape, size)
    text = bytes(data).translate(None, b" \t\r\n")
    brackets = text.translate(None, b"0123456789")
    commas = brackets.count(b",")
    if len(brackets) != commas + brackets.count(b"[") + brackets.count(b"]"):
        raise RequestError(OUT_OF_RANGE)
    expected = count * pixel_count(size) * 3
    numbers = text.translate(None, b"[]")
    _check_count(commas + bool(numbers), expected)
    if not _is_regular(brackets, (count, *height_and_width(size), 3)):
        raise RequestError(f"the data of input {INPUT_NAME} has no regular shape")
    values = bytearray()
    begin = 0
    try:
        while begin < len(numbers):
            end = numbers.find(b",", begin + DIGIT_BYTES)
            end = len(numbers) if end < 0 else end
            values += bytes(PIXELS.decode(b"[%b]" % numbers[begin:end]))
            begin = end + 1
    except msgspec.ValidationError as error:
        raise RequestError(OUT_OF_RANGE) from error
    return np.frombuffer(values, np.uint8).reshape(count, *height_and_width(size), 3)


def encode_output(
    logits: Float32Array, labels: Sequence[str], output: OutputFormat
) -> tuple[OutputTensor, bytes]:
    """Return the output tensor of a response and the binary data after the JSON document.

    Args:
        logits: Logits (N, K).
        labels: Label of each class.
        output: Requested form.
    """
    texts: list[str] = []
    if output.classes:
        order = np.argsort(-logits, axis=1, kind="stable")[:, : output.classes]
        texts = [
            f"{row[index]:f}:{index}:{labels[index]}"
            for row, indices in zip(logits, order)
            for index in indices
        ]
        datatype, shape = "BYTES", list(order.shape)
    else:
        datatype, shape = OUTPUT_TYPE, list(logits.shape)
    tensor = partial(OutputTensor, name=OUTPUT_NAME, datatype=datatype, shape=shape)
    if not output.binary:
        return tensor(data=texts or logits.ravel().tolist()), b""
    if texts:
        # Each element of BYTES is its length in four bytes and its text in UTF-8.
        encoded = [text.encode() for text in texts]
        binary = b"".join(struct.pack("<I", len(text)) + text for text in encoded)
    else:
        binary = logits.astype("<f4", copy=False).tobytes()
    return tensor(parameters={"binary_data_size": len(binary)}), binary


def _check_input(datatype: str, shape: Sequence[int], size: ImageSize) -> int:
    """Return the number of images N of an input.

    Raises:
        RequestError: The type or shape does not suit the model.
    """
    if datatype != INPUT_TYPE:
        raise RequestError(f"input {INPUT_NAME} has another datatype than {INPUT_TYPE}")
    height, width = height_and_width(size)
    if len(shape) != 4 or tuple(shape[1:]) != (height, width, 3) or shape[0] < 1:
        raise RequestError(
            f"input {INPUT_NAME} has shape {list(shape)[:4]}, not [N, {height}, {width}, 3] with N "
            "at least 1"
        )
    return shape[0]


def _check_count(values: int, expected: int) -> None:
    if values != expected:
        raise RequestError(f"input {INPUT_NAME} needs {expected} integers, but has {values} values")


def _is_regular(brackets: bytes, shape: Sequence[int]) -> bool:
    """Return True for the brackets and commas of an array whose last dimensions may be merged."""
    depth = len(brackets) - len(brackets.lstrip(b"["))
    if not 1 <= depth <= len(shape):
        return False
    *outer, last = *shape[: depth - 1], math.prod(shape[depth - 1 :])
    expected = b"[" + b"," * (last - 1) + b"]"
    for dimension in reversed(outer):
        expected = b"[" + b",".join([expected] * dimension) + b"]"
    return brackets == expected


def _check_keys(document: memoryview, data: Raw) -> None:
    """Refuse a valid document with a repeated key, or with too much beside the tensor's data."""
    begin = end = 0
    if data != NO_DATA:  # Raw is a view of the document
        whole, part = (np.frombuffer(text, np.uint8).ctypes.data for text in (document, data))
        begin, end = part - whole, part - whole + len(data)
    if len(document) - (end - begin) > MAX_JSON_BESIDE_TENSOR:
        raise TooLarge(f"more than {MAX_JSON_BESIDE_TENSOR} bytes of JSON beside the tensor")
    rest = b"".join((document[:begin], b"0" if end else b"", document[end:]))

    def refuse_repeated(pairs: list[tuple[str, object]]) -> None:
        if len(dict(pairs)) != len(pairs):
            raise RequestError("a key occurs twice in an object of the document")

    json.loads(rest.decode(), object_pairs_hook=refuse_repeated)


def _images(tensor: InputTensor, binary: memoryview, size: ImageSize) -> UInt8Array:
    announced = tensor.parameters.binary_data_size
    if announced is not None:
        if announced != len(binary) or tensor.data != NO_DATA:
            raise RequestError(
                f"input {INPUT_NAME} announces other binary data than the {len(binary)} bytes "
                "after the JSON document"
            )
        return images_from_bytes(binary, tensor.shape, tensor.datatype, size)
    if len(binary):
        raise RequestError("no input announces the bytes after the JSON document")
    if tensor.data == NO_DATA:
        raise RequestError(f"input {INPUT_NAME} has no data")
    return images_from_json(tensor.data, tensor.shape, tensor.datatype, size)
