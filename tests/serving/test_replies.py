"""What of an engine's reply reaches the client: its own words where they have our shape, ours where they have not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.errors import Internal, UpstreamAuth, UpstreamInvalidResponse, UpstreamReset, UpstreamTimeout
from gateway.serving import replies

JSON = [(b"content-type", b"application/json")]

OWN = [  # bodies of live engines that have the shape already
    (400, b'{"error":{"message":"n must be 1.","type":"BadRequestError","param":"n","code":400}}'),
    (400, b'{"error":{"message":"1 validation error","type":"Bad Request","param":"body.5","code":400}}'),
    (404, b'{"type":"error","error":{"type":"NotFoundError","message":"The model `nope` does not exist."}}'),
    (400, b'{"error":{"code":400,"message":"too long","type":"exceed_context_size_error","n_ctx":2048}}'),
    (501, b'{"error":{"code":501,"message":"This server does not support embeddings."}}'),
    (500, b' {"error" : {"message":"EngineCore encountered an issue.","code":500}, "x":1.10}\n'),
]


@pytest.mark.parametrize(("status", "body"), OWN)
def test_the_engines_own_error_object_passes_byte_for_byte(status: int, body: bytes) -> None:
    headers = [*JSON, (b"server", b"uvicorn"), (b"x-request-id", b"1"), (b"cache-control", b"no-store")]
    assert replies.engine_error(status, headers, body) == (body, (*JSON, (b"cache-control", b"no-store")))


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (404, b'{"detail":"Not Found"}', "Not Found"),
        (405, b'{"detail":"Method Not Allowed"}', "Method Not Allowed"),
        (400, b'{"detail":"There was an error parsing the body"}', "error parsing the body"),
        (422, b'{"detail":[{"loc":["body","x"],"msg":"required"},{"loc":5}]}', "body.x: required"),
        (429, b'{"error":"Too Many Requests"}', "Too Many Requests"),
        (500, b"Internal Server Error", "Internal Server Error"),
        (503, b"<html><body>upstream connect error</body></html>", "upstream connect error"),
        (500, b"", "500"),
        (500, b"[]", "500"),
        (500, b'{"error":null}', "500"),
        (500, b"\xff\xfe" + b"x" * 10_000, "500"),
        (400, '{"detail":"温度"}'.encode(), "温度"),
    ],
)
def test_anything_else_is_put_into_the_shape(status: int, body: bytes, words: str) -> None:
    found, headers = replies.engine_error(status, [(b"content-type", b"text/html")], body)
    error = json.loads(found)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert words in error["message"]
    assert str(status) in error["message"]
    assert len(error["message"]) < 300
    assert error["type"] == ("invalid_request_error" if status < 500 else "upstream_error")
    assert [value for name, value in headers if name == b"content-type"] == [b"application/json"]


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_ours_not_the_clients(status: int) -> None:
    for body in (b'{"error":"Unauthorized"}', b'{"error":{"message":"no key sk-secret"}}', b""):
        with pytest.raises(UpstreamAuth) as caught:
            replies.engine_error(status, JSON, body)
        assert (caught.value.status, caught.value.code) == (502, "upstream_auth")
        assert "secret" not in caught.value.message


@pytest.mark.parametrize("status", [100, 201, 204, 206, 301, 302, 307, 399])
def test_a_status_that_is_neither_is_not_followed(status: int) -> None:
    with pytest.raises(UpstreamInvalidResponse):
        replies.engine_error(status, [*JSON, (b"location", b"http://elsewhere/")], b"{}")


DATE = b"Wed, 21 Oct 2026 07:28:00 GMT"


@pytest.mark.parametrize(
    ("status", "said", "expected"),
    [(503, None, b"1"), (429, None, b"1"), (503, b"7", b"7"), (429, DATE, DATE), (500, None, None), (400, b"3", b"3")],
)
def test_retry_after_is_kept_and_added_where_vllm_has_none(
    status: int, said: bytes | None, expected: bytes | None
) -> None:
    headers = [*JSON] if said is None else [*JSON, (b"retry-after", said)]
    for body in (b'{"error":{"message":"busy"}}', b"busy"):
        found = [value for name, value in replies.engine_error(status, headers, body)[1] if name == b"retry-after"]
        assert found == ([] if expected is None else [expected])


_WORDS = st.sampled_from(["error", "detail", "message", "loc", "msg", "code", "type"])
_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 600) | st.text(max_size=3),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(_WORDS, v, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from([400, 404, 422, 429, 500, 503]), _ANYTHING)
def test_no_body_makes_it_raise(status: int, document: Any) -> None:
    body, _ = replies.engine_error(status, JSON, json.dumps(document).encode())
    assert isinstance(json.loads(body)["error"], dict)
    assert isinstance(replies.error_code(body), str | None)


@given(st.binary(max_size=30))
def test_no_bytes_make_it_raise(body: bytes) -> None:
    assert json.loads(replies.engine_error(500, JSON, body)[0])["error"] is not None
    replies.error_code(body)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"error":{"code":400,"type":"x"}}', "400"),
        (b'{"error":{"code":"upstream_reset"}}', "upstream_reset"),
        (b'{"error":{"type":"NotFoundError"}}', "NotFoundError"),
        (b'{"error":{}}', None),
        (b'{"error":"x"}', None),
        (b"{}", None),
        (b"[]", None),
        (b"x", None),
    ],
)
def test_the_code_of_an_error(body: bytes, code: str | None) -> None:
    assert replies.error_code(body) == code


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (b"application/json", b"application/json"),
        (b"Text/Event-Stream; charset=utf-8", b"text/event-stream"),
        (b" text/event-stream ;x", b"text/event-stream"),
        (b"", b""),
    ],
)
def test_the_media_type(value: bytes, kind: bytes) -> None:
    assert replies.content_type([(b"server", b"x"), (b"content-type", value)]) == kind
    assert replies.content_type([(b"server", b"x")]) == b""


@pytest.mark.parametrize("body", [b"{}", b"[1]", b" null\n", b'"x"', b'{"a":1e999}', '{"a":"温\u2028"}'.encode()])
def test_json(body: bytes) -> None:
    replies.check_json(body)


@pytest.mark.parametrize("body", [b"", b"{", b"{}x", b"<html>", b"NaN", b'{"a":"\xff"}', b"{'a':1}", b"[" * 9000])
def test_no_json(body: bytes) -> None:
    with pytest.raises(UpstreamInvalidResponse):
        replies.check_json(body)


def test_what_not_to_try_again() -> None:
    told = [(b"x-should-retry", b"false")]
    assert replies.no_retry(UpstreamReset("x"), answering=True) == told
    assert replies.no_retry(Internal("x"), answering=True) == told
    assert replies.no_retry(UpstreamTimeout("x"), answering=False) == told
    assert replies.no_retry(UpstreamReset("x"), answering=False) == []
