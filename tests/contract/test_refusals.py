"""What the gateway refuses: a clear 4xx in the OpenAI shape, nothing at the engine, and the next request works."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import re
import socket
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.contract.targets import Reply, Target
from tests.fakes import FakeEngine

CHAT = "/v1/chat/completions"
MESSAGES = b'"messages":[{"role":"user","content":"Hi"}]'


@pytest.fixture(autouse=True)
def next_request_works(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every refusal the gateway serves, and until then the engine has seen nothing."""
    names = request.fixturenames
    good: Target = request.getfixturevalue("target" if "target" in names else "fake")
    engine: FakeEngine | None = request.getfixturevalue("engine") if "engine" in names else None
    yield
    if engine:
        assert [seen.path for seen in engine.requests if seen.path != "/v1/models"] == []
    assert good.chat(model="balanced", max_tokens=4).status == 200


def chat_with(target: Target, member: bytes) -> Reply:
    return target.send(CHAT, b'{"model":"balanced",' + MESSAGES + b"," + member + b"}")


@pytest.mark.parametrize(
    "value", ["NaN", "Infinity", "-Infinity", "1e999", "true", '"0.7"', "-1", "2.5", "[0.7]", "{}"]
)
def test_temperature_outside_its_domain(target: Target, value: str) -> None:
    reply = chat_with(target, b'"temperature":' + value.encode())
    error = reply.error
    assert (reply.status, error["type"], error["param"]) == (400, "invalid_request_error", "temperature")
    assert "temperature" in error["message"]
    assert re.search(r"\b0(\.0)?\b.*\b2(\.0)?\b", error["message"])
    assert value.strip('"[]{}') in error["message"] or (value == "1e999" and "inf" in error["message"].lower())


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        (CHAT, "top_p", 0),
        (CHAT, "top_p", 1.1),
        (CHAT, "top_k", -2),
        (CHAT, "top_k", 64.5),
        (CHAT, "min_p", 1.5),
        (CHAT, "repetition_penalty", 0),
        (CHAT, "repetition_penalty", 2.5),
        (CHAT, "presence_penalty", 3),
        (CHAT, "frequency_penalty", -2.5),
        (CHAT, "max_tokens", 0),
        (CHAT, "max_tokens", 64.0),
        (CHAT, "max_completion_tokens", True),
        (CHAT, "n", 17),
        (CHAT, "n", 0),
        (CHAT, "n", "2"),
        (CHAT, "stream", "yes"),
        (CHAT, "stream", 1),
        (CHAT, "top_logprobs", 21),
        (CHAT, "stop", ["a", "b", "c", "d", "e"]),
        (CHAT, "stop_token_ids", list(range(129))),
        (CHAT, "logit_bias", {str(i): 1 for i in range(1025)}),
        (CHAT, "model", 5),
        (CHAT, "preset", 5),
        ("/v1/completions", "temperature", 2.01),
        ("/v1/completions", "logprobs", 21),
        ("/v1/responses", "temperature", 2.01),
        ("/v1/responses", "max_output_tokens", 0),
        ("/v1/messages", "temperature", 2.01),
        ("/v1/messages", "max_tokens", 0),
    ],
)
def test_other_fields_outside_their_domain(fake: Target, engine: FakeEngine, path: str, field: str, value: Any) -> None:
    talk = [{"role": "user", "content": "x"}]
    base: Any = (
        {"prompt": "x"}
        if path == "/v1/completions"
        else {"input": "x"}
        if path == "/v1/responses"
        else {"messages": talk}
    )
    reply = fake.send(path, base | ({"max_tokens": 5} if path == "/v1/messages" else {}) | {field: value})
    error = reply.error
    assert (reply.status, error["type"], error["param"]) == (400, "invalid_request_error", field)
    assert field in error["message"]


FENCED: dict[str, Any] = {
    "chat_template": "{{ 1 }}",
    "chat_template_kwargs": {"evil": 1},
    "mm_processor_kwargs": {"a": 1},
    "media_io_kwargs": {"a": {}},
    "prompt_embeds": "AAAA",
    "kv_transfer_params": {"a": 1},
    "ec_transfer_params": {"a": 1},
    "vllm_xargs": {"a": 1},
    "priority": -1,
    "request_id": "mine",
    "session_id": "mine",
    "api_base": "http://127.0.0.1:1",
    "base_url": "http://127.0.0.1:1",
    "api_key": "stolen",
}


@pytest.mark.parametrize("field", FENCED)
def test_fenced_fields(fake: Target, engine: FakeEngine, field: str) -> None:
    reply = fake.chat(model="balanced", **{field: FENCED[field]})
    error = reply.error
    assert (reply.status, error["param"]) == (400, field)
    assert field in error["message"]
    assert "stolen" not in error["message"]


@pytest.mark.parametrize("field", ["guided_json", "guided_regex", "guided_choice", "best_of"])
def test_fields_the_engine_would_silently_ignore(fake: Target, engine: FakeEngine, field: str) -> None:
    reply = fake.chat(model="balanced", **{field: 2})
    assert (reply.status, reply.error["param"]) == (400, field)


def test_media_by_url_is_fenced(fake: Target, engine: FakeEngine) -> None:
    part = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}}
    reply = fake.chat(model="balanced", messages=[{"role": "user", "content": [part]}])
    assert (reply.status, reply.error["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", ""),
        (b"{", ""),
        (b"[1]", "object"),
        (b'"text"', "object"),
        (b"null", "object"),
        (b'{"model":"balanced","messages":[{"role":"user","content":"\xff\xfe"}]}', "UTF-8"),
        (b'{"model":"balanced","messages":[{"role":"user","content":"\xed\xa0\x80"}]}', "UTF-8"),
        (b'{"model":"balanced","messages":[{"role":"user","content":"\\ud800"}]}', "surrogate"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "64"),
        (b"[" * 100_000, ""),
        (b'{"a":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001, "64"),
        (b'{"a":' + b"[" * 64 + b"]" * 64 + b"," + MESSAGES + b"}", "64"),
        (b'{"model":"balanced",' + MESSAGES + b',"temperature":0.1,"temperature":0.2}', "temperature"),
        (b'{"model":"balanced",' + MESSAGES + b',"temperature":0.1,"\\u0074emperature":0.2}', "temperature"),
        (b'{"model":"balanced",' + MESSAGES + b"} trailing", ""),
    ],
    ids=lambda value: value[:24].decode("latin-1") if isinstance(value, bytes) else value,
)
def test_bodies_that_are_not_requests(target: Target, body: bytes, word: str) -> None:
    reply = target.send(CHAT, body)
    error = reply.error
    assert (reply.status, error["type"]) == (400, "invalid_request_error")
    assert word.lower() in error["message"].lower()


def test_twenty_megabytes(target: Target) -> None:
    """The official client must be able to read the refusal, though it is still sending."""
    long: Any = [{"role": "user", "content": "x" * 20_000_000}]
    with pytest.raises(openai.APIStatusError) as refused:
        target.client().chat.completions.create(model="balanced", messages=long)
    assert refused.value.status_code == 413
    assert refused.value.body["code"] == "body_too_large"  # type: ignore[index,call-overload]


def test_twenty_megabytes_of_unknown_length(target: Target) -> None:
    connection = http.client.HTTPConnection(target.url.removeprefix("http://"), timeout=60)
    pieces = (b"x" * 65536 for _ in range(320))
    with contextlib.suppress(
        BrokenPipeError, ConnectionResetError
    ):  # refused while we were sending: the answer is there
        connection.request("POST", CHAT, pieces, {"transfer-encoding": "chunked"}, encode_chunked=True)
    reply = connection.getresponse()
    assert (reply.status, json.loads(reply.read())["error"]["code"]) == (413, "body_too_large")
    connection.close()


def test_compressed_bodies(target: Target) -> None:
    body = gzip.compress(json.dumps({"model": "balanced", "messages": []}).encode())
    reply = target.send(CHAT, body, {"content-encoding": "gzip"})
    assert (reply.status, reply.error["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("POST", "/v1/nowhere", 404),
        ("POST", "/invocations", 404),
        ("POST", "/scale_elastic_ep", 404),
        ("POST", "/sleep", 404),
        ("POST", "/collective_rpc", 404),
        ("POST", "/v1/load_lora_adapter", 404),
        ("GET", "/v1/../metrics/x", 404),
        ("POST", "/v1/chat/completions/", 404),
        ("POST", "/v1/chat/completions/../../../invocations", 404),
        ("POST", "//v1/chat/completions", 404),
        ("POST", "/v1/responses/../chat/completions/cancel", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("PUT", "/v1/completions", 405),
        ("GET", "/generate", 405),
        ("POST", "/healthz", 405),
    ],
)
def test_routes_that_are_not_there(fake: Target, engine: FakeEngine, method: str, path: str, status: int) -> None:
    reply = fake.send(path, {"model": "balanced", "prompt": "x"} if method == "POST" else None, method=method)
    error = reply.error
    assert (reply.status, error["type"]) == (status, "invalid_request_error")
    assert error["code"] == {404: "not_found", 405: "method_not_allowed"}[status]
    if status == 405:
        assert reply.headers["allow"]


def test_an_absolute_url_is_not_a_way_out(fake: Target, engine: FakeEngine) -> None:
    connection = http.client.HTTPConnection(fake.url.removeprefix("http://"), timeout=10)
    connection.request("POST", f"{engine.url}/invocations", b"{}")
    assert connection.getresponse().status in (400, 404)
    connection.close()


@pytest.mark.parametrize("raw", [b"NOT HTTP AT ALL\r\n\r\n", b"GET / HTTP/1.1\r\nbad header\r\n\r\n"])
def test_errors_of_the_http_parser(target: Target, raw: bytes) -> None:
    host, port = target.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        sock.sendall(raw)
        said = b"".join(iter(lambda: sock.recv(65536), b""))
    head, _, body = said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert b"x-tempera-exchange: " in head.lower()
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


def test_refusals_of_a_stream_are_plain_json(target: Target) -> None:
    reply = target.chat(model="balanced", temperature=5, stream=True)
    assert (reply.status, reply.headers["content-type"].split(";")[0]) == (400, "application/json")
    assert reply.error["param"] == "temperature"


def test_the_official_client_raises_what_it_should(target: Target) -> None:
    client = target.client()
    ask: Any = [{"role": "user", "content": "x"}]
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model="balanced", messages=ask, temperature=2.5)
    with pytest.raises(openai.NotFoundError, match="creative"):
        client.chat.completions.create(model="nope", messages=ask)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.responses.create(model="balanced", input="x", temperature=-1, stream=True)
