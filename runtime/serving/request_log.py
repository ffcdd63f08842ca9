"""Identity, authorisation and access log of requests, for HTTP and gRPC."""

from __future__ import annotations

import hmac
import logging
import os
import re
import time
from dataclasses import dataclass

from resdeploy.runtime.serving.request_errors import Unauthorized
from resdeploy.runtime.serving.service import Service

logger = logging.getLogger(__name__)

REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
OK = "ok"
PARTIAL = "partial"  # some pictures of the request cannot be decoded, the others are classified
ANSWERED = (OK, PARTIAL)


@dataclass(slots=True)
class RequestRecord:
    """Facts about one request, for the metrics and the log; HTTP keeps it in `scope["record"]`."""

    id: str
    arrived: float
    """Arrival time in seconds of the event loop's clock."""
    endpoint: str = "other"
    model: str = ""
    images: int = 0
    status: int = 0
    outcome: str = OK
    client: str = ""
    """Address of the client, without its port."""


def finish_request(record: RequestRecord, service: Service, **fields: object) -> None:
    """Count a request in the metrics and log it, with additional `fields`.

    All requests are logged that fail, if only in part; others only with `ServeConfig.access_log`.
    """
    seconds = time.monotonic() - record.arrived
    images = record.images if record.outcome in ANSWERED else 0
    service.metrics.count_request(record.model, record.endpoint, record.outcome, seconds, images)
    if record.outcome != OK or (service.config.access_log and record.model):
        line = {
            "request_id": record.id,
            **({"client": record.client} if record.client else {}),
            **fields,
            "outcome": record.outcome,
            "ms": round(1000 * seconds, 2),
            **({"model": record.model, "images": record.images} if record.images else {}),
        }
        logger.info("request", extra={"fields": line})


def choose_request_id(header: bytes | None) -> str:
    """Return the client's request id if its characters are safe to log, otherwise a new one."""
    if header is not None and REQUEST_ID.fullmatch(header):
        return header.decode()
    return os.urandom(8).hex()


def check_token(header: bytes | None, token: bytes) -> None:
    """Compare the token of an Authorization header with `token` in constant time.

    Raises:
        Unauthorized: The header has no bearer token or another one.
    """
    scheme, _, credentials = (header or b"").partition(b" ")
    if scheme.lower() != b"bearer" or not hmac.compare_digest(credentials.strip(), token):
        raise Unauthorized("a bearer token is needed")
