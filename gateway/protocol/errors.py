"""Every error the gateway itself can answer with; each knows its status, type, code and parameter.

    GatewayError
    |-- InvalidRequest 400               the request is at fault, and the message says which field
    |   |-- OutOfRange 400               a parameter outside its domain, or outside bounds that reject
    |   |-- Unauthorized 401
    |   |-- Forbidden 403                the key is good, the preset or route is not for it
    |   |-- NotFound 404                 a route, preset, model or exchange that does not exist
    |   |-- MethodNotAllowed 405
    |   |-- RequestTimeout 408           the request did not arrive in time
    |   |-- TooLarge 413
    |   `-- UnsupportedMedia 415
    |-- RateLimited 429                  a limit of ours; retry_after says when to come back
    |-- Draining 503                     this process is shutting down
    |-- LogUnavailable 503               (log/feedback.py) the log's database does not answer
    |-- Internal 500                     a fault of ours
    `-- UpstreamError 502                the engine's fault, never the client's
        |-- UpstreamAuth 502             our key to the engine is wrong
        |-- UpstreamReset 502            the connection died before the reply was complete
        |-- UpstreamInvalidResponse 502  not HTTP, not JSON, or larger than we hold
        |-- UpstreamUnavailable 503      nothing listens there
        `-- UpstreamTimeout 504          no connection, headers or next chunk in time

Knows nothing about HTTP servers or engines. The engine's own error bodies are not errors here: they pass through.
"""

from __future__ import annotations

import msgspec


class GatewayError(Exception):
    """An answer to the client other than the engine's. `headers` are extra reply headers."""

    status = 500
    type = "internal_error"
    code: str | None = None

    def __init__(
        self, message: str, *, code: str | None = None, param: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.code
        self.param = param
        self.retry_after = retry_after
        self.told: tuple[tuple[bytes, bytes], ...] = ()  # reply headers about the request, as far as it was understood

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Retry-After in whole seconds, rounded up; empty when retrying would not help."""
        if self.retry_after is None:
            return []
        return [(b"retry-after", str(max(1, -int(-self.retry_after // 1))).encode())]

    def body(self) -> bytes:
        """The OpenAI error envelope, as JSON."""
        return error_body(self.message, self.type, self.code, self.param)


def error_body(message: str, kind: str, code: str | None, param: str | None = None) -> bytes:
    """`{"error": {"message", "type", "param", "code"}}`, the shape every OpenAI client parses."""
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


class InvalidRequest(GatewayError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class OutOfRange(InvalidRequest):
    code = "out_of_range"


class Unauthorized(InvalidRequest):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class Forbidden(InvalidRequest):
    status = 403
    type = "permission_error"
    code = "forbidden"


class NotFound(InvalidRequest):
    status = 404
    code = "not_found"


class MethodNotAllowed(InvalidRequest):
    status = 405
    code = "method_not_allowed"

    def __init__(self, message: str, allowed: str) -> None:
        super().__init__(message)
        self.told = ((b"allow", allowed.encode()),)


class RequestTimeout(InvalidRequest):
    status = 408
    code = "request_timeout"


class TooLarge(InvalidRequest):
    status = 413
    code = "body_too_large"


class UnsupportedMedia(InvalidRequest):
    status = 415
    code = "unsupported_media_type"


class RateLimited(GatewayError):
    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class Draining(GatewayError):
    status = 503
    type = "server_error"
    code = "shutting_down"

    def __init__(self, message: str) -> None:
        super().__init__(message, retry_after=1)
        self.told = ((b"connection", b"close"),)


class Internal(GatewayError):
    type = "server_error"
    code = "internal_error"


class UpstreamError(GatewayError):
    status = 502
    type = "upstream_error"
    code = "upstream_error"


class UpstreamAuth(UpstreamError):
    code = "upstream_auth"


class UpstreamReset(UpstreamError):
    code = "upstream_reset"


class UpstreamInvalidResponse(UpstreamError):
    code = "upstream_invalid_response"


class UpstreamUnavailable(UpstreamError):
    status = 503
    code = "upstream_unavailable"


class UpstreamTimeout(UpstreamError):
    status = 504
    code = "upstream_timeout"
