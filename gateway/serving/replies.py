"""What of an engine's reply reaches the client: an allow-list of headers, and error bodies brought into one shape.

Knows both engines' habits (engines.md: vLLM's `{"detail"}` and `{"error": "Unauthorized"}`, a 503 without
Retry-After). Decides on values; sends nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from gateway.protocol.errors import GatewayError, UpstreamAuth, UpstreamInvalidResponse, UpstreamTimeout, error_body

Headers = Sequence[tuple[bytes, bytes]]

TO_ENGINE: Final = frozenset({b"accept", b"anthropic-version", b"anthropic-beta"})
TO_CLIENT: Final = frozenset({b"content-type", b"cache-control", b"retry-after", b"x-should-retry"})
_TRACE: Final = frozenset({b"traceparent", b"tracestate"})
_PRINTABLE: Final = re.compile(rb"[ -~]{1,512}").fullmatch
JSON: Final = (b"content-type", b"application/json")

_check_json = msgspec.json.Decoder(msgspec.Raw).decode


def forwarded(headers: Headers, allowed: frozenset[bytes]) -> tuple[tuple[bytes, bytes], ...]:
    """The headers on an allow-list, in order. Names must be lower-case."""
    return tuple([header for header in headers if header[0] in allowed])


def trace(headers: Headers) -> bytes:
    """The header lines of a distributed trace (W3C Trace Context), for the engine."""
    found = [(name, value) for name, value in headers if name in _TRACE and _PRINTABLE(value)]
    return b"".join(b"%b: %b\r\n" % header for header in found)


def content_type(headers: Headers) -> bytes:
    """The media type without parameters, lower-case; empty when there is none."""
    for name, value in headers:
        if name == b"content-type":
            return value.partition(b";")[0].strip().lower()
    return b""


def check_json(body: bytes) -> None:
    """Raises UpstreamInvalidResponse when a reply that should be JSON is not."""
    try:
        _check_json(body)
        if not body.isascii():
            body.decode()  # the decoder looks at structure only
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UpstreamInvalidResponse("The engine's reply is not valid JSON.") from None


def engine_error(status: int, headers: Headers, body: bytes) -> tuple[bytes, tuple[tuple[bytes, bytes], ...]]:
    """Body and headers for an engine's error status.

    Its own error object passes through byte for byte; anything else is put into the OpenAI shape. Raises UpstreamAuth
    for a 401 or 403: the client's key is not at fault there.
    """
    if status in (401, 403):
        raise UpstreamAuth("The engine refused the gateway's key to it; the operator must set the right one.")
    if status < 400:
        raise UpstreamInvalidResponse(f"The engine answered with status {status}, which is not followed.")
    kept = forwarded(headers, TO_CLIENT)
    if status in (429, 503) and not any(name == b"retry-after" for name, _ in kept):
        kept += ((b"retry-after", b"1"),)
    try:
        document: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        document = None
    if isinstance(document, dict) and isinstance(document.get("error"), dict):
        return body, kept
    kind = "invalid_request_error" if status < 500 else "upstream_error"
    others = [header for header in kept if header[0] != b"content-type"]
    return error_body(_message(status, document, body), kind, None), (*others, JSON)


def no_retry(error: GatewayError, answering: bool) -> list[tuple[bytes, bytes]]:
    """`x-should-retry: false` where the engine has begun to generate: the SDKs repeat every status from 500 on."""
    began = answering or isinstance(error, UpstreamTimeout)
    return [(b"x-should-retry", b"false")] if began else []


def error_code(body: bytes) -> str | None:
    """The code (or type) of an OpenAI-shaped error body, as text."""
    try:
        error = msgspec.json.decode(body).get("error")
    except (msgspec.DecodeError, AttributeError):
        return None
    code = (error.get("code") or error.get("type")) if isinstance(error, dict) else None
    return None if code is None else str(code)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _message(status: int, document: Any, body: bytes) -> str:
    """vLLM's `detail` is a text or FastAPI's list of validation errors."""
    said = document.get("detail", document.get("error")) if isinstance(document, dict) else None
    if isinstance(said, list):
        parts = [item for item in said if isinstance(item, dict)]
        said = "; ".join(f"{'.'.join(map(str, _list(p.get('loc'))))}: {p.get('msg', '')}" for p in parts)
    if isinstance(said, str) and said:
        return f"The engine answered {status}: {said}"
    text = body[:200].decode(errors="replace").strip() if document is None else ""
    return f"The engine answered {status}" + (f": {text}" if text else ".")
