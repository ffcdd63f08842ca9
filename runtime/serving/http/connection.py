"""The HTTP connections, with limits on the time and size of headers and the time of bodies.

uvicorn itself only limits the time that an idle connection stays open.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from resdeploy.runtime.serving.config import ServeConfig

# One read of the socket may exceed it.
MAX_HEADER_BYTES = 32 << 10
# Time that an idle connection stays open at shutdown, because a request may be on its way.
SHUTDOWN_SECONDS = 0.5
# The application answers a slow body with 408 first; the connection's timeout is the fallback.
FALLBACK_SECONDS = 2.0
TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"connection: close\r\ncontent-length: 0\r\n\r\n"
)


def limited_protocol(settings: ServeConfig) -> type[HttpToolsProtocol]:
    """Return uvicorn's protocol class with the limits of `settings`."""

    class LimitedProtocol(HttpToolsProtocol):
        def __init__(
            self,
            config: Config,
            server_state: ServerState,
            app_state: dict[str, Any],
            _loop: asyncio.AbstractEventLoop | None = None,
        ) -> None:
            super().__init__(config, server_state, app_state, _loop)
            self._timers: dict[str, asyncio.TimerHandle] = {}
            self._in_body = False
            self._header_bytes = 0
            self._stopping = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > 2 * settings.connections:
                transport.abort()  # connections below this limit get a 503
            self._start_timer("headers", settings.header_seconds)

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in self._timers.values():
                timer.cancel()
            self._timers.clear()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if not self._in_body:
                self._start_timer("headers", settings.header_seconds)
                self._header_bytes += len(data)
            super().data_received(data)
            # The last chunk is not counted, because it may belong to a body.
            before = self._header_bytes - len(data)
            if before > MAX_HEADER_BYTES and not self.transport.is_closing():
                self.transport.write(TOO_LARGE)
                self.transport.close()

        def on_headers_complete(self) -> None:
            self._stop_timer("headers")
            self._in_body = True
            self._header_bytes = 0
            self._start_timer("body", settings.body_seconds + FALLBACK_SECONDS)
            super().on_headers_complete()
            if self._stopping:
                self.cycle.keep_alive = False

        def on_message_complete(self) -> None:
            self._stop_timer("body")
            self._in_body = False
            super().on_message_complete()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._start_timer("writing", settings.body_seconds)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._stop_timer("writing")

        def shutdown(self) -> None:
            """Close the connection after the current response, or soon if it is idle."""
            self._stopping = True
            if self.cycle is None or self.cycle.response_complete:
                self._start_timer("shutdown", SHUTDOWN_SECONDS)
            else:
                self.cycle.keep_alive = False

        def _start_timer(self, name: str, seconds: float) -> None:
            """Close the connection after `seconds`, unless the timer is already running."""
            if name not in self._timers:
                self._timers[name] = self.loop.call_later(seconds, self._close_on_timeout, name)

        def _stop_timer(self, name: str) -> None:
            if (timer := self._timers.pop(name, None)) is not None:
                timer.cancel()

        def _close_on_timeout(self, name: str) -> None:
            del self._timers[name]
            in_progress = self.cycle is not None and not self.cycle.response_complete
            if name == "shutdown" and in_progress:
                return  # a request has arrived; its response closes the connection
            self.transport.abort() if name == "writing" else self.transport.close()

    return LimitedProtocol
