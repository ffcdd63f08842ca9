"""The JSON documents that clients send and receive; the OpenAPI description contains their types.

Sources of the Open Inference Protocol's documents: its REST specification,
https://github.com/kserve/open-inference-protocol (commit 011728e), and Triton's extensions
"binary tensor data", "classification", "model configuration", "statistics" and the index of "model
repository", https://github.com/triton-inference-server/server/tree/02c5c95/docs/protocol. The list
of models is that of KServe's server, https://github.com/kserve/kserve (python/kserve).
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field

from resdeploy.bundle.manifest import INPUT_NAME, OUTPUT_NAME
from resdeploy.predictions import Prediction

INPUT_TYPE = "UINT8"
OUTPUT_TYPE = "FP32"
MAX_ID_LENGTH = 256
MAX_INTEGER = (1 << 63) - 1

Count = Annotated[int, Meta(ge=0, le=MAX_INTEGER)]
Dimension = Annotated[int, Meta(ge=1, le=MAX_INTEGER)]
Microseconds = Annotated[int, Meta(ge=0, le=MAX_INTEGER, description="Time in microseconds.")]


def json_line(document: object) -> bytes:
    """Return a document as JSON with a newline, so that a shell's prompt begins on a new line."""
    return msgspec.json.encode(document) + b"\n"


class Error(Struct, frozen=True):
    """The reason why a request failed."""

    error: str


class Live(Struct, frozen=True):
    live: bool


class Ready(Struct, frozen=True):
    ready: bool


class ModelReady(Struct, frozen=True):
    name: str
    ready: bool


class ServerMetadata(Struct, frozen=True):
    """Name, version and protocol extensions of the server."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(Struct, frozen=True):
    """Name, type and shape of an input or output; -1 marks a dimension of variable size."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(Struct, frozen=True):
    """Inputs and outputs of a model, and the backend that runs it."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelList(Struct, frozen=True):
    """Names of all models."""

    models: list[str]


class RepositoryIndexRequest(Struct, frozen=True):
    ready: bool = False
    """True to list only the models that are ready."""


class RepositoryEntry(Struct, frozen=True):
    """State of a model: READY or UNAVAILABLE."""

    name: str
    version: str
    state: str
    reason: str = ""


class InputParameters(Struct, frozen=True):
    binary_data_size: Count | None = None
    shared_memory_region: Any = None


class InputTensor(Struct, frozen=True):
    """A batch of RGB images, as a flat or nested list or as binary data after the document."""

    name: Annotated[str, Meta(pattern=f"^{INPUT_NAME}$")]
    datatype: Annotated[str, Meta(extra_json_schema={"const": INPUT_TYPE})]
    shape: Annotated[list[Dimension], Meta(min_length=4, max_length=4)]
    data: Annotated[Raw, Meta(extra_json_schema={"type": ["array", "null"]})] = field(
        default_factory=lambda: Raw(b"null")
    )
    parameters: InputParameters = InputParameters()


class OutputParameters(Struct, frozen=True):
    binary_data: bool | None = None
    classification: Count = 0
    shared_memory_region: Any = None


class RequestedOutput(Struct, frozen=True):
    """The form in which the client wants the output."""

    name: Annotated[str, Meta(pattern=f"^{OUTPUT_NAME}$")]
    parameters: OutputParameters = OutputParameters()


class RequestParameters(Struct, frozen=True):
    timeout: Microseconds | None = None
    binary_data_output: bool = False


class InferRequest(Struct, frozen=True):
    inputs: Annotated[list[InputTensor], Meta(min_length=1, max_length=1)]
    outputs: Annotated[list[RequestedOutput], Meta(max_length=1)] | None = None
    id: Annotated[str, Meta(max_length=MAX_ID_LENGTH)] = ""
    parameters: RequestParameters = RequestParameters()


class OutputTensor(Struct, frozen=True):
    """Logits as numbers or classes as text, in the document or as binary data after it."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | UnsetType = UNSET
    parameters: dict[str, int] | UnsetType = UNSET


class InferResponse(Struct, frozen=True, kw_only=True):
    """The answer to an inference request; the parameters name the backend and the graph."""

    model_name: str
    model_version: str
    id: str | UnsetType = UNSET
    parameters: dict[str, str]
    outputs: list[OutputTensor]


class StageMilliseconds(Struct, frozen=True):
    """Time in milliseconds that a request spent in each stage."""

    decode: float
    queue: float
    inference: float


class PictureClasses(Struct, frozen=True):
    """The most likely classes of one picture, in order of their probability, or an error."""

    image: str | None
    predictions: list[Prediction]
    error: str | None = None
    """Reason why the picture cannot be decoded, with the remedy; it then has no predictions."""


class Classification(Struct, frozen=True):
    """The classes of all pictures of a request, and how they were computed."""

    model: str
    backend: str
    artifact: str
    precision: str
    batch: int
    milliseconds: StageMilliseconds
    results: list[PictureClasses]


class ModelWarning(Struct, frozen=True):
    """A doubt about the accuracy of a model, and its remedy."""

    message: str
    hint: str


class ModelStats(Struct, frozen=True):
    """The current state of a model."""

    name: str
    ready: bool
    queue: int
    backend: str
    artifact: str
    warnings: list[ModelWarning]


class Stats(Struct, frozen=True):
    """Rates and latencies of the last seconds, and the state of each model."""

    seconds: float
    requests_per_second: float
    images_per_second: float
    p50_ms: float | None
    p99_ms: float | None
    models: list[ModelStats]
