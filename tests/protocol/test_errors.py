"""Our errors: one shape, a status and a string code each, and Retry-After in whole seconds."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from gateway.protocol import errors
from gateway.protocol.errors import GatewayError


def tree(kind: type[GatewayError]) -> Iterator[type[GatewayError]]:
    for child in kind.__subclasses__():
        yield child
        yield from tree(child)


STATUSES = {
    "InvalidRequest": 400,
    "OutOfRange": 400,
    "Unauthorized": 401,
    "Forbidden": 403,
    "NotFound": 404,
    "RequestTimeout": 408,
    "MethodNotAllowed": 405,
    "TooLarge": 413,
    "UnsupportedMedia": 415,
    "RateLimited": 429,
    "Draining": 503,
    "Internal": 500,
    "UpstreamError": 502,
    "UpstreamAuth": 502,
    "UpstreamReset": 502,
    "UpstreamInvalidResponse": 502,
    "UpstreamUnavailable": 503,
    "UpstreamTimeout": 504,
}


def test_the_tree_is_the_one_that_is_drawn() -> None:
    known = {kind.__name__: kind.status for kind in tree(GatewayError) if kind.__module__ == errors.__name__}
    assert known == STATUSES
    drawn = errors.__doc__ or ""
    assert all(f"{name} {status}" in drawn for name, status in STATUSES.items())


def make(kind: type[GatewayError], message: str) -> GatewayError:
    return errors.MethodNotAllowed(message, "GET") if kind is errors.MethodNotAllowed else kind(message)


@pytest.mark.parametrize("kind", [*tree(GatewayError)], ids=lambda kind: kind.__name__)
def test_every_error_has_the_openai_shape(kind: type[GatewayError]) -> None:
    error = make(kind, 'say "温度"\u2028')
    body = json.loads(error.body())["error"]
    assert body == {"message": 'say "温度"\u2028', "type": kind.type, "param": None, "code": kind.code}
    assert isinstance(kind.code, str)
    assert isinstance(kind.type, str)


@pytest.mark.parametrize(
    ("seconds", "header"), [(0, b"1"), (0.2, b"1"), (1, b"1"), (1.01, b"2"), (5, b"5"), (59.5, b"60")]
)
def test_retry_after_is_rounded_up(seconds: float, header: bytes) -> None:
    assert errors.RateLimited("slow down", retry_after=seconds).headers == [(b"retry-after", header)]
    assert errors.RateLimited("never").headers == []


def test_a_code_and_a_param_of_its_own() -> None:
    error = errors.NotFound("no", code="preset_not_found", param="preset")
    assert (error.status, error.code, error.param) == (404, "preset_not_found", "preset")
    assert errors.NotFound("no").code == "not_found"
