"""The server process: start, signals, reload, graceful shutdown."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from resdeploy.bundle.quality import short_message
from resdeploy.bundle.signature import MAX_PEM_BYTES, open_signed
from resdeploy.errors import BackendError, ServeError, one_line_reason
from resdeploy.filesystem import read_limited
from resdeploy.machine.device import available_cores
from resdeploy.progress import Advance, Progress
from resdeploy.runtime.backends.registry import candidates
from resdeploy.runtime.serving.config import PEM_HINT, ServeConfig
from resdeploy.runtime.serving.decoder_pool import Decoder
from resdeploy.runtime.serving.http.first_request import first_requests, page_url
from resdeploy.runtime.serving.http.listener import HttpServer, listen_by_address
from resdeploy.runtime.serving.http.middleware import RequestMiddleware
from resdeploy.runtime.serving.http.routes import make_app
from resdeploy.runtime.serving.logs import json_logs
from resdeploy.runtime.serving.metrics import Metrics
from resdeploy.runtime.serving.request_errors import RequestError
from resdeploy.runtime.serving.request_log import RequestRecord, choose_request_id, finish_request
from resdeploy.runtime.serving.served_model import ServedModel
from resdeploy.runtime.serving.service import Service
from resdeploy.runtime.serving.startup_checks import model_names, raise_file_limit, read_token

logger = logging.getLogger(__name__)

# A server that has not ended this long after its grace (--drain-seconds) is ended, whatever its
# threads wait for: a hung disk, or an engine that never answers.
END_SECONDS = 5.0
LOADING_SECONDS = 4.0  # between lines in the log while a model is loaded at the start
# A reload that takes longer is ended. Building an engine for a GPU takes minutes.
RELOAD_SECONDS = 900.0
STOPPED_AT_ONCE = 1  # exit code
# Of TLS 1.2: forward secrecy and authenticated encryption, as gRPC. uvicorn before 0.50 would offer
# those of TLS 1.0 only; TLS 1.3 has its own.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
# Open files beside connections: graphs, logs, libraries, files of the engines, and the spare
# connections of both ports.
OTHER_FILES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSummary:
    """Totals of a server from its start to its stop."""

    seconds: float
    requests: int
    images: int
    """Number of images that models have classified."""
    reloads: int
    schema: str = "resdeploy.serving/1"


def serve(bundles: Sequence[Path], config: ServeConfig, progress: Progress) -> ServeSummary:
    """Serve bundles until SIGTERM or SIGINT; reload changed bundles on SIGHUP.

    Raises:
        BackendError, BundleError: A bundle cannot be served on this machine.
        ServeError: The address, the token or the certificate cannot be used.
    """
    names = model_names(bundles)
    for path in names.values():  # refuse wrong arguments before the server listens
        candidates(open_signed(path, config.signer), config.backend, config.precision)
    token = read_token(config)
    config = _limit_connections(config)
    with json_logs():
        return asyncio.run(_Process(names, config, token, progress).run())


def _limit_connections(config: ServeConfig) -> ServeConfig:
    """Return `config` with as many connections per port as there are file handles for."""
    ports = 1 if config.grpc_port is None else 2
    handles = raise_file_limit(ports * config.connections + OTHER_FILES)
    connections = min(config.connections, (handles - OTHER_FILES) // ports)
    if connections < 1:
        raise ServeError(
            f"only {handles} files may be open, and the server needs more than {OTHER_FILES}",
            f"raise the limit: ulimit -n {ports * config.connections + OTHER_FILES}",
        )
    return replace(config, connections=connections)


def notify_systemd(state: str) -> None:
    """Send a state to systemd, if it started this process; see sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        name = "\0" + address[1:] if address.startswith("@") else address
        try:
            connection.connect(name)
            connection.sendall(state.encode())
        except OSError as error:
            logger.warning("cannot send %s to systemd: %s", state, error)


class _Process:
    def __init__(
        self, names: dict[str, Path], config: ServeConfig, token: bytes | None, progress: Progress
    ) -> None:
        self._config = config
        self._token = token
        self._stopping = threading.Event()
        self._failure: Exception | None = None
        self._metrics = Metrics()
        progress = self._until_stopped(progress)
        self._models = {
            name: ServedModel(
                name, path, config, partial(self._metrics.count_batch, name), progress
            )
            for name, path in names.items()
        }
        decoder = Decoder(
            available_cores(), max_pixels=config.max_pixels, max_wait=config.max_wait_ms / 1000
        )
        self._service = Service(self._models, decoder, self._metrics, config)
        self._reloads = 0
        self._reload: asyncio.Future[None] | None = None

    async def run(self) -> ServeSummary:
        started = time.monotonic()
        self._stop, self._started = asyncio.Event(), asyncio.Event()
        server = self._http_server()
        listening = listen_by_address(self._config.host, self._config.port)
        self._port = listening[0].getsockname()[1]
        self._handle_signals(server)
        serving = asyncio.ensure_future(server.serve(listening))
        loading: asyncio.Future[None] | None = None
        grpc_server: Any = None
        try:
            _log(
                "listening",
                host=self._config.host,
                port=self._port,
                connections=self._config.connections,
            )
            if self._config.grpc_port is not None:
                from resdeploy.runtime.serving.grpc.service import start_grpc

                grpc_server, port = await start_grpc(self._service, self._config, self._token)
                _log("listening for gRPC", host=self._config.host, port=port)
            loading = asyncio.ensure_future(self._load())
            await self._stop.wait()
        finally:
            self._service.readiness.draining = True
            self._stopping.set()
            notify_systemd("STOPPING=1")
            server.should_exit = True
            for load in filter(None, (loading, self._reload)):
                load.cancel()
            stops = [grpc_server.stop(self._config.drain_seconds)] if grpc_server else []
            await asyncio.gather(serving, *stops)
            for model in self._models.values():
                await model.close()
            self._service.decoder.close()
        if self._failure is not None:
            raise self._failure
        _log("stopped")
        return ServeSummary(
            seconds=time.monotonic() - started,
            requests=self._metrics.requests,
            images=self._metrics.images,
            reloads=self._reloads,
        )

    def _http_server(self) -> HttpServer:
        config = self._config
        app = RequestMiddleware(
            make_app(self._service, needs_token=self._token is not None),
            self._service,
            self._token,
            over_capacity=lambda: server.table.over_capacity,
        )
        settings = uvicorn.Config(
            app,
            http="httptools",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=config.drain_seconds,
            ssl_certfile=config.tls_cert,
            ssl_keyfile=config.tls_key,
            ssl_ciphers=CIPHERS,
        )
        for file in filter(None, (config.tls_cert, config.tls_key)):
            read_limited(file, MAX_PEM_BYTES, ServeError, PEM_HINT)
        try:
            settings.load()
        except OSError as error:  # the base class of ssl's errors
            raise ServeError(
                f"the certificate {config.tls_cert} cannot be used with its key: "
                f"{error.strerror or error}",
                "name a matching pair of PEM files with --tls-cert and --tls-key",
            ) from error
        server = HttpServer(settings, config, self._record_refusal)
        return server

    def _record_refusal(self, client: Any, status: int) -> None:
        """Count and log a request that the HTTP parser refused."""
        record = RequestRecord(choose_request_id(None), time.monotonic(), status=status)
        record.client, record.outcome = client[0] if client else "", RequestError.outcome
        finish_request(record, self._service, status=status)

    def _handle_signals(self, server: HttpServer) -> None:
        def stop() -> None:
            if self._stop.is_set():  # the second signal skips the graceful shutdown
                _log("stopped at once")
                os._exit(STOPPED_AT_ONCE)
            self._stop.set()
            # Neither the event loop nor a library may keep this thread from ending the process.
            seconds = self._config.drain_seconds + END_SECONDS
            watchdog = threading.Timer(seconds, os._exit, [STOPPED_AT_ONCE])
            watchdog.daemon = True
            watchdog.start()

        def reload() -> None:
            if self._reload is not None:  # the bundle that it loads may have changed again
                self._reload.cancel()
            if not self._stop.is_set():
                self._reload = asyncio.ensure_future(self._load_changed())

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        loop.add_signal_handler(signal.SIGHUP, reload)

    async def _load(self) -> None:
        """Load every model; stop the server if one cannot be loaded."""
        try:
            for model in self._models.values():
                loading, start = asyncio.ensure_future(model.load()), time.monotonic()
                try:
                    while not (await asyncio.wait({loading}, timeout=LOADING_SECONDS))[0]:
                        _log("loading", model=model.name, seconds=round(time.monotonic() - start))
                finally:
                    loading.cancel()
                loading.result()
                _log_serving(model)
        except Exception as error:
            self._failure = error
            self._stop.set()
            return
        exempt_from_collection()
        self._started.set()
        notify_systemd("READY=1")
        if sys.stderr.isatty():
            text = first_requests(self._config, self._port, needs_token=self._token is not None)
            logger.info("%s", text, extra={"plain": True})
        else:
            _log("ready", url=page_url(self._config, self._port))

    async def _load_changed(self) -> None:
        await self._started.wait()
        for model in self._models.values():
            try:
                if await asyncio.wait_for(model.load(), RELOAD_SECONDS):
                    self._reloads += 1
                    exempt_from_collection()
                    _log_serving(model)
                else:
                    _log("unchanged", model=model.name)
            except Exception as error:  # a fault in a library must not stop later reloads
                message = "reload failed, the previous bundle keeps serving: %s"
                reason, hint = one_line_reason(error), getattr(error, "hint", None)
                if isinstance(error, asyncio.TimeoutError):
                    reason = f"it takes more than {RELOAD_SECONDS:g} s"
                fields = {"model": model.name, "hint": hint or "run resdeploy verify"}
                logger.warning(message, reason, extra={"fields": fields})

    def _until_stopped(self, progress: Progress) -> Progress:
        """Return a progress that aborts a long build when the server is told to stop."""

        @contextmanager
        def progress_or_stop(task: str, total: int) -> Iterator[Advance]:
            with progress(task, total) as advance:

                def advance_or_stop(done: int) -> None:
                    if self._stopping.is_set():
                        raise BackendError("the server is stopping", "start the server again")
                    advance(done)

                yield advance_or_stop

        return progress_or_stop


def _log(event: str, **fields: object) -> None:
    logger.info(event, extra={"fields": fields})


def _log_serving(model: ServedModel) -> None:
    if (instance := model.active_instance) is not None:
        _log(
            "serving",
            model=model.name,
            backend=instance.backend,
            artifact=instance.artifact,
            batch=instance.times.best_batch,
            ms_per_image=round(1000 * instance.times.measured(1), 3),
        )
        for doubt in model.warnings:
            fields = {"model": model.name, "hint": doubt.hint}
            short = f"{short_message(doubt.message)}; figures and remedies: {model.page}"
            logger.warning("%s", doubt.message, extra={"fields": fields, "short": short})


def exempt_from_collection() -> None:
    """Free memory that loading needed, and exempt all objects from later garbage collections.

    The objects of libraries and models stay as long as the server. To look at all 75,000 of them
    stopped it for 35 ms, or for 140 ms on a busy machine, each time requests had made many others.
    """
    gc.unfreeze()  # a reload may have made garbage of some
    gc.collect()
    gc.freeze()
    with suppress(AttributeError):  # musl has no such function
        ctypes.CDLL(None).malloc_trim(0)  # loading frees large parts of several heaps
