"""Identity, authorisation and the access log of requests, for HTTP and gRPC."""

from __future__ import annotations

import hmac
import logging
import os
import re
import time
from dataclasses import dataclass

from resdeploy.runtime.serving.metrics import Metrics
from resdeploy.runtime.serving.request_errors import Unauthorized

logger = logging.getLogger(__name__)

REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


ANSWERED = "ok"


@dataclass(slots=True)
class RequestRecord:
    """What becomes known of a request while it is handled; `scope["record"]`."""

    id: str
    arrived: float
    """When, on the event loop's clock."""
    endpoint: str = "other"
    model: str = ""
    images: int = 0
    status: int = 0
    outcome: str = ANSWERED


def finish_request(
    record: RequestRecord, metrics: Metrics, *, access_log: bool, **known: object
) -> None:
    """Count a request, and log it with what else is known of it."""
    seconds = time.monotonic() - record.arrived
    answered = record.outcome == ANSWERED
    images = record.images if answered else 0
    metrics.request(record.model, record.endpoint, record.outcome, seconds, images)
    if not answered or (access_log and record.model):
        fields = {
            "request_id": record.id,
            **known,
            "outcome": record.outcome,
            "ms": round(1000 * seconds, 2),
            **({"model": record.model, "images": record.images} if record.images else {}),
        }
        logger.info("request", extra={"fields": fields})


def request_id(given: bytes | None) -> str:
    """The client's own id where it is harmless, else a new one."""
    if given is not None and REQUEST_ID.fullmatch(given):
        return given.decode()
    return os.urandom(8).hex()


def check_token(header: bytes | None, token: bytes) -> None:
    """Compare the token of an Authorization header, in a time that tells nothing of it.

    Raises:
        Unauthorized: it is another one, or there is none.
    """
    kind, _, given = (header or b"").partition(b" ")
    if kind.lower() != b"bearer" or not hmac.compare_digest(given.strip(), token):
        raise Unauthorized("a bearer token is needed")
