"""Why a request gets no answer of a model: what HTTP and gRPC call it.

A message goes to whoever asks: it says what is wrong with the request, and nothing of the server.
"""

from __future__ import annotations


class RequestError(Exception):
    """The request is not answered by a model."""

    status = 400
    grpc = "INVALID_ARGUMENT"
    outcome = "invalid"
    """As the metrics name it."""


class Unauthorized(RequestError):
    """There is no token, or a wrong one."""

    status = 401
    grpc = "UNAUTHENTICATED"
    outcome = "unauthorized"


class NotFound(RequestError):
    """There is no such model or path."""

    status = 404
    grpc = "NOT_FOUND"


class RequestTimeout(RequestError):
    """The body did not come in time."""

    status = 408
    outcome = "slow"


class TooLarge(RequestError):
    """It is over a limit."""

    status = 413
    grpc = "RESOURCE_EXHAUSTED"
    outcome = "too_large"


class UnsupportedMediaType(RequestError):
    """The body is of a kind that is not read here."""

    status = 415


class Unavailable(RequestError):
    """Not now: try again after `retry_after` seconds."""

    status = 503
    grpc = "UNAVAILABLE"
    outcome = "unavailable"

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QueueFull(Unavailable):
    """The queue is full, or too slow."""

    outcome = "overloaded"


class DeadlineExceeded(Unavailable):
    """Its deadline cannot be met."""

    grpc = "DEADLINE_EXCEEDED"
    outcome = "late"
