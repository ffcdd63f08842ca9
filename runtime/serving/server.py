"""From bundles to a process that serves them: start, signals, drain, exit."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from resdeploy.errors import BackendError, ResdeployError, ServeError
from resdeploy.machine.device import available_cores
from resdeploy.progress import Advance, Progress
from resdeploy.runtime.serving.config import ServeConfig
from resdeploy.runtime.serving.decoding import Decoder
from resdeploy.runtime.serving.http.connection import limited_protocol
from resdeploy.runtime.serving.http.listener import HttpServer, listen
from resdeploy.runtime.serving.http.middleware import RequestMiddleware
from resdeploy.runtime.serving.http.routes import make_app
from resdeploy.runtime.serving.logs import json_logs
from resdeploy.runtime.serving.metrics import Metrics
from resdeploy.runtime.serving.served_model import ServedModel
from resdeploy.runtime.serving.service import Service
from resdeploy.runtime.serving.startup import allow_files, model_names, read_token

logger = logging.getLogger(__name__)

# Files beside connections: graphs, logs, libraries, the engines' own.
OTHER_FILES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSummary:
    """What a server did until it was stopped."""

    seconds: float
    requests: int
    images: int
    """Seen by models."""
    reloads: int


def serve(bundles: Sequence[Path], config: ServeConfig, progress: Progress) -> ServeSummary:
    """Serve bundles until SIGTERM or SIGINT; SIGHUP loads those anew that changed.

    Raises:
        BackendError, BundleError: a bundle cannot be served on this machine.
        ServeError: the address, the token or the certificate cannot be used.
    """
    names = model_names(bundles)
    token = read_token(config)
    allow_files(2 * config.connections + OTHER_FILES)
    with json_logs(), warnings.catch_warnings():
        # Of odd pictures; `images.py` silences them too, but not for several threads at once.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        return asyncio.run(_Process(names, config, token, progress).run())


def notify_systemd(state: str) -> None:
    """Tell systemd, if it started this process: sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        name = "\0" + address[1:] if address.startswith("@") else address
        try:
            connection.connect(name)
            connection.sendall(state.encode())
        except OSError as error:
            logger.warning("systemd cannot be told of %s: %s", state, error)


class _Process:
    """One server process."""

    def __init__(
        self, names: dict[str, Path], config: ServeConfig, token: bytes | None, progress: Progress
    ) -> None:
        self._config = config
        self._token = token
        self._stopping = threading.Event()
        self._failure: Exception | None = None
        self._metrics = Metrics()
        self._models = {
            name: ServedModel(
                name,
                path,
                config,
                observe=partial(self._metrics.batch, name),
                progress=self._until_stopped(progress),
            )
            for name, path in names.items()
        }
        decoder = Decoder(
            available_cores(), max_pixels=config.max_pixels, max_wait=config.max_wait_ms / 1000
        )
        self._service = Service(self._models, decoder, self._metrics, config)
        self._reloads = 0

    async def run(self) -> ServeSummary:
        started = time.monotonic()
        self._stop = asyncio.Event()
        self._reloading = asyncio.Lock()
        server = self._http_server()
        listening = listen(self._config.host, self._config.port)
        self._handle_signals(server)
        serving = asyncio.ensure_future(server.serve([listening]))
        loading: asyncio.Future[None] | None = None
        rpc: Any = None
        try:
            _say("listening", host=self._config.host, port=listening.getsockname()[1])
            if self._config.grpc_port is not None:
                from resdeploy.runtime.serving.grpc.service import start_grpc

                rpc, port = await start_grpc(self._service, self._config, self._token)
                _say("listening for gRPC", host=self._config.host, port=port)
            loading = asyncio.ensure_future(self._load())
            await self._stop.wait()
        finally:
            self._service.draining = True
            self._stopping.set()
            notify_systemd("STOPPING=1")
            server.should_exit = True
            await asyncio.gather(serving, *([rpc.stop(self._config.drain_seconds)] if rpc else []))
            if loading is not None:
                loading.cancel()
            for model in self._models.values():
                await model.close()
            self._service.decoder.close()
        if self._failure is not None:
            raise self._failure
        _say("stopped")
        return ServeSummary(
            seconds=time.monotonic() - started,
            requests=self._metrics.requests,
            images=self._metrics.images,
            reloads=self._reloads,
        )

    def _http_server(self) -> HttpServer:
        config = self._config
        app = RequestMiddleware(
            make_app(self._service),
            self._metrics,
            token=self._token,
            access_log=config.access_log,
            over_capacity=lambda: len(server.server_state.connections) > config.connections,
            closing=lambda: self._service.draining,
        )
        settings = uvicorn.Config(
            app,
            http=limited_protocol(config),
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=config.idle_seconds,
            timeout_graceful_shutdown=config.drain_seconds,
            ssl_certfile=config.tls_cert,
            ssl_keyfile=config.tls_key,
        )
        try:
            settings.load()
        except OSError as error:  # of which ssl's own errors are
            raise ServeError(
                f"the certificate {config.tls_cert} cannot be used with its key: "
                f"{error.strerror or error}",
                "give --tls-cert and --tls-key the two PEM files that belong together",
            ) from error
        server = HttpServer(settings)
        return server

    def _handle_signals(self, server: HttpServer) -> None:
        def stop() -> None:
            server.force_exit = self._stop.is_set()  # asked twice: do not wait for anybody
            self._stop.set()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        loop.add_signal_handler(signal.SIGHUP, self._reload)

    async def _load(self) -> None:
        """Load every model; one that cannot be loaded ends the server."""
        try:
            for model in self._models.values():
                await model.load()
                _say_serving(model)
        except Exception as error:
            self._failure = error
            self._stop.set()
            return
        notify_systemd("READY=1")

    def _reload(self) -> None:
        self._reload_task = asyncio.ensure_future(self._load_changed())

    async def _load_changed(self) -> None:
        async with self._reloading:
            for model in self._models.values():
                try:
                    if await model.load():
                        self._reloads += 1
                        _say_serving(model)
                    else:
                        _say("unchanged", model=model.name)
                except ResdeployError as error:
                    fields = {"model": model.name, "hint": error.hint}
                    logger.warning("the bundle is not taken: %s", error, extra={"fields": fields})

    def _until_stopped(self, progress: Progress) -> Progress:
        """Progress that ends a long build once the server is told to stop."""

        @contextmanager
        def watched(what: str, total: int) -> Iterator[Advance]:
            with progress(what, total) as advance:

                def advance_or_stop(done: int) -> None:
                    if self._stopping.is_set():
                        raise BackendError("the server is stopping", "start it again")
                    advance(done)

                yield advance_or_stop

        return watched


def _say(event: str, **fields: object) -> None:
    logger.info(event, extra={"fields": fields})


def _say_serving(model: ServedModel) -> None:
    if (instance := model.serving) is not None:
        _say(
            "serving",
            model=model.name,
            backend=instance.backend,
            artifact=instance.artifact,
            batch=instance.times.best,
            ms_of_one=round(1000 * instance.times.undisturbed(1), 3),
        )
