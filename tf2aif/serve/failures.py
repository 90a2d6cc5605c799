"""What can become of a request that gets no answer, in words that know no protocol."""

from __future__ import annotations

from enum import Enum


class Kind(Enum):
    """Why a request failed. The HTTP door maps each to one status code."""

    INVALID = "invalid"  # what was sent does not fit the model or the protocol
    UNKNOWN = "unknown"  # no such model, version or address
    NOT_ALLOWED = "not_allowed"  # the address is right, the method is not
    TOO_LARGE = "too_large"  # the body is over the limit
    UNSUPPORTED = "unsupported"  # a content encoding that the server does not read
    SLOW = "slow"  # the sender took too long to send its request
    BUSY = "busy"  # the queue is full: try again
    NOT_READY = "not_ready"  # the model is not loaded and warm yet, or the server is stopping
    DEADLINE = "deadline"  # no answer within the request's deadline
    FAILED = "failed"  # a hook or the engine raised, or gave what it must not


class RequestFailed(Exception):
    """One request failed; the next one is served."""

    def __init__(self, kind: Kind, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.retry_after_s = retry_after_s


def invalid(message: str) -> RequestFailed:
    """The failure of a request that is itself wrong."""
    return RequestFailed(Kind.INVALID, message)
