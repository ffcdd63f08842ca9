"""The messages of `open_inference.proto`, from the descriptor set that setup.py compiles.

They have their own descriptor pool, because a client of the same protocol may run in this process.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from typing import Any, NamedTuple

from resdeploy.errors import MissingDependencyError

SERVICE = "inference.GRPCInferenceService"
COMPILED = "open_inference.binpb"


class Method(NamedTuple):
    """The classes of the messages of a remote procedure."""

    request: Any
    response: Any


@lru_cache(maxsize=1)
def load_pool() -> Any:
    """Return the descriptor pool with the compiled protocol.

    Raises:
        MissingDependencyError: The package was copied instead of built.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool

    compiled = files("resdeploy.runtime.serving.grpc").joinpath(COMPILED)
    if not compiled.is_file():
        raise MissingDependencyError(
            "the gRPC protocol was not compiled", "install resdeploy with pip, which compiles it"
        )
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(compiled.read_bytes()).file:
        pool.Add(file)
    return pool


@lru_cache(maxsize=1)
def load_methods() -> dict[str, Method]:
    """Return the methods of the inference service by name.

    Raises:
        MissingDependencyError: The package was copied instead of built.
    """
    from google.protobuf import message_factory

    return {
        method.name: Method(
            message_factory.GetMessageClass(method.input_type),
            message_factory.GetMessageClass(method.output_type),
        )
        for method in load_pool().FindServiceByName(SERVICE).methods
    }
