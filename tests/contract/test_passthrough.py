"""Bytes untouched, the engine's own errors kept, its faults named, its work cancelled when the client leaves."""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.contract.conftest import ENGINE_KEY
from tests.contract.targets import Reply, Target, send
from tests.fakes import FakeEngine, Fault, Seen

CHAT = "/v1/chat/completions"
HARD = '你好，世界。\u2028\u2029 👩‍👩‍👧 🇨🇳 \u0000\u001f "\\ é'
BODIES: dict[str, Any] = {
    CHAT: {"messages": [{"role": "user", "content": HARD}], "max_completion_tokens": 50},
    "/v1/completions": {"prompt": HARD, "max_tokens": 50},
    "/v1/responses": {"input": HARD, "max_output_tokens": 50},
    "/v1/messages": {"messages": [{"role": "user", "content": HARD}], "max_tokens": 50},
}
TEXT = (CHAT, "/v1/completions")  # where stream_options exist
SOON = 1.0  # seconds within which the engine must see that the client has left


@pytest.mark.parametrize(
    ("path", "more"),
    [
        *((path, {"stream": stream}) for path in BODIES for stream in (False, True)),
        *(
            (path, {"stream": True, "stream_options": {"include_usage": usage}})
            for path in TEXT
            for usage in (False, True)
        ),
    ],
)
def test_the_base_models_reply_is_the_engines_own(fake: Target, engine: FakeEngine, path: str, more: Any) -> None:
    body = BODIES[path] | {"model": fake.model, "temperature": 0.3, "seed": 7} | more
    through = fake.send(path, body)
    direct = send(engine.url, "POST", path, json.dumps(body).encode(), {"authorization": f"Bearer {ENGINE_KEY}"})
    assert (through.status, through.headers["content-type"]) == (200, direct.headers["content-type"])
    assert without_ids(through.body) == without_ids(direct.body)


def without_ids(body: bytes) -> bytes:
    return re.sub(rb'"(id|item_id)":"[^"]*"', rb'"\1":""', body)


def test_what_we_do_not_own_reaches_the_engine_byte_for_byte(fake: Target, engine: FakeEngine) -> None:
    parts = (
        '[ {{"role" : "user",  "content":"{} \\u4f60\\/ \\ud83d\\ude00"}} ]'.format(
            HARD.replace("\\", "\\\\").replace('"', '\\"').replace("\0", "").replace("\x1f", "")
        ),
        '{ "big": 123456789012345678901234567890, "exact":1.10, "exp":1E+2, "dup":1, "dup":2 }',
        '[{"type":"function","function":{"name":"f","parameters":{"const": 0.10000000000000000555}}}]',
    )
    names = ("messages", "metadata", "tools")
    members = ", ".join(f'"{name}" :{part}' for name, part in zip(names, parts, strict=True))
    reply = fake.send(CHAT, f'{{ "model":"creative", {members} }}'.encode())
    assert reply.status == 200
    received = engine.generations[0].body
    assert all(part.encode() in received for part in parts)
    assert json.loads(received)["temperature"] == 0.9


@pytest.mark.parametrize("stream", [False, True])
def test_headers_both_ways_by_allow_list(fake: Target, engine: FakeEngine, stream: bool) -> None:
    engine.fault = Fault(headers=(("set-cookie", "a=b"), ("x-secret", "1"), ("x-tempera-preset", "forged")))
    private = ("x-session-id", "x-data-parallel-rank", "x-vllm-priority", "cookie", "x-forwarded-for", "x-anything")
    sent = dict.fromkeys(private, "5") | {"authorization": "Bearer the-clients-own", "X-Preset": "creative"}
    reply = fake.chat(sent, stream=stream)
    seen = engine.generations[0]
    assert [seen.header(name) for name in private] == [None] * len(private)
    assert (seen.header("authorization"), seen.header("x-preset")) == (f"Bearer {ENGINE_KEY}", None)
    assert not {"set-cookie", "x-secret"} & set(reply.headers)
    assert (reply.status, reply.headers["x-tempera-preset"]) == (200, "creative")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, b'{"error":{"message":"\xe4\xbd\xa0 too long","type":"BadRequestError","param":null,"code":400}}'),
        (404, b'{"error": {"message": "gone", "type": "NotFoundError", "param": "model", "code": 404}}'),
        (422, b'{"error":{"message":"m","type":"t","param":"p","code":422}, "extra": [1]}'),
        (400, b'{"type":"error","error":{"type":"BadRequestError","message":"the shape of /v1/messages"}}'),
        (500, b'{"error":{"message":"m","type":"InternalServerError","param":null,"code":500}}'),
    ],
)
def test_the_engines_errors_are_the_clients(
    fake: Target, engine: FakeEngine, status: int, body: bytes, stream: bool
) -> None:
    engine.fault = Fault(status=status, body=body)
    reply = fake.chat(model="creative", stream=stream)
    assert (reply.status, reply.body) == (status, body)
    assert (reply.params["temperature"], reply.headers["x-tempera-preset"], bool(reply.exchange)) == (
        0.9,
        "creative",
        True,
    )


def test_the_engine_judges_what_is_not_ours(fake: Target, engine: FakeEngine) -> None:
    """Greedy decoding with several choices: vLLM's own refusal, in its own words."""
    reply = fake.chat(model="balanced", temperature=0, n=2)
    assert (reply.status, reply.json["error"]["message"]) == (400, "n must be 1 when using greedy sampling, got 2.")
    reply = fake.send(CHAT, {"model": "balanced"})
    assert reply.status == 400
    assert "messages" in reply.error["message"]


@pytest.mark.parametrize(
    ("status", "body", "word"),
    [
        (404, {"detail": "Not Found"}, "Not Found"),
        (405, {"detail": "Method Not Allowed"}, "Method Not Allowed"),
        (
            422,
            {"detail": [{"type": "missing", "loc": ["body", "messages"], "msg": "Field required"}]},
            "Field required",
        ),
        (400, {"error": "refused in a word"}, "refused in a word"),
        (500, b"<html>boom</html>", "500"),
    ],
)
def test_details_become_errors(fake: Target, engine: FakeEngine, status: int, body: Any, word: str) -> None:
    engine.fault = Fault(status=status, body=body)
    reply = fake.chat(model="balanced")
    assert reply.status == status
    assert word in reply.error["message"]


@pytest.mark.parametrize(
    ("status", "sent", "kept"), [(429, "7", "7"), (503, "3", "3"), (503, None, None), (429, None, None)]
)
def test_a_busy_engine(fake: Target, engine: FakeEngine, status: int, sent: str | None, kept: str | None) -> None:
    body = b'{"error":{"message":"busy","type":"t","param":null,"code":1}}'
    engine.fault = Fault(status=status, body=body, headers=(("retry-after", sent),) if sent else ())
    reply = fake.chat(model="balanced")
    assert (reply.status, reply.body) == (status, body)
    after = reply.headers.get("retry-after")
    assert after == kept if kept else (status == 429 or int(after or 0) >= 1)


@pytest.mark.parametrize("path", BODIES)
def test_a_wrong_key_to_the_engine_is_not_the_clients_fault(fake: Target, engine: FakeEngine, path: str) -> None:
    engine.api_key = "another"
    reply = fake.send(path, BODIES[path])
    assert (reply.status, reply.error["code"]) == (502, "upstream_auth")
    assert ENGINE_KEY not in reply.body.decode()


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_is_down_and_comes_back(fake: Target, engine: FakeEngine, stream: bool) -> None:
    assert fake.chat(model="creative", stream=stream).status == 200
    with engine.down():
        reply = fake.chat(model="creative", stream=stream)
        assert (reply.status, reply.error["code"], reply.error["type"]) == (
            503,
            "upstream_unavailable",
            "upstream_error",
        )
        assert int(reply.headers["retry-after"]) >= 1
        assert fake.get("/healthz").status == 200
    assert fake.chat(model="creative", stream=stream).status == 200


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault(die=True), "upstream_reset"),
        (Fault(garbage=b"SSH-2.0-OpenSSH_9.6\r\n\r\n"), "upstream_invalid_response"),
        (Fault(status=200, body=b"not JSON at all"), "upstream_invalid_response"),
        (Fault(status=200, body=b'{"choices": ['), "upstream_invalid_response"),
        (Fault(status=302, headers=(("location", "http://127.0.0.1:1/"),)), "upstream_invalid_response"),
        (Fault(headers=(("content-encoding", "gzip"),)), "upstream_invalid_response"),  # not asked for
        (Fault(reset_after=2), "upstream_reset"),
        (Fault(cut_after=2), "upstream_reset"),
    ],
)
def test_faults_before_the_first_byte(fake: Target, engine: FakeEngine, fault: Fault, code: str) -> None:
    engine.fault = fault
    reply = fake.chat(model="creative")
    assert (reply.status, reply.error["code"], reply.error["type"]) == (502, code, "upstream_error")
    assert reply.headers["x-tempera-preset"] == "creative"
    engine.fault = None
    assert fake.chat(model="creative").status == 200


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault(reset_after=4), "upstream_reset"),
        (Fault(cut_after=4), "upstream_reset"),
        (Fault(bad_chunk_after=4), "upstream_invalid_response"),
    ],
)
def test_faults_inside_a_stream(fake: Target, engine: FakeEngine, fault: Fault, code: str) -> None:
    """An error event, the terminating chunk, the end: no made-up finish, no [DONE]."""
    engine.text = HARD
    engine.fault = fault
    reply = fake.chat(model="creative", stream=True)  # http.client would raise had the last chunk been missing
    *before, last = [event for event in reply.body.split(b"\n\n") if event]
    assert (reply.status, len(before)) == (200, 4)
    error = json.loads(last.removeprefix(b"data: "))["error"]
    assert error["code"] == code
    assert set(error) == {"message", "type", "param", "code"}
    assert b"[DONE]" not in reply.body
    assert b'"finish_reason":"' not in reply.body


@pytest.mark.parametrize(
    ("fault", "pace"),
    [
        (Fault(comments=True), 0.0),
        (Fault(slices=3), 0.002),  # slow enough that each slice is a read of its own
        (Fault(slices=5), 0.0),
        (Fault(slices=1, comments=True), 0.0),
        (Fault(error_after=4), 0.0),
    ],
)
def test_odd_streams_pass_as_they_are(fake: Target, engine: FakeEngine, fault: Fault, pace: float) -> None:
    engine.text, engine.fault, engine.pace = "好\u2028" if pace else HARD, fault, pace
    body = {"model": fake.model, "messages": [{"role": "user", "content": "x"}], "stream": True}
    body["stream_options"] = {"include_usage": True}  # so that the gateway's own accounting adds and removes no event
    direct = send(engine.url, "POST", CHAT, json.dumps(body).encode(), {"authorization": f"Bearer {ENGINE_KEY}"})
    assert without_ids(fake.send(CHAT, body).body) == without_ids(direct.body)


def test_depth_64_and_inner_duplicates_pass(fake: Target) -> None:
    """Depth counts from the outer object; what stands inside a value is the engine's to read."""
    start = b'{"model":"balanced","messages":[{"role":"user","content":"x"}]'
    deep = start + b',"x":' + b"[" * 63 + b"]" * 63 + b"}"
    assert fake.send(CHAT, deep).status == 200
    brackets = json.dumps({"model": "balanced", "messages": [{"role": "user", "content": "[{" * 1000}]})
    assert fake.send(CHAT, brackets.encode()).status == 200
    assert fake.send(CHAT, start + b',"metadata":{"a":1,"a":2}}').status == 200


def test_a_chunked_body_is_read(fake: Target) -> None:
    connection = http.client.HTTPConnection(fake.url.removeprefix("http://"), timeout=60)
    connection.request(
        "POST",
        CHAT,
        iter([b'{"model":"creative",', b'"messages":[{"role":"user","content":"x"}]}']),
        {"transfer-encoding": "chunked"},
        encode_chunked=True,
    )
    reply = connection.getresponse()
    assert (reply.status, reply.getheader("x-tempera-preset")) == (200, "creative")
    connection.close()


# --- leaving


@contextmanager
def asking(target: Target, path: str, body: Any) -> Iterator[socket.socket]:
    """The connection of a request that is on its way; closing it is leaving."""
    host, port = target.url.removeprefix("http://").split(":")
    raw = json.dumps(body).encode()
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        sock.sendall(b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (path.encode(), len(raw), raw))
        yield sock


def check_cancelled(target: Target, engine: FakeEngine, seen: Seen) -> None:
    assert seen.closed.wait(SOON)
    assert not seen.complete
    assert engine.running == 0
    engine.pace = 0.0
    assert target.chat(model="balanced").status == 200


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", BODIES)
def test_leaving_while_the_engine_works(fake: Target, engine: FakeEngine, path: str, stream: bool) -> None:
    engine.text, engine.pace = "word " * 40, 1.0
    with asking(fake, path, BODIES[path] | {"stream": stream}) as sock:
        [seen] = engine.wait()
        if stream:
            assert sock.recv(65536).startswith(b"HTTP/1.1 200")
        assert not seen.closed.is_set()
    check_cancelled(fake, engine, seen)


@pytest.mark.parametrize("stream", [True, False])
def test_leaving_before_the_engine_answers(fake: Target, engine: FakeEngine, stream: bool) -> None:
    engine.fault = Fault(delay=30)
    with asking(fake, CHAT, BODIES[CHAT] | {"stream": stream}):
        [seen] = engine.wait()
    assert seen.closed.wait(SOON)
    engine.fault = None
    check_cancelled(fake, engine, seen)


def test_leaving_a_stream_nobody_reads(fake: Target, engine: FakeEngine) -> None:
    """Backpressure: a reader that does not read holds the engine back, and may still leave."""
    engine.text = ("x" * 1000 + " ") * 30_000  # more than the sockets on the way can hold
    body = {"messages": [{"role": "user", "content": "x"}], "stream": True, "model": fake.model}
    with asking(fake, CHAT, body):
        [seen] = engine.wait()
        sent = -1
        while not sent or sent != seen.sent:  # until it has begun and no longer grows
            sent = seen.sent
            assert not seen.closed.wait(0.3)
        assert not seen.complete
    check_cancelled(fake, engine, seen)


def test_generate_is_cancelled_too(fake: Target, engine: FakeEngine) -> None:
    engine.text, engine.pace = "word " * 40, 1.0
    with asking(fake, "/generate", {"prompt": "x"}):
        [seen] = engine.wait()
    check_cancelled(fake, engine, seen)


def test_connections_are_kept_both_ways(fake: Target, engine: FakeEngine) -> None:
    connection = http.client.HTTPConnection(fake.url.removeprefix("http://"), timeout=10)
    for stream in (False, True, False):
        body = json.dumps({"model": "creative", "messages": [{"role": "user", "content": "x"}], "stream": stream})
        connection.request("POST", CHAT, body)
        reply: Reply | http.client.HTTPResponse = connection.getresponse()
        assert reply.status == 200
        reply.read()  # type: ignore[union-attr]
    connection.close()
    assert len({seen.connection for seen in engine.generations}) == 1
