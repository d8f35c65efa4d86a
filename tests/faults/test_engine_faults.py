"""What an engine can do wrong, and what the client, the log and the engine see of it."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.faults import rows
from tests.faults.conftest import MAX_REPLY
from tests.faults.engine import (
    CLOSE,
    DONE,
    END_CHUNK,
    HALF_CLOSE,
    RESET,
    STREAM_HEAD,
    Drip,
    Flood,
    Hold,
    Pause,
    ScriptedEngine,
    Step,
    chunk,
    completion,
    event,
    head,
    whole,
    words,
)
from tests.faults.house import CHAT, GENERATION, MESSAGES, RESPONSES, Answer, Client, Gateway, asking

Script = Callable[[str], tuple[Step, ...]]  # of the request's path
NAMED = (RESPONSES, MESSAGES)  # their clients look at an event's name


def status_error(gateway: Gateway, answer: Answer, status: int, code: str) -> None:
    """The fault came before the first byte: an HTTP status, the OpenAI shape, and the outcome in the log."""
    assert (answer.status, answer.error["code"], answer.ended) == (status, code, True)
    assert answer.error["type"] == "upstream_error"
    gateway.expect(answer.exchange, code)


def stream_error(gateway: Gateway, answer: Answer, path: str, code: str) -> None:
    """The fault came after the first byte: what arrived, one error event, the end; nothing made up."""
    assert (answer.status, answer.ended) == (200, True)
    assert answer.headers["transfer-encoding"] == "chunked"
    good, last = words(path, "Hel"), answer.events[-1]
    assert answer.body == good + last + b"\n\n", answer.body
    assert last.startswith(b"event: error\ndata: " if path in NAMED else b"data: ")
    error = json.loads(last.partition(b"data: ")[2])["error"]
    assert (error["code"], set(error)) == (code, {"message", "type", "param", "code"})
    assert b"[DONE]" not in answer.body
    assert b'finish_reason": "' not in answer.body
    gateway.expect(answer.exchange, code)


# --- nobody there


@pytest.mark.fault(rows.DOWN)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", GENERATION)
def test_nothing_listens(gateway: Gateway, engine: ScriptedEngine, path: str, stream: bool) -> None:
    with engine.down():
        answer = gateway.ask(path, model="balanced", stream=stream)
    status_error(gateway, answer, 503, "upstream_unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    assert "x-should-retry" not in answer.headers  # nothing was generated: another try is welcome


@pytest.mark.fault(rows.DOWN)
def test_it_listens_and_accepts_nobody(gateway: Gateway, engine: ScriptedEngine) -> None:
    with engine.deaf():
        answer = gateway.ask(model="hasty")
    status_error(gateway, answer, 503, "upstream_unavailable")
    assert answer.headers["retry-after"]


@pytest.mark.fault(rows.DOWN)
def test_a_name_without_an_address(gateway: Gateway) -> None:
    answer = gateway.ask(model="nowhere")
    status_error(gateway, answer, 503, "upstream_unavailable")
    assert answer.headers["retry-after"]


@pytest.mark.fault(rows.DOWN)
def test_it_is_back(gateway: Gateway, engine: ScriptedEngine) -> None:
    with engine.down():
        assert gateway.ask(model="balanced").status == 503
    assert gateway.ask(model="balanced").status == 200


@pytest.mark.fault(rows.DOWN)
def test_it_accepts_and_hangs_up(gateway: Gateway, engine: ScriptedEngine) -> None:
    with engine.down():  # no connection rests in the pool after this
        engine.rude = True
    answer = gateway.ask(model="balanced")
    engine.rude = False
    # Which of the two depends on whether the reset comes before or after the connection is made.
    early = answer.status == 503
    status_error(gateway, answer, *((503, "upstream_unavailable") if early else (502, "upstream_reset")))


# --- somebody there, and silent


@pytest.mark.fault(rows.SILENT)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", GENERATION)
def test_no_headers(gateway: Gateway, engine: ScriptedEngine, path: str, stream: bool) -> None:
    engine.plays(Hold())
    answer = gateway.ask(path, model="hasty", stream=stream)
    status_error(gateway, answer, 504, "upstream_timeout")
    assert answer.headers["x-should-retry"] == "false"  # it may still be generating
    assert engine.seen().left()


SILENCES: dict[str, tuple[Step, ...]] = {
    "half a status line": (b"HTTP/1.1 2", Hold()),
    "half a head": (b"HTTP/1.1 200 OK\r\ncontent-type: appl", Hold()),
    "no first token": (STREAM_HEAD, Hold()),
    "half an event": (STREAM_HEAD, chunk(b"data: {"), Hold()),
    "half a body": (head("content-type: application/json", "content-length: 100"), b'{"id"', Hold()),
}


@pytest.mark.fault(rows.SILENT)
@pytest.mark.parametrize("name", SILENCES)
def test_silence_before_anything_is_told(gateway: Gateway, engine: ScriptedEngine, name: str) -> None:
    engine.plays(*SILENCES[name])
    answer = gateway.ask(model="hasty", stream=name in ("no first token", "half an event"))
    status_error(gateway, answer, 504, "upstream_timeout")
    assert engine.seen().left()


@pytest.mark.fault(rows.SILENT)
@pytest.mark.parametrize("path", GENERATION)
def test_a_stream_falls_silent(gateway: Gateway, engine: ScriptedEngine, path: str) -> None:
    engine.plays(STREAM_HEAD, event("Hel", path), Hold())
    stream_error(gateway, gateway.ask(path, model="hasty", stream=True), path, "upstream_timeout")
    assert engine.seen().left()


@pytest.mark.fault(rows.SILENT)
def test_slow_is_not_silent(gateway: Gateway, engine: ScriptedEngine) -> None:
    """Longer than every timeout together, with a byte now and then: the stream is whole, comments included."""
    sent = b": keep-alive\n\n" + words(CHAT, "Hello") + b"data: [DONE]\n\n"
    steps = [step for at in range(0, len(sent), 24) for step in (chunk(sent[at : at + 24]), Pause(0.1))]
    engine.plays(STREAM_HEAD, *steps, END_CHUNK)
    answer = gateway.ask(model="hasty", stream=True)
    assert (answer.status, answer.body, answer.ended) == (200, sent, True)
    gateway.expect(answer.exchange, "ok")


@pytest.mark.fault(rows.SILENT)
def test_a_slow_engine_has_the_time_it_was_given(gateway: Gateway, engine: ScriptedEngine) -> None:
    """No default of 5 seconds hides anywhere: this preset's engine has ten minutes."""
    engine.plays(Pause(5.2), whole(completion()))
    assert gateway.ask(model="balanced").status == 200


# --- the connection dies


@pytest.mark.fault(rows.RESET)
@pytest.mark.parametrize("end", [RESET, CLOSE, HALF_CLOSE])
@pytest.mark.parametrize("path", GENERATION)
def test_a_stream_breaks_off(gateway: Gateway, engine: ScriptedEngine, path: str, end: Step) -> None:
    engine.plays(STREAM_HEAD, event("Hel", path), end)
    stream_error(gateway, gateway.ask(path, model="balanced", stream=True), path, "upstream_reset")


@pytest.mark.fault(rows.RESET)
def test_half_an_event_does_not_reach_the_client(gateway: Gateway, engine: ScriptedEngine) -> None:
    engine.plays(STREAM_HEAD, event("Hel"), chunk(words(CHAT, "lo")[:30]), RESET)
    stream_error(gateway, gateway.ask(model="balanced", stream=True), CHAT, "upstream_reset")


BREAKS: dict[str, tuple[Step, ...]] = {
    "before a byte": (RESET,),
    "closed before a byte": (CLOSE,),
    "in the status line": (b"HTTP/1.1 2", RESET),
    "in the head": (b"HTTP/1.1 200 OK\r\ncontent-type: appl", RESET),
    "before the first event": (STREAM_HEAD, RESET),
    "in the first event": (STREAM_HEAD, chunk(b'data: {"id'), RESET),
    "in a body of known length": (head("content-type: application/json", "content-length: 100"), b'{"id"', RESET),
    "a body of known length cut short": (
        head("content-type: application/json", "content-length: 100"),
        b'{"id"',
        CLOSE,
    ),
    "in a chunked body": (head("content-type: application/json", "transfer-encoding: chunked"), chunk(b"{}"), CLOSE),
}


@pytest.mark.fault(rows.RESET)
@pytest.mark.parametrize("name", BREAKS)
def test_it_breaks_off_before_anything_is_told(gateway: Gateway, engine: ScriptedEngine, name: str) -> None:
    with engine.down():  # a connection that rested would be tried once more
        pass
    engine.plays(*BREAKS[name])
    answer = gateway.ask(model="balanced", stream="event" in name)
    status_error(gateway, answer, 502, "upstream_reset")
    assert len(engine.requests) == 1, "a request is not repeated on its own"


@pytest.mark.fault(rows.RESET)
def test_a_kept_connection_that_died_is_no_fault(gateway: Gateway, engine: ScriptedEngine) -> None:
    """An engine drops connections at rest; a request that crosses that on the wire is sent once more."""
    with engine.down():
        pass
    assert gateway.ask(model="balanced").status == 200
    engine.plays(CLOSE)
    answer = gateway.ask(model="balanced")
    assert (answer.status, len(engine.requests)) == (200, 3)
    gateway.expect(answer.exchange, "ok")


# --- what it says makes no sense

JSON_HEAD = ("content-type: application/json",)
NONSENSE: dict[str, tuple[Step, ...]] = {
    "not HTTP": (b"220 mail.example ESMTP\r\n", CLOSE),
    "HTTP/0.9": (b"<html>Hello</html>\r\n\r\n", CLOSE),
    "not JSON": (whole(b"<html>Bad day</html>"),),
    "half a JSON document": (whole(b'{"id": "c-1"'),),
    "two JSON documents": (whole(b"{}{}"),),
    "JSON in Latin-1": (whole(b'{"text": "caf\xe9"}'),),
    "NaN": (whole(b'{"logprob": NaN}'),),
    "deep JSON": (whole(b"[" * 200_000 + b"]" * 200_000),),
    "nothing": (whole(b""),),
    "a redirect": (whole({}, "location: http://169.254.169.254/", status=307),),
    "a switch of protocols": (head("upgrade: h2c", "connection: upgrade", status=101), Hold()),
    "an impossible status": (whole({}, status=999),),
    "two lengths": (head(*JSON_HEAD, "content-length: 2", "content-length: 3") + b"{} ", CLOSE),
    "a length and chunks": (head(*JSON_HEAD, "content-length: 2", "transfer-encoding: chunked") + chunk(b"{}"), CLOSE),
    "a negative length": (head(*JSON_HEAD, "content-length: -1") + b"{}", CLOSE),
    "a broken chunk": (head(*JSON_HEAD, "transfer-encoding: chunked") + b"zz\r\n{}\r\n", CLOSE),
    "an endless chunk size": (head(*JSON_HEAD, "transfer-encoding: chunked") + b"f" * 40, CLOSE),
    "a head without end": (b"HTTP/1.1 200 OK\r\n", Flood(b"x-more: " + b"y" * 1000 + b"\r\n", 500), Hold()),
    "a stream that begins with no event": (STREAM_HEAD, chunk(b"<html>Bad day</html>\n\n"), END_CHUNK),
    "a stream that is JSON": (STREAM_HEAD, chunk(b'{"error": "no"}\n\n'), END_CHUNK),
    "a stream with a broken first chunk": (STREAM_HEAD, b"not a size\r\n", CLOSE),
}  # fmt: skip


@pytest.mark.fault(rows.INVALID)
@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense(gateway: Gateway, engine: ScriptedEngine, name: str) -> None:
    engine.plays(*NONSENSE[name])
    answer = gateway.ask(model="hasty", stream="stream" in name)
    status_error(gateway, answer, 502, "upstream_invalid_response")
    assert len(engine.requests) == 1


@pytest.mark.fault(rows.INVALID)
@pytest.mark.parametrize("path", GENERATION)
def test_a_broken_chunk_in_a_stream(gateway: Gateway, engine: ScriptedEngine, path: str) -> None:
    engine.plays(STREAM_HEAD, event("Hel", path), b"not a size\r\n", Hold())
    stream_error(gateway, gateway.ask(path, model="balanced", stream=True), path, "upstream_invalid_response")
    assert engine.seen().left()


@pytest.mark.fault(rows.INVALID)
def test_a_second_reply_nobody_asked_for(gateway: Gateway, engine: ScriptedEngine) -> None:
    """It must not become the reply to the next request."""
    engine.plays(whole(completion()) + whole(completion(text="somebody else's")))
    first, second = gateway.ask(model="balanced"), gateway.ask(model="balanced")
    assert (first.status, second.status) == (200, 200)
    assert b"somebody else" not in first.body + second.body


@pytest.mark.fault(rows.INVALID)
def test_a_line_break_in_its_header_is_no_header_of_ours(gateway: Gateway, engine: ScriptedEngine) -> None:
    body = b"{}"
    engine.plays(head(f"content-length: {len(body)}", "content-type: application/json\rset-cookie: a=b") + body)
    answer = gateway.ask(model="hasty")
    assert "set-cookie" not in answer.headers
    assert answer.status in (200, 502)


# --- it says no


ENGINE_SAYS: dict[str, tuple[int, tuple[str, ...], str]] = {
    "429 with Retry-After": (429, ("retry-after: 7",), "7"),
    "503 with Retry-After": (503, ("retry-after: 9",), "9"),
    "503 as vLLM says it": (503, (), "1"),
    "429 without": (429, (), "1"),
}


@pytest.mark.fault(rows.BUSY)
@pytest.mark.parametrize("name", ENGINE_SAYS)
@pytest.mark.parametrize("path", GENERATION)
def test_the_engine_is_busy(gateway: Gateway, engine: ScriptedEngine, path: str, name: str) -> None:
    status, headers, retry = ENGINE_SAYS[name]
    body = json.dumps({"error": {"message": "busy", "type": "TooMany", "param": None, "code": status}}).encode()
    engine.plays(whole(body, *headers, status=status))
    answer = gateway.ask(path, model="balanced", stream=True)
    assert (answer.status, answer.headers["retry-after"], answer.body) == (status, retry, body)
    gateway.expect(answer.exchange, "upstream_error")


@pytest.mark.fault(rows.BUSY)
@pytest.mark.parametrize(
    ("said", "status", "shown"),
    [(401, 502, "upstream_auth"), (403, 502, "upstream_auth"), (500, 500, None), (404, 404, None)],
)
def test_other_refusals_in_our_shape(
    gateway: Gateway, engine: ScriptedEngine, said: int, status: int, shown: str | None
) -> None:
    engine.plays(whole({"detail": "no"}, status=said))
    answer = gateway.ask(model="balanced")
    assert (answer.status, answer.error["code"]) == (status, shown)


# --- too much of it


@pytest.mark.fault(rows.CODING)
@pytest.mark.parametrize("framing", ["length", "chunks", "until the end"])
def test_a_reply_larger_than_we_hold(gateway: Gateway, engine: ScriptedEngine, framing: str) -> None:
    piece, times = b'"' + b"x" * 65533 + b'",', 400  # 26 MB against a cap of 1 MB
    how = {"length": (f"content-length: {len(piece) * times}",), "chunks": ("transfer-encoding: chunked",)}
    sent = chunk(piece) if framing == "chunks" else piece
    engine.plays(head(*JSON_HEAD, *how.get(framing, ("connection: close",))), Flood(sent, times), CLOSE)
    answer = gateway.ask(model="balanced")
    status_error(gateway, answer, 502, "upstream_invalid_response")
    assert str(MAX_REPLY) in answer.error["message"]
    assert engine.seen().left()
    assert engine.requests[0].sent < len(sent) * times


@pytest.mark.fault(rows.CODING)
@pytest.mark.parametrize("coding", ["gzip", "br", "deflate", "zstd"])
def test_a_compressed_reply_is_not_opened(gateway: Gateway, engine: ScriptedEngine, coding: str) -> None:
    engine.plays(whole(b"\x1f\x8b" + b"\0" * 100, f"content-encoding: {coding}"))
    status_error(gateway, gateway.ask(model="hasty"), 502, "upstream_invalid_response")


@pytest.mark.fault(rows.CODING)
def test_an_event_without_an_end(gateway: Gateway, engine: ScriptedEngine) -> None:
    """64 MB that are never an event: it is handed on, and not held."""
    piece, times = chunk(b"x" * 65536), 1024
    engine.plays(STREAM_HEAD, event("Hel"), chunk(b"data: "), Flood(piece, times), chunk(b"\n\n"), DONE, END_CHUNK)
    before = gateway.memory()
    with Client(gateway) as client:
        identifier = client.ask(CHAT, asking(model="balanced", stream=True))
        size = 0
        while data := client.more():
            size += len(data)
    assert size == len(words(CHAT, "Hel")) + 6 + 65536 * times + 2 + len(b"data: [DONE]\n\n")
    assert gateway.memory() - before < 24_000_000
    assert gateway.row(identifier)["truncated"]


@pytest.mark.fault(rows.CODING)
def test_a_reply_in_single_bytes(gateway: Gateway, engine: ScriptedEngine) -> None:
    """However it is cut, the client reads the same bytes."""
    body = words(CHAT, "你好") + b"data: [DONE]\n\n"
    engine.plays(STREAM_HEAD, Drip(b"".join(chunk(bytes([byte])) for byte in body) + END_CHUNK, gap=0.0005, size=3))
    answer = gateway.ask(model="balanced", stream=True)
    assert (answer.body, answer.ended) == (body, True)
