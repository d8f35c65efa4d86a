"""The data path, driven by hand: every way in which a client, an engine or the server can leave, at every stage."""

from __future__ import annotations

import asyncio
import json
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.protocol.errors import (
    UpstreamError,
    UpstreamInvalidResponse,
    UpstreamReset,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from gateway.serving import relay
from gateway.serving.relay import KEPT, KEPT_END, Turn
from gateway.settings import Settings
from tests.policy.made import config_of, one
from tests.serving.driven import BODY, CHAT, JSON, Driven, FakeReply, Hang, ask, plain, stream

FIRST = b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
SECOND = 'data: {"choices":[{"delta":{"content":"你\u2028"}}]}\n\n'.encode()
USAGE = b'data: {"choices":[],"usage":{"total_tokens":3}}\n\n'
DONE = b"data: [DONE]\n\n"
REPLY = '{ "choices": [{"message": {"content": "你\u2028"}}], "usage": 1.10 }\n'.encode()
STREAMED = {"stream": True}


# --- what goes through


@pytest.mark.parametrize("pieces", [1, 3, 40])
async def test_a_whole_reply_passes_byte_for_byte(pieces: int) -> None:
    step = -(-len(REPLY) // pieces)
    reply = plain(*(REPLY[i : i + step] for i in range(0, len(REPLY), step)))
    driven = await ask(reply).start().finish()
    assert (driven.status, driven.body) == (200, REPLY)
    assert driven.headers[b"content-length"] == str(len(REPLY)).encode()
    assert (driven.exchange.outcome, driven.exchange.status, driven.exchange.stream) == ("ok", 200, False)
    assert b"".join(driven.exchange.reply) == REPLY
    assert reply.closed


@pytest.mark.parametrize("late_end", [False, True])
@pytest.mark.parametrize("size", [1, 2, 5, 64, 10_000])
async def test_a_stream_passes_however_it_is_cut(size: int, late_end: bool) -> None:
    whole = b": ping\n\n" + FIRST + SECOND + USAGE + DONE
    reply = stream(*(whole[i : i + size] for i in range(0, len(whole), size)), late_end=late_end)
    driven = await ask(reply, body=STREAMED).start().finish()
    assert driven.status == 200
    assert driven.body == b": ping\n\n" + FIRST + SECOND + DONE, "the usage event was asked for by the gateway"
    assert b"content-length" not in driven.headers
    assert driven.headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    exchange = driven.exchange
    assert (exchange.outcome, exchange.stream, b"".join(exchange.reply)) == ("ok", True, whole)
    assert exchange.first_byte is not None
    assert exchange.ttft is not None
    assert 0 <= exchange.first_byte <= exchange.ttft <= exchange.duration
    assert reply.closed


async def test_a_stream_that_asked_for_its_usage_keeps_it() -> None:
    body = STREAMED | {"stream_options": {"include_usage": True}}
    driven = await ask(stream(FIRST, USAGE, DONE), body=body).start().finish()
    assert driven.body == FIRST + USAGE + DONE


async def test_events_are_passed_on_as_they_come() -> None:
    reply = stream(FIRST, SECOND[:9], Hang)
    driven = await ask(reply, body=STREAMED).start().settle()
    assert (driven.status, driven.so_far) == (200, FIRST), "whole events only, and not later than they are whole"
    driven.leave()
    await driven.finish()


@pytest.mark.parametrize("steps", [[], [b""]])
async def test_a_stream_of_nothing_is_a_stream_of_nothing(steps: list[bytes]) -> None:
    driven = await ask(stream(*steps), body=STREAMED).start().finish()
    assert (driven.status, driven.body, driven.exchange.ttft) == (200, b"", None)


async def test_headers_both_ways_are_on_a_list() -> None:
    client = [
        (b"authorization", b"Bearer secret"),
        (b"x-request-id", b"mine.1"),
        (b"accept", b"application/json"),
        (b"traceparent", b"00-1-2-03"),
        (b"anthropic-version", b"2023-06-01"),
        (b"x-data-parallel-rank", b"1"),
        (b"x-vllm-priority", b"1"),
        (b"x-session-id", b"1"),
        (b"endpoint-load-metrics-format", b"json"),
        (b"cookie", b"a=b"),
        (b"x-forwarded-for", b"1.2.3.4"),
    ]
    engine = (
        (b"content-type", b"application/json"),
        (b"cache-control", b"no-store"),
        (b"x-request-id", b"theirs"),
        (b"set-cookie", b"a=b"),
        (b"server", b"uvicorn"),
        (b"vary", b"Origin"),
        (b"content-length", b"99"),
        (b"endpoint-load-metrics", b"{}"),
        (b"connection", b"keep-alive"),
    )
    driven = await ask(plain(REPLY, headers=engine), headers=client).start().finish()
    [(method, path, to_engine, _)] = driven.pool.sent
    assert (method, path) == (b"POST", CHAT.encode())
    assert to_engine.keys() == {b"accept", b"traceparent", b"anthropic-version", b"x-request-id"}
    assert to_engine[b"x-request-id"] == b"mine.1"
    told = driven.headers
    assert told.pop(b"x-tempera-exchange").decode() == driven.exchange.id
    assert told.pop(b"x-request-id") == b"mine.1"
    ours = {name for name in told if name.startswith(b"x-tempera-")}
    assert ours == {b"x-tempera-preset", b"x-tempera-revision", b"x-tempera-params"}
    assert told.keys() - ours == {b"content-type", b"content-length", b"cache-control"}
    assert told[b"content-length"] == str(len(REPLY)).encode()


@pytest.mark.parametrize("own", [b"", b"a b", b"x" * 129, b"a\r\nb: c", b"\xff", "温".encode(), b"a/b"])
async def test_a_request_id_that_is_not_sane_is_replaced(own: bytes) -> None:
    driven = await ask(plain(REPLY), headers=[(b"x-request-id", own)]).start().finish()
    assert driven.headers[b"x-request-id"] == driven.headers[b"x-tempera-exchange"]
    assert driven.pool.sent[0][2][b"x-request-id"] == driven.headers[b"x-tempera-exchange"]


async def test_a_body_in_pieces() -> None:
    body = json.dumps(BODY).encode()
    pieces = [{"type": "http.request", "body": body[i : i + 7], "more_body": True} for i in range(0, len(body), 7)]
    driven = await ask(plain(REPLY), messages=[*pieces, {"type": "http.request"}]).start().finish()
    assert (driven.status, driven.exchange.request) == (200, body)


# --- the client leaves


def gone(driven: Driven) -> None:
    """It left, it is told in one exchange, and the server's task is as if nothing had been."""
    assert driven.exchange.outcome == "client_disconnect"
    assert driven.task is not None
    assert (driven.task.cancelled(), driven.task.cancelling(), driven.task.exception()) == (False, 0, None)


async def test_it_leaves_while_its_body_is_read() -> None:
    driven = ask(plain(REPLY), messages=[{"type": "http.request", "body": b'{"mes', "more_body": True}]).start()
    await driven.settle()
    driven.leave()
    await driven.finish()
    gone(driven)
    assert (driven.pool.sent, driven.sent) == ([], [])


async def test_it_leaves_before_the_engine_has_answered() -> None:
    driven = await ask(Hang).start().settle()
    assert len(driven.pool.sent) == 1
    driven.leave()
    await driven.finish()
    gone(driven)
    assert driven.pool.cancelled
    assert driven.sent == []
    assert driven.exchange.plan is not None


async def test_it_leaves_while_the_models_are_asked_for() -> None:
    driven = ask(plain(REPLY), body={"model": "unknown"})

    async def refresh() -> None:
        await asyncio.get_running_loop().create_future()

    driven.state.models.refresh = refresh  # type: ignore[method-assign]
    await driven.start().settle()
    driven.leave()
    await driven.finish()
    gone(driven)
    assert (driven.pool.sent, driven.sent) == ([], [])


LEAVING = {
    "before the first event": (lambda: stream(Hang), b""),
    "in the middle of the first event": (lambda: stream(FIRST[:9], Hang), b""),
    "between two events": (lambda: stream(FIRST, SECOND, Hang), FIRST + SECOND),
    "in the middle of an event": (lambda: stream(FIRST, SECOND[:9], Hang), FIRST),
    "while a whole reply is read": (lambda: plain(REPLY[:9], Hang), b""),
    "while an error's body is read": (lambda: plain(b'{"err', Hang, status=400), b""),
}


@pytest.mark.parametrize("stage", LEAVING)
async def test_it_leaves_while_the_engine_works(stage: str) -> None:
    reply, seen = LEAVING[stage][0](), LEAVING[stage][1]
    driven = await ask(reply, body=STREAMED if reply.headers[0][1] != JSON[0][1] else None).start().settle()
    assert (reply.closed, driven.so_far) == (0, seen)
    driven.leave()
    await driven.finish()
    gone(driven)
    assert reply.closed, "the engine is freed at once"
    assert driven.so_far == seen
    assert not seen or driven.sent[-1]["more_body"] is True


SLOW = {
    "a stream": lambda: stream(FIRST, SECOND, DONE),
    "a whole reply": lambda: plain(REPLY),
    "the engine's error": lambda: plain(b'{"error":{"message":"x"}}', status=400),
    "our error": lambda: UpstreamUnavailable("x"),
    "our fault": lambda: RuntimeError("x"),
}


@pytest.mark.parametrize("what", SLOW)
async def test_it_leaves_without_having_read(what: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    answer = SLOW[what]()
    driven = ask(answer)
    driven.reading.clear()
    await driven.start().settle()
    assert driven.waiting
    driven.leave()
    await driven.finish()
    assert driven.task is not None
    assert (driven.task.cancelling(), driven.task.exception()) == (0, None)
    assert driven.exchange
    assert driven.sent == []
    assert not isinstance(answer, FakeReply) or answer.closed


async def test_it_leaves_while_it_is_told_that_the_engine_is_gone() -> None:
    now = asyncio.Event()
    driven = await ask(stream(FIRST, now, UpstreamReset("x")), body=STREAMED).start().settle()
    assert driven.so_far == FIRST
    driven.reading.clear()
    now.set()
    await driven.settle()
    assert driven.waiting
    driven.leave()
    await driven.finish()
    assert driven.task is not None
    assert driven.task.exception() is None
    assert driven.exchange.error == "upstream_reset"


DONES = [
    (CHAT, DONE, "ok"),
    ("/v1/messages", b'event: message_stop\ndata: {"type":"message_stop"}\n\n', "ok"),
    ("/v1/responses", b'event: response.completed\ndata: {"type":"response.completed"}\n\n', "ok"),
    (CHAT, SECOND, "client_disconnect"),
]


@pytest.mark.parametrize(("path", "last", "outcome"), DONES)
async def test_a_client_may_hang_up_on_its_last_event(path: str, last: bytes, outcome: str) -> None:
    """Before the engine has ended the connection."""
    driven = await ask(stream(FIRST, last, Hang), path=path, body=STREAMED).start().settle()
    driven.leave()
    await driven.finish()
    assert (driven.exchange.outcome, driven.so_far) == (outcome, FIRST + last)


@pytest.mark.parametrize(("path", "last", "outcome"), DONES[:3])
async def test_an_engine_may_break_off_after_the_last_event(path: str, last: bytes, outcome: str) -> None:
    """Nobody reads on after it: no error event where the contract has none, and the exchange is whole."""
    reply = stream(FIRST, last, UpstreamReset("x"))
    driven = await ask(reply, path=path, body=STREAMED).start().finish()
    assert (driven.exchange.outcome, driven.exchange.error, driven.body) == (outcome, None, FIRST + last)


async def test_a_client_that_leaves_after_its_reply_has_had_it() -> None:
    driven = await ask(plain(REPLY)).start().finish()
    driven.leave()
    await driven.settle()
    assert (driven.exchange.outcome, driven.body) == ("ok", REPLY)


async def test_a_client_that_leaves_at_once_with_its_last_byte() -> None:
    """The disconnect is there when the reply is: whichever is seen first, one exchange and no half reply."""
    driven = ask(plain(REPLY)).start()
    driven.leave()
    await driven.finish()
    assert driven.exchange.outcome in ("ok", "client_disconnect")
    assert driven.so_far in (b"", REPLY)


# --- the server stops


STOPPED: dict[str, Any] = {
    "waiting for the engine": Hang,
    "waiting for the first event": lambda: stream(Hang),
    "in a stream": lambda: stream(FIRST, Hang),
    "in a whole reply": lambda: plain(REPLY[:5], Hang),
}


@pytest.mark.parametrize("stage", STOPPED)
async def test_cancellation_from_outside_is_not_swallowed(stage: str) -> None:
    answer = STOPPED[stage]
    answer = answer if answer is Hang else answer()
    driven = await ask(answer).start().settle()
    assert driven.task is not None
    driven.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await driven.task
    assert driven.exchange
    assert answer is Hang or answer.closed


async def test_cancellation_while_the_body_is_read() -> None:
    driven = await ask(Hang, messages=[]).start().settle()
    assert driven.task is not None
    driven.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await driven.task
    assert driven.exchange
    assert (driven.status, driven.error["code"]) == (503, "shutting_down")


async def test_the_watcher_ends_with_its_request() -> None:
    before = asyncio.all_tasks()
    for answer in (plain(REPLY), stream(FIRST, DONE), UpstreamUnavailable("x"), RuntimeError("x")):
        await ask(answer).start().finish()
    for _ in range(3):
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


# --- the engine fails


FAULTS: list[tuple[UpstreamError, int, str]] = [
    (UpstreamUnavailable("gone", retry_after=2), 503, "upstream_unavailable"),
    (UpstreamTimeout("slow"), 504, "upstream_timeout"),
    (UpstreamReset("reset"), 502, "upstream_reset"),
    (UpstreamInvalidResponse("garbage"), 502, "upstream_invalid_response"),
]


@pytest.mark.parametrize(("fault", "status", "code"), FAULTS)
async def test_before_the_first_byte_it_is_a_status(fault: UpstreamError, status: int, code: str) -> None:
    for answer in (fault, stream(fault), stream(FIRST[:9], fault), plain(fault), plain(REPLY[:9], fault)):
        driven = await ask(answer, body=STREAMED, headers=[(b"x-request-id", b"r1")]).start().finish()
        assert (driven.status, driven.error["code"], driven.error["type"]) == (status, code, "upstream_error")
        assert driven.headers[b"content-type"] == b"application/json"
        assert driven.headers.get(b"retry-after") == (b"2" if fault.retry_after else None)
        assert driven.headers[b"x-request-id"] == b"r1"
        assert driven.headers[b"x-tempera-preset"] == b"p"
        assert (driven.exchange.outcome, driven.exchange.error, driven.exchange.status) == (code, code, status)
        assert len(driven.pool.sent) == 1, "nothing is sent twice"
        assert fault is answer or answer.closed


@pytest.mark.parametrize(("fault", "status", "code"), FAULTS[1:])
@pytest.mark.parametrize(
    ("path", "named"),
    [(CHAT, False), ("/v1/completions", False), ("/v1/responses", True), ("/v1/messages", True)],
)
async def test_after_the_first_byte_it_is_one_last_event(
    fault: UpstreamError, status: int, code: str, path: str, named: bool
) -> None:
    for steps, whole in (
        ([FIRST, fault], FIRST),
        ([FIRST + SECOND[:9], fault], FIRST),
        ([FIRST, SECOND, fault], FIRST + SECOND),
    ):
        driven = await ask(stream(*steps), path=path, body=STREAMED).start().finish()
        assert driven.status == 200
        assert driven.body.startswith(whole)
        last = driven.body[len(whole) :].decode()
        assert last.startswith("event: error\ndata: {" if named else "data: {")
        assert last.endswith("}\n\n")
        assert last.count("\n\n") == 1
        assert json.loads(last.partition("data: ")[2])["error"]["code"] == code
        assert "[DONE]" not in driven.body.decode()
        assert (driven.exchange.outcome, driven.exchange.error) == (code, code)
        assert len(driven.pool.sent) == 1


@pytest.mark.parametrize(
    ("answer", "began"),
    [
        (UpstreamUnavailable("x"), False),
        (UpstreamTimeout("x"), True),  # connected, sent, and no answer in time: it is at work
        (plain(REPLY[:9], UpstreamReset("x")), True),
        (stream(UpstreamTimeout("x")), True),
        (plain(b"not json"), True),
        (plain(b'{"error":{"message":"full"}}', status=503), False),
    ],
)
async def test_a_client_is_told_not_to_try_again_what_was_generated(answer: Any, began: bool) -> None:
    """The OpenAI SDK repeats every status from 500 on, unless it is told not to."""
    driven = await ask(answer).start().finish()
    assert driven.headers.get(b"x-should-retry") == (b"false" if began else None)


@pytest.mark.parametrize(
    ("status", "body", "expected", "code"),
    [
        (400, b'{ "error": {"message":"no","type":"BadRequestError","param":null,"code":400} }', 400, 400),
        (404, b'{"detail":"Not Found"}', 404, None),
        (401, b'{"error":"Unauthorized"}', 502, "upstream_auth"),
        (403, b'{"error":{"message":"x"}}', 502, "upstream_auth"),
        (500, b"oops", 500, None),
        (204, b"", 502, "upstream_invalid_response"),
        (302, b"", 502, "upstream_invalid_response"),
    ],
)
async def test_the_engines_own_statuses(status: int, body: bytes, expected: int, code: Any) -> None:
    driven = await ask(plain(body, status=status)).start().finish()
    assert (driven.status, driven.error["code"]) == (expected, code)
    assert driven.exchange.outcome == ("upstream_error" if code != "upstream_invalid_response" else code)
    if code == 400:
        assert driven.body == body
    assert driven.headers[b"content-length"] == str(len(driven.body)).encode()


@pytest.mark.parametrize(
    "answer",
    [
        lambda: plain(b"<html>"),
        lambda: plain(b'{"a":1'),
        lambda: plain(b'{"a":1}{"b":2}'),
        lambda: plain(b""),
        lambda: plain(b'{"a":"\xff"}'),
        lambda: plain(b"[" * 100_000),
        lambda: stream(b"<html>hello</html>\n\n"),
        lambda: stream(b'{"error":"x"}'),
    ],
)
async def test_a_reply_that_is_none(answer: Any) -> None:
    driven = await ask(answer()).start().finish()
    assert (driven.status, driven.error["code"]) == (502, "upstream_invalid_response")


async def test_a_fault_of_ours_is_one_500_with_its_id(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL + 1, "tempera.relay")
    driven = await ask(RuntimeError("secret detail")).start().finish()
    assert (driven.status, driven.error["code"]) == (500, "internal_error")
    assert driven.exchange.id in driven.error["message"]
    assert "secret" not in driven.body.decode()
    assert driven.exchange.outcome == "internal_error"
    late = await ask(stream(FIRST, RuntimeError("secret detail")), body=STREAMED).start().finish()
    assert late.body.startswith(FIRST + b'data: {"error"')
    assert b"secret" not in late.body


# --- bounds


async def test_a_slow_reader_stops_the_reading() -> None:
    reply = stream(*[SECOND] * 1000, DONE)
    driven = ask(reply, body=STREAMED)
    driven.reading.clear()
    await driven.start().settle()
    assert reply.reads == 1
    driven.reading.set()
    while len(driven.sent) < 5:
        await asyncio.sleep(0)
    driven.reading.clear()
    seen = reply.reads
    await driven.settle()
    assert reply.reads <= seen + 1
    driven.reading.set()
    await driven.finish()
    assert driven.body == SECOND * 1000 + DONE


async def test_a_reply_over_the_cap_is_not_held() -> None:
    settings = Settings(max_reply=1000)
    fits = await ask(plain(b'"' + b"x" * 998, b'"'), settings=settings).start().finish()
    assert fits.status == 200
    reply = plain(*[b"x" * 100] * 1000)
    driven = await ask(reply, settings=settings).start().finish()
    assert (driven.status, driven.error["code"]) == (502, "upstream_invalid_response")
    assert "1000" in driven.error["message"]
    assert reply.reads <= 12
    assert reply.closed


async def test_a_body_over_the_cap_is_refused_before_it_is_read() -> None:
    settings = Settings(max_body=100)
    said = (
        await ask(plain(REPLY), headers=[(b"content-length", b"101")], messages=[], settings=settings).start().finish()
    )
    assert (said.status, said.error["code"]) == (413, "body_too_large")
    body = json.dumps(BODY).encode()
    exact = [(b"content-length", str(len(body)).encode())]
    fits = await ask(plain(REPLY), headers=exact, body=body, settings=Settings(max_body=len(body))).start().finish()
    assert fits.status == 200
    endless = [{"type": "http.request", "body": b"x" * 60, "more_body": True}] * 1000
    found = await ask(plain(REPLY), messages=endless, settings=settings).start().finish()
    assert (found.status, found.error["code"]) == (413, "body_too_large")
    for driven in (said, found):
        assert {"101", "100"} & set(driven.error["message"].split())
        assert (driven.pool.sent, driven.exchange.outcome) == ([], "rejected")


@pytest.mark.parametrize("coding", [b"gzip", b"br", b"gzip, identity", b"x"])
async def test_an_encoded_body_is_refused(coding: bytes) -> None:
    driven = await ask(plain(REPLY), headers=[(b"content-encoding", coding)]).start().finish()
    assert (driven.status, coding.decode() in driven.error["message"]) == (415, True)
    fine = await ask(plain(REPLY), headers=[(b"content-encoding", b"Identity")]).start().finish()
    assert fine.status == 200


def keep(pieces: list[int]) -> tuple[list[bytes], bool, bytes]:
    """What is kept of a reply in pieces of these sizes, whether it is cut, and the whole."""
    driven = ask(plain(REPLY))
    turn = Turn(driven.state, driven.scope, SimpleNamespace())
    turn.exchange = relay.RawExchange("", "", 0, "chat")
    whole = b""
    for number, size in enumerate(pieces):
        piece = bytes([number % 251]) * size
        whole += piece
        turn._keep(piece)
    return turn.exchange.reply, turn.exchange.cut, whole


@given(st.lists(st.sampled_from([1, 500, 40_000, KEPT - 1, KEPT, KEPT + 1, 3 * KEPT]), max_size=24))
@example([3 * KEPT] * 12)
@example([1_000] * 400)
@example([KEPT, KEPT])
@example([10, 3 * KEPT, 10])
def test_what_is_kept_is_bounded_and_has_both_ends(pieces: list[int]) -> None:
    kept, cut, whole = keep(pieces)
    joined = b"".join(kept)
    assert len(joined) <= 2 * KEPT
    assert cut is (joined != whole)
    if cut:
        assert whole.startswith(kept[0])
        assert whole.endswith(joined[-min(len(kept[-1]), KEPT_END) :])
        assert len(kept) >= 2
    else:
        assert joined == whole


async def test_a_long_stream_reaches_the_client_whole_and_the_log_cut() -> None:
    events = [b'data: {"n":%d,"x":"' % n + b"x" * 10_000 + b'"}\n\n' for n in range(200)]
    driven = await ask(stream(*events, DONE), body=STREAMED).start().finish()
    assert driven.body == b"".join(events) + DONE
    kept = b"".join(driven.exchange.reply)
    assert (driven.exchange.cut, kept.startswith(events[0]), kept.endswith(events[-1] + DONE)) == (True, True, True)
    assert len(kept) <= 2 * KEPT


# --- one exchange each


async def test_the_exchange_says_what_was_planned_and_what_happened() -> None:
    config = one({"temperature": {"max": 0.5}})
    driven = await ask(plain(REPLY), body={"temperature": 1.4}, config=config).start().finish()
    exchange = driven.exchange
    assert exchange.plan is not None
    assert exchange.plan.effective.values["temperature"] == 0.5
    assert json.loads(exchange.request)["temperature"] == 1.4
    assert json.loads(driven.pool.sent[0][3])["temperature"] == 0.5
    assert driven.headers[b"x-tempera-adjusted"] == b"temperature=(1.4 0.5);by=bound"
    assert (exchange.protocol, exchange.request_id) == ("chat", exchange.id)
    assert 0 <= exchange.overhead <= exchange.duration


async def test_a_refusal_is_an_exchange_without_a_plan() -> None:
    for body in (b"{", b'{"messages":[],"temperature":3}', b'{"model":"nope"}'):
        driven = await ask(plain(REPLY), body=body).start().finish()
        assert 400 <= driven.status < 500
        assert (driven.exchange.outcome, driven.exchange.plan, driven.pool.sent) == ("rejected", None, [])
        assert driven.exchange.request == body


async def test_two_presets_do_not_mix_when_the_file_changes_in_between() -> None:
    """A request keeps the config it began with."""
    driven = await ask(stream(FIRST, Hang), config=config_of({"old": {}})).start().settle()
    driven.state.config = config_of({"new": {}})
    driven.leave()
    await driven.finish()
    assert driven.exchange.plan is not None
    assert driven.exchange.plan.preset == "old"


async def test_a_reply_that_is_there_at_once_has_the_same_cap() -> None:
    for size, status in ((50, 200), (51, 502)):
        reply = plain()
        body = b'"' + b"x" * (size - 2) + b'"'
        reply.complete, reply.take = True, lambda body=body: body  # type: ignore[method-assign, misc]
        driven = await ask(reply, settings=Settings(max_reply=50)).start().finish()
        assert driven.status == status
        assert status == 502 or driven.body == body
