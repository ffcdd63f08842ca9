"""A server process that many tests share, and a server in this process with fake engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import Mock

import pytest
from starlette.types import ASGIApp

from resdeploy.bundle.bundle import Bundle
from resdeploy.runtime.serving.config import ServeConfig
from resdeploy.runtime.serving.decoder_pool import Decoder
from resdeploy.runtime.serving.http.middleware import RequestMiddleware
from resdeploy.runtime.serving.http.routes import make_app
from resdeploy.runtime.serving.metrics import Metrics
from resdeploy.runtime.serving.served_model import ServedModel
from resdeploy.runtime.serving.service import Service
from tests.asgi import Reply, ask
from tests.serving_process import ServerProcess


@pytest.fixture(scope="session")
def server(tiny_bundle: Bundle) -> Iterator[ServerProcess]:
    """Run a server with HTTP and gRPC for the tests' bundle; tests must not stop it."""
    with ServerProcess(tiny_bundle.path, "--grpc-port", 0, "--threads", 1) as process:
        yield process.until_ready()
        assert process.stop()[0] == 0


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


@dataclass
class LocalServer:
    """A server in this process: the ASGI application and its service."""

    app: ASGIApp
    service: Service

    @property
    def model(self) -> ServedModel:
        return self.service.model()

    async def ask(self, path: str, *arguments: Any, **options: Any) -> Reply:
        return await ask(self.app, path, *arguments, **options)

    def metrics(self) -> str:
        return self.service.metrics.exposition(self.service.states()).decode()


@contextmanager
def without_models(
    settings: Mapping[str, Any] | None = None,
    token: bytes | None = None,
    *,
    over_capacity: bool = False,
) -> Iterator[LocalServer]:
    """Serve no model, which takes no time to load."""
    config = ServeConfig(**(settings or {}))
    service = Service({}, Mock(spec=Decoder), Metrics(), config)
    app = RequestMiddleware(
        make_app(service, needs_token=token is not None), service, token, lambda: over_capacity
    )
    yield LocalServer(app, service)


@asynccontextmanager
async def local_server(
    bundle: Bundle, settings: Mapping[str, Any] | None = None, *, decodes: bool = False
) -> AsyncIterator[LocalServer]:
    """Serve `bundle` as `tiny`, with the engines of `registry.ENGINES`.

    A decoder, for `decodes`, is a process that takes a second to start.
    """
    config = ServeConfig(threads=1, **(settings or {}))
    metrics = Metrics()
    model = ServedModel("tiny", bundle.path, config, partial(metrics.count_batch, "tiny"))
    max_wait = config.max_wait_ms / 1000
    decoder: Any = Mock(spec=Decoder)
    if decodes:
        decoder = Decoder(2, max_pixels=config.max_pixels, max_wait=max_wait)
    service = Service({"tiny": model}, decoder, metrics, config)
    app = RequestMiddleware(
        make_app(service, needs_token=False), service, None, over_capacity=lambda: False
    )
    await model.load()
    try:
        yield LocalServer(app, service)
    finally:
        await model.close()
        decoder.close()
