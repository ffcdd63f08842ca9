"""The HTTP connections, with limits on what a client sends beside bodies and on its speed.

uvicorn itself limits only the time that an idle connection stays open. Bytes are counted here,
where they arrive: what the parser keeps or skips (request lines, headers, trailers, chunk headers,
empty lines, pipelined requests) never reaches the application.
"""

from __future__ import annotations

import asyncio
import math
import select
import socket
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from resdeploy.runtime.serving.config import ServeConfig
from resdeploy.runtime.serving.http.connection_table import ConnectionTable
from resdeploy.runtime.serving.request_log import ANSWERED
from resdeploy.runtime.serving.schemas import Error, json_line

# Bytes of one request beside its body; a chunked body may add a sixteenth of its size, which chunks
# of 96 bytes or more do not exceed.
MAX_HEADER_BYTES = 32 << 10
CHUNK_OVERHEAD = 16
# Apache's default (LimitRequestFields): 32 KiB of tiny headers would cost 1 MB of objects.
MAX_HEADERS = 100
# Bytes that are kept of requests sent before the answer to an earlier one; with more, the
# connection closes after that answer, as RFC 9112, section 9.3.2, allows.
MAX_PIPELINED_BYTES = 4 << 10
# Time that an idle connection stays open at shutdown, because a request may be on its way.
SHUTDOWN_SECONDS = 0.5
# Time in which a client must take the rest of its last response.
CLOSE_SECONDS = 5.0
# The application answers a slow body with 408 first; the connection's timeout is the fallback.
FALLBACK_SECONDS = 2.0
# Headers that must not be repeated, because servers and proxies may choose different ones.
SINGLE_HEADERS = (
    b"authorization", b"content-encoding", b"content-length", b"content-type", b"expect", b"host",
    b"inference-header-content-length", b"origin", b"transfer-encoding", b"x-request-id",
    b"x-timeout-ms",
)  # fmt: skip


class _RefusedError(Exception):
    """The parser must stop, and the client gets a status and a reason; 0 sends nothing."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's connection with one request at a time, and limits of size, time and speed."""

    parser: Any  # None after the end of the connection
    task: asyncio.Task[None]

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        settings: ServeConfig,
        table: ConnectionTable,
        accepted: socket.socket,
        network: str,
        refused: Callable[[Any, int], None],
    ) -> None:
        """Create a connection of `network`; `refused` gets the client and status of a refusal."""
        super().__init__(config, server_state, {})
        self.network = network
        self._accepted = accepted
        self.closed: asyncio.Future[None] = self.loop.create_future()
        self._settings = settings
        self._table = table
        self._refused = refused
        self._stopping = False
        self._deadline = math.inf
        self._write_deadline = math.inf
        self._unparsed = b""
        self._idle = False
        self._sends_no_more = False
        self._pause: asyncio.TimerHandle | None = None
        self._feeding_head = True
        self._begin_head()
        self._wait(settings.header_seconds)  # the handshake of TLS is included

    def has_input(self) -> bool:
        """Return True if bytes have arrived that the server will read at once."""
        # A client that takes no answers is not read.
        return self._write_deadline == math.inf and self._polls(select.POLLIN)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if not self.closed.done():
            self.closed.set_result(None)

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn closes the connection
        """Return True if the client, which sends no more, is still to receive an answer.

        A client may end its sending after its request, or have left. If it has left, its system
        answers the interim response of RFC 9110, section 15.2.1, with a reset.
        """
        if not self._busy or self.scheme == "https" or self.scope["http_version"] == "1.0":
            return False
        self._sends_no_more = True
        if not self.cycle.response_started:
            self.transport.write(STATUS_LINE[100] + b"\r\n")
        return True

    def data_received(self, data: bytes) -> None:
        if self._idle:
            self._idle = False
            self._wait(self._settings.header_seconds)
        self._unparsed = self._unparsed + data if self._unparsed else data
        self._parse()

    def on_message_begin(self) -> None:
        if not self._feeding_head:  # the end of a chunked body is not known in advance
            raise _RefusedError(0, "pipelined after a chunked body")
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # trailers are discarded
            if len(self.headers) == MAX_HEADERS:
                raise _RefusedError(431, f"more than {MAX_HEADERS} headers")
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._check_head()
        super().on_headers_complete()
        self._in_head = False
        self.cycle.keep_alive = self.cycle.keep_alive and not self._stopping
        self._wait(self._settings.body_seconds + FALLBACK_SECONDS)

    def on_body(self, body: bytes) -> None:
        self._received += len(body)
        if self._received > self._settings.max_body and self.cycle.response_complete:
            raise _RefusedError(0, "the rest of a refused body is too large to be discarded")
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._begin_head()
        if self.cycle.response_complete:
            self._await_turn()
        else:
            self._busy = True
            self._deadline = math.inf
            self._table.mark_working(self)
            self._accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        self.cycle.body = bytearray()
        if self.transport.is_closing():
            return
        # The head of the response was held back until its body was written: tcp(7). Sent together,
        # they wake the client up once.
        self._accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
        self.flow.resume_reading()
        if self._busy:
            self._await_turn()
            self._parse()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_deadline = self.loop.time() + self._settings.body_seconds
        self._table.mark_waiting(self)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._write_deadline = math.inf
        if self._busy:
            self._table.mark_working(self)

    def shutdown(self) -> None:
        """Close the connection after the current response, or soon if it is idle."""
        self._stopping = True
        if self._pause is not None:
            self._end_pause()
        if self.cycle is None or self.cycle.response_complete:
            self._wait(SHUTDOWN_SECONDS)
        else:
            self.cycle.keep_alive = False

    def check_time(self, now: float) -> None:
        """Close the connection if its client is too slow; the server calls this regularly."""
        shaken_hands = self.transport is not None
        if shaken_hands and self.transport.is_closing():
            self._write_deadline = min(self._write_deadline, now + CLOSE_SECONDS)
        has_left = self._sends_no_more and self._polls(select.POLLERR)
        if now > self._write_deadline or has_left:
            self.task.cancel()
        elif now > self._deadline:
            self._deadline = math.inf  # over TLS, a second `close` would prevent `abort`
            if shaken_hands and self._in_head:
                self.transport.close()
            else:
                self.task.cancel()

    def _polls(self, event: int) -> bool:
        if self._accepted.fileno() < 0:
            return False
        poll = select.poll()
        poll.register(self._accepted, event)
        return bool(poll.poll(0))

    def _begin_head(self) -> None:
        self._in_head = True
        self._busy = False
        self._head_end = b""  # the last bytes that were parsed of a head
        self._beside_body = 0
        self._received = 0

    def _await_turn(self) -> None:
        """Await a request, after a pause if the network got many answers that need no model."""
        self._await_request()
        record: Any = self.scope.get("record")
        if record is not None and record.model and record.outcome in ANSWERED:
            return
        if pause := self._table.pause_after_other_answer(self.network, self.loop.time()):
            self._busy = True
            self.flow.pause_reading()
            self._pause = self.loop.call_later(pause, self._end_pause)

    def _end_pause(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        self._pause, self._busy = None, False
        if not self.transport.is_closing():
            self.flow.resume_reading()
            self._parse()

    def _await_request(self) -> None:
        self._busy = False
        self._idle = True
        self._wait(self._settings.idle_seconds)

    def _wait(self, seconds: float) -> None:
        """Let the client take at most `seconds` for its next step."""
        if self._stopping and self._in_head:
            seconds = min(seconds, SHUTDOWN_SECONDS)
        self._deadline = self.loop.time() + seconds
        self._table.mark_waiting(self)

    def _parse(self) -> None:
        """Parse what has arrived, but no further request before the current one is answered."""
        while self._unparsed and not self.transport.is_closing():
            if self._busy:
                self.flow.pause_reading()
                if len(self._unparsed) > MAX_PIPELINED_BYTES and self._pause is None:
                    self._unparsed = b""
                    self.cycle.keep_alive = False
                return
            if self._in_head and not self._head_end:  # empty lines before a request
                length = len(self._unparsed)
                self._unparsed = self._unparsed.lstrip(b"\r\n")
                self._beside_body += length - len(self._unparsed)
            size = self._size_of_piece()
            piece, self._unparsed = self._unparsed[:size], self._unparsed[size:]
            try:
                self._feed(piece)
            except _RefusedError as error:
                self._refuse(error.status, str(error))
        if self._sends_no_more and not self._busy:
            self.transport.close()

    def _size_of_piece(self) -> int:
        """Return the number of bytes up to the end of the head or body, as far as it is known.

        Many chunks of one byte are refused after the first piece: a call takes milliseconds.
        """
        if self._in_head:
            found = (self._head_end + self._unparsed).find(b"\r\n\r\n")
            return found + 4 - len(self._head_end) if found >= 0 else len(self._unparsed)
        return MAX_HEADER_BYTES if self._chunked else self._length - self._received

    def _feed(self, piece: bytes) -> None:
        received = self._received
        self._feeding_head = self._in_head
        if self._in_head:
            self._head_end = (self._head_end + piece)[-3:]
            self._beside_body += len(piece)
            if self._beside_body > MAX_HEADER_BYTES:
                raise _RefusedError(431, f"more than {MAX_HEADER_BYTES} bytes of headers")
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:  # the request is answered as any other
            self._unparsed = piece[upgrade.args[0] :] + self._unparsed
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, _RefusedError):
                raise error.__context__ from None
            raise _RefusedError(400, "the request is not valid HTTP/1.1") from error
        if not self._feeding_head and not self._in_head:
            self._beside_body += len(piece) - (self._received - received)
            if self._beside_body > MAX_HEADER_BYTES + self._received // CHUNK_OVERHEAD:
                raise _RefusedError(431, "too many bytes beside the body")

    def _check_head(self) -> None:
        """Refuse what servers and proxies may understand differently; the parser refuses the rest.

        Source: RFC 9112, sections 3.2, 6.1 and 11.2. A request without Host is accepted.
        """
        fields = dict(self.headers)
        if len(fields) < len(self.headers):
            names = [name for name, _ in self.headers]
            for name in SINGLE_HEADERS:
                if names.count(name) > 1:
                    raise _RefusedError(400, f"the header {name.decode()} occurs twice")
        if not self.url.startswith(b"/"):
            raise _RefusedError(400, "the request target must be a path")
        version = self.parser.get_http_version()
        coding = fields.get(b"transfer-encoding")
        self._chunked = coding is not None
        self._length = int(fields.get(b"content-length", b"0"))
        if version not in ("1.0", "1.1"):
            raise _RefusedError(400, "the HTTP version must be 1.0 or 1.1")
        if coding is not None and (version == "1.0" or coding.lower() != b"chunked"):
            raise _RefusedError(400, "the only transfer coding is chunked, in HTTP/1.1")
        if version == "1.0":  # RFC 9110, section 10.1.1
            self.expect_100_continue = False
        if self.parser.should_upgrade() and (self._chunked or self._length):
            raise _RefusedError(400, "a request with a body cannot ask for an upgrade")

    def _refuse(self, status: int, reason: str) -> None:
        """Send an error response, unless another has begun, and close the connection."""
        answered = status == 0 or (not self._in_head and self.cycle.response_started)
        if self.cycle is not None and not self.cycle.response_complete:
            if self._busy:  # the answer to the request in progress is still sent
                self._unparsed, self.cycle.keep_alive = b"", False
                self.flow.pause_reading()
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if not answered:
            body = json_line(Error(error=reason))
            head = (
                b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
            )
            self.transport.write(STATUS_LINE[status] + head % len(body) + body)
            self._refused(self.client, status)
        self.transport.close()
