"""What a client can do wrong with its connection: leave, read slowly, send slowly."""

from __future__ import annotations

import contextlib
import json
import time

import pytest

from tests.faults import rows
from tests.faults.conftest import BEARER
from tests.faults.engine import (
    DONE,
    END_CHUNK,
    STREAM_HEAD,
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
from tests.faults.house import CHAT, GENERATION, RECORDED, Client, Gateway, asking, eventually

# --- gone

PHASES: dict[str, tuple[bool, tuple[Step, ...]]] = {  # whether it is a stream, and how far the engine gets
    "before the status line": (True, (Hold(),)),
    "before the first token": (True, (STREAM_HEAD, Hold())),
    "mid-stream": (True, (STREAM_HEAD, event("Hel"), Hold())),
    "non-stream": (False, (Hold(),)),
    "non-stream, half a body": (False, (head("content-length: 100", "content-type: application/json") + b"{", Hold())),
}


@pytest.mark.fault(rows.GONE)
@pytest.mark.parametrize("how", ["closes", "resets"])
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("path", RECORDED)
def test_a_client_leaves(gateway: Gateway, engine: ScriptedEngine, path: str, phase: str, how: str) -> None:
    """The engine's connection ends, which is what stops its work, and the log says why."""
    stream, steps = PHASES[phase]
    if path == "/generate" and stream:
        pytest.skip("/generate does not stream")
    engine.plays(*steps)
    client = Client(gateway)
    fields = {"preset": "balanced"} if path == "/generate" else {"model": "balanced", "stream": stream}
    identifier = client.ask(path, asking(path, **fields))
    seen = engine.seen()
    if phase == "mid-stream":
        client.until(b"Hel")
    client.leave() if how == "closes" else client.reset()
    assert seen.left()
    gateway.expect(identifier, "client_disconnect")


@pytest.mark.fault(rows.GONE)
def test_a_client_leaves_within_its_request(gateway: Gateway, engine: ScriptedEngine) -> None:
    with Client(gateway) as client:
        identifier = client.head(CHAT, 1000)
        client.raw(b'{"model": "bal')
    gateway.expect(identifier, "client_disconnect")
    assert not engine.requests


@pytest.mark.fault(rows.GONE)
def test_a_client_leaves_while_its_engine_is_looked_for(gateway: Gateway, engine: ScriptedEngine) -> None:
    with engine.deaf():
        with Client(gateway) as client:
            identifier = client.ask(CHAT, asking(model="hasty"))
        assert gateway.outcome(identifier) in ("client_disconnect", "upstream_unavailable")
    assert not engine.requests


@pytest.mark.fault(rows.GONE)
def test_a_client_leaves_on_the_last_event(gateway: Gateway, engine: ScriptedEngine) -> None:
    """It has all it wanted: nothing went wrong, though the engine's own end is still to come."""
    engine.plays(STREAM_HEAD, event("Hel"), DONE, Hold())
    with Client(gateway) as client:
        identifier = client.ask(CHAT, asking(model="balanced", stream=True))
        client.until(b"[DONE]\n\n")
    assert engine.seen().left()
    gateway.expect(identifier, "ok")


@pytest.mark.fault(rows.GONE)
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_leaves_with_another_request_on_the_wire(
    gateway: Gateway, engine: ScriptedEngine, stream: bool
) -> None:
    """The second is never begun: it has no row, and the engine does not see it."""
    engine.plays(Hold())
    with Client(gateway) as client:
        identifier = client.ask(CHAT, asking(model="balanced", stream=stream))
        seen = engine.seen()
        second = client.ask(CHAT, asking(model="balanced"))
        gateway.offered.remove(second)
        time.sleep(0.1)  # so that the gateway has read it
    assert seen.left()
    gateway.expect(identifier, "client_disconnect")
    assert len(engine.requests) == 1


@pytest.mark.fault(rows.GONE)
def test_nothing_is_left_behind(gateway: Gateway, engine: ScriptedEngine) -> None:
    """Forty clients leave in forty ways: no socket stays open, no request stays in flight."""
    assert gateway.ask(model="balanced").status == 200
    before = gateway.sockets()
    for round_ in range(40):
        path = GENERATION[round_ % 4]
        engine.plays(STREAM_HEAD, event("Hel", path), Hold())
        client = Client(gateway)
        client.ask(path, asking(path, model="balanced", stream=True))
        if round_ % 3:
            client.until(b"Hel")
        client.reset() if round_ % 2 else client.leave()
    assert eventually(lambda: gateway.sockets() <= before)
    assert eventually(lambda: gateway.metrics()["tempera_in_flight"] == 0)


# --- slow readers

PIECE = words(CHAT, "x" * 65536)


def settled(engine: ScriptedEngine) -> int:
    """How much of its reply the engine got rid of, once that has not grown for a while."""
    seen, last, since = engine.seen(), -1, time.monotonic()
    end = since + 20
    while time.monotonic() < end and time.monotonic() - since < 0.4:
        if seen.sent != last:
            last, since = seen.sent, time.monotonic()
        time.sleep(0.02)
    return last


@pytest.mark.fault(rows.SLOW_READER)
@pytest.mark.parametrize("path", GENERATION)
def test_who_does_not_read_holds_the_engine_back(gateway: Gateway, engine: ScriptedEngine, path: str) -> None:
    piece = chunk(words(path, "x" * 65536))
    engine.plays(STREAM_HEAD, Flood(piece, 4000), END_CHUNK)  # 256 MB
    before = gateway.memory()
    with Client(gateway, buffer=16384) as client:
        identifier = client.ask(path, asking(path, model="balanced", stream=True))
        client.begin()
        assert settled(engine) < 24_000_000  # what the kernel's buffers hold on both sides, and no more
        assert gateway.memory() - before < 24_000_000
    assert engine.requests[0].left()
    gateway.expect(identifier, "client_disconnect")


@pytest.mark.fault(rows.SLOW_READER)
def test_who_reads_slowly_gets_every_byte(gateway: Gateway, engine: ScriptedEngine) -> None:
    sent = [words(CHAT, f"{index} " + "x" * 30000) for index in range(300)]  # 9 MB
    engine.plays(STREAM_HEAD, *map(chunk, sent), DONE, END_CHUNK)
    with Client(gateway, buffer=16384) as client:
        identifier = client.ask(CHAT, asking(model="balanced", stream=True))
        client.begin()
        settled(engine)
        answer = client.answer()
    assert answer.body == b"".join(sent) + b"data: [DONE]\n\n"
    assert answer.ended
    gateway.expect(identifier, "ok")


@pytest.mark.fault(rows.SLOW_READER)
def test_who_reads_nothing_is_closed(strict: Gateway, engine: ScriptedEngine) -> None:
    engine.plays(STREAM_HEAD, Flood(chunk(PIECE), 4000), END_CHUNK)
    with Client(strict, buffer=16384) as client:
        identifier = client.ask(CHAT, asking(model="balanced", stream=True), BEARER)
        client.begin()
        assert engine.seen().left()
        strict.expect(identifier, "client_disconnect")
        assert not client.answer().ended  # what is cut off does not look whole


@pytest.mark.fault(rows.SLOW_READER)
def test_who_reads_nothing_of_a_whole_reply_is_closed(strict: Gateway, engine: ScriptedEngine) -> None:
    engine.plays(whole(completion(text="x" * 30_000_000)))
    before = strict.sockets()
    with Client(strict, buffer=16384) as client:
        client.ask(CHAT, asking(model="balanced"), BEARER)
        client.begin()
        assert eventually(lambda: strict.sockets() <= before)
        assert not client.answer().ended


@pytest.mark.fault(rows.SLOW_READER)
def test_who_sips_is_not_closed(strict: Gateway, engine: ScriptedEngine) -> None:
    """Several times as long as the write timeout, a little at a time."""
    engine.plays(STREAM_HEAD, Flood(chunk(PIECE), 400), DONE, END_CHUNK)
    with Client(strict, buffer=65536) as client:
        identifier = client.ask(CHAT, asking(model="balanced", stream=True), BEARER)
        client.begin()
        body = b""
        for _ in range(12):
            for _ in range(20):
                body += client.more()
            time.sleep(0.15)
        answer = client.answer()
    assert (len(body) + len(answer.body), answer.ended) == (len(PIECE) * 400 + len(b"data: [DONE]\n\n"), True)
    strict.expect(identifier, "ok")


@pytest.mark.fault(rows.SLOW_READER)
def test_who_waits_for_a_slow_engine_is_not_closed(strict: Gateway, engine: ScriptedEngine) -> None:
    """Nothing waits for this client, so it is not slow."""
    steps = [step for _ in range(2) for step in (event("Hel"), Pause(1.2))]
    engine.plays(STREAM_HEAD, *steps, DONE, END_CHUNK)
    answer = strict.ask(headers=BEARER, model="balanced", stream=True)
    assert (answer.status, answer.ended, answer.body.count(b"Hel")) == (200, True, 2)


# --- slowloris

HEAD = (
    f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: {BEARER['authorization']}\r\n"
    "content-type: application/json\r\ncontent-length: 1000\r\n"
).encode()
LATE: dict[str, bytes] = {
    "one byte": b"P",
    "half a request line": HEAD[:9],
    "half a head": HEAD[:-30],
    "a head but for its end": HEAD,
}


def too_late(said: bytes) -> None:
    """A 408 in the shape of every error, then the end."""
    top, _, body = said.partition(b"\r\n\r\n")
    assert top.startswith(b"HTTP/1.1 408 "), said[:200]
    assert b"x-tempera-exchange: " in top.lower()
    assert b"connection: close" in top.lower()
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == "request_timeout"


@pytest.mark.fault(rows.SLOWLORIS)
def test_a_head_that_stops(strict: Gateway) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(strict)) for _ in LATE]
        for client, said in zip(clients, LATE.values(), strict=True):
            client.raw(said)
        for client in clients:
            too_late(client.rest())


@pytest.mark.fault(rows.SLOWLORIS)
@pytest.mark.parametrize("part", ["head", "body", "chunked body"])
def test_a_byte_now_and_then(strict: Gateway, engine: ScriptedEngine, part: str) -> None:
    """Never silent for long, and never done: the deadline is for the whole request."""
    with Client(strict) as client:
        if part == "head":
            client.raw(HEAD)
        elif part == "body":
            client.raw(HEAD + b"\r\n")
        else:
            client.raw(HEAD.replace(b"content-length: 1000", b"transfer-encoding: chunked") + b"\r\n")
        drip = b"1\r\n \r\n" if part == "chunked body" else b"x-a: b\r\n" if part == "head" else b" "
        said = b""
        client.sock.settimeout(0.1)
        end = time.monotonic() + 15
        while not said and time.monotonic() < end:
            with contextlib.suppress(TimeoutError, ConnectionResetError, BrokenPipeError):
                client.raw(drip)
            with contextlib.suppress(TimeoutError):
                said = client.sock.recv(65536)
        client.sock.settimeout(10)
        too_late(said + client.rest())
    assert not engine.requests


@pytest.mark.fault(rows.SLOWLORIS)
def test_a_body_that_stops_is_on_record(strict: Gateway, engine: ScriptedEngine) -> None:
    """Its head was a request, so it is an exchange like any other."""
    with Client(strict) as client:
        identifier = client.head(CHAT, 1000, BEARER)
        client.raw(b'{"model": "bal')
        too_late(client.rest())
    assert strict.outcome(identifier) in ("rejected", "client_disconnect")
    assert not engine.requests


@pytest.mark.fault(rows.SLOWLORIS)
def test_the_deadline_is_for_each_request(strict: Gateway) -> None:
    """A connection may rest between requests for longer than a request may take."""
    with Client(strict) as client:
        client.ask(CHAT, asking(model="balanced"), BEARER)
        assert client.answer().status == 200
        time.sleep(1.6)
        client.next()
        client.ask(CHAT, asking(model="balanced"), BEARER)
        assert client.answer().status == 200


@pytest.mark.fault(rows.SLOWLORIS)
def test_the_second_request_has_a_deadline_too(strict: Gateway) -> None:
    with Client(strict) as client:
        client.ask(CHAT, asking(model="balanced"), BEARER)
        assert client.answer().status == 200
        client.raw(LATE["half a head"])
        too_late(client.rest())


@pytest.mark.fault(rows.SLOWLORIS)
def test_two_hundred_of_them_keep_nobody_out(strict: Gateway) -> None:
    before = strict.sockets()
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(Client(strict)) for _ in range(200)]
        for client in slow:
            client.raw(LATE["half a head"])
        assert strict.ask(headers=BEARER, model="balanced").status == 200
        assert eventually(lambda: strict.sockets() <= before)
