"""One HTTP connection: clients that are slow, silent or endless are cut off.

uvicorn limits how long an idle connection is kept, and nothing else: the rest is added here.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from resdeploy.runtime.serving.config import ServeConfig

MAX_HEADER_BYTES = 32 << 10  # and what one read of the socket brings beyond
# How long a connection that a client may just be writing to is left open when the server stops.
LINGER_SECONDS = 0.5
# The application answers a slow body first, and is more polite.
GRACE_SECONDS = 2.0
TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"connection: close\r\ncontent-length: 0\r\n\r\n"
)


def limited_protocol(settings: ServeConfig) -> type[HttpToolsProtocol]:
    """Uvicorn's connection with the limits of `settings`."""

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
                transport.abort()  # those up to here get an answer
            self._arm("headers", settings.header_seconds)

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in self._timers.values():
                timer.cancel()
            self._timers.clear()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if not self._in_body:
                self._arm("headers", settings.header_seconds)
                self._header_bytes += len(data)
            super().data_received(data)
            # Without what came last, which may belong to a body.
            before = self._header_bytes - len(data)
            if before > MAX_HEADER_BYTES and not self.transport.is_closing():
                self.transport.write(TOO_LARGE)
                self.transport.close()

        def on_headers_complete(self) -> None:
            self._disarm("headers")
            self._in_body = True
            self._header_bytes = 0
            self._arm("body", settings.body_seconds + GRACE_SECONDS)
            super().on_headers_complete()
            if self._stopping:
                self.cycle.keep_alive = False

        def on_message_complete(self) -> None:
            self._disarm("body")
            self._in_body = False
            super().on_message_complete()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._arm("writing", settings.body_seconds)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._disarm("writing")

        def shutdown(self) -> None:
            """End with the current answer, or soon where no request is under way."""
            self._stopping = True
            if self.cycle is None or self.cycle.response_complete:
                self._arm("linger", LINGER_SECONDS)
            else:
                self.cycle.keep_alive = False

        def _arm(self, name: str, seconds: float) -> None:
            """Cut the connection off after `seconds`, unless it is already being timed."""
            if name not in self._timers:
                self._timers[name] = self.loop.call_later(seconds, self._cut_off, name)

        def _disarm(self, name: str) -> None:
            if (timer := self._timers.pop(name, None)) is not None:
                timer.cancel()

        def _cut_off(self, name: str) -> None:
            del self._timers[name]
            under_way = self.cycle is not None and not self.cycle.response_complete
            if name == "linger" and under_way:
                return  # a request came in the meantime: its answer ends the connection
            self.transport.abort() if name == "writing" else self.transport.close()

    return LimitedProtocol
