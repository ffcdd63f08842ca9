"""The messages of `open_inference.proto`, made from the descriptor set that setup.py compiles.

They live in a descriptor pool of their own: a client of the same protocol may share the process.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

from resdeploy.errors import MissingDependencyError

SERVICE = "inference.GRPCInferenceService"
COMPILED = "open_inference.binpb"


@dataclass(frozen=True, slots=True)
class Method:
    """One call, and the classes of its messages."""

    name: str
    request: Any
    response: Any


@lru_cache(maxsize=1)
def load_methods() -> dict[str, Method]:
    """The service's calls by name.

    Raises:
        MissingDependencyError: the package was not built but copied.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    compiled = files("resdeploy.runtime.serving.grpc").joinpath(COMPILED)
    if not compiled.is_file():
        raise MissingDependencyError(
            "the gRPC protocol was not compiled", "install resdeploy with pip, which compiles it"
        )
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(compiled.read_bytes()).file:
        pool.Add(file)
    service = pool.FindServiceByName(SERVICE)
    return {
        method.name: Method(
            method.name,
            message_factory.GetMessageClass(method.input_type),
            message_factory.GetMessageClass(method.output_type),
        )
        for method in service.methods
    }
