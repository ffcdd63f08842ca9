"""The reasons for which a request fails, with their HTTP status, gRPC status and metrics label.

Clients see the messages: they describe the request and reveal nothing about the server.
"""

from __future__ import annotations


class RequestError(Exception):
    """The request is invalid; base class of all errors that clients see."""

    status = 400
    grpc = "INVALID_ARGUMENT"
    outcome = "invalid"
    """Label in the metrics and the log."""


class Unauthorized(RequestError):
    """The bearer token is missing or wrong."""

    status = 401
    grpc = "UNAUTHENTICATED"
    outcome = "unauthorized"


class Forbidden(RequestError):
    """The request comes from a page of another site."""

    status = 403
    grpc = "PERMISSION_DENIED"
    outcome = "forbidden"


class NotFound(RequestError):
    """The model or path does not exist."""

    status = 404
    grpc = "NOT_FOUND"


class NotSupported(RequestError):
    """The server does not have this extension of the protocol."""

    status = 501
    grpc = "UNIMPLEMENTED"


class RequestTimeout(RequestError):
    """The body did not arrive in time."""

    status = 408
    grpc = "DEADLINE_EXCEEDED"
    outcome = "body_timeout"


class TooLarge(RequestError):
    """The request exceeds a limit."""

    status = 413
    grpc = "RESOURCE_EXHAUSTED"
    outcome = "too_large"


class TooManyRequests(RequestError):
    """The client sent too many wrong tokens."""

    status = 429
    grpc = "RESOURCE_EXHAUSTED"
    outcome = "unauthorized"


class UnsupportedMediaType(RequestError):
    """The content type or encoding of the body is not supported."""

    status = 415


class NoAnswer(RequestError):
    """The model computes no finite logits for an image, or fails with it."""

    status = 422
    outcome = "no_answer"


NOT_READY = "the model is not ready; try again in a few seconds"


class Unavailable(RequestError):
    """The request may succeed after `retry_after` seconds."""

    status = 503
    grpc = "UNAVAILABLE"
    outcome = "unavailable"

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QueueFull(Unavailable):
    """A queue or budget is exhausted, or the expected wait is too long."""

    outcome = "overloaded"


class DeadlineExceeded(Unavailable):
    """The deadline of the request cannot be met."""

    grpc = "DEADLINE_EXCEEDED"
    outcome = "deadline_exceeded"
