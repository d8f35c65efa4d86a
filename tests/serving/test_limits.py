"""Keys held to their limits on the data path: what is told, what is counted, and that all of it comes back."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from gateway.log.exchange import RawExchange
from gateway.protocol.errors import UpstreamReset, UpstreamUnavailable
from gateway.serving.access import Caller
from gateway.serving.keyfile import Limits
from gateway.serving.limits import Limiter
from gateway.serving.routes import _both
from gateway.serving.stay import duration, spent
from tests.contract.targets import free_port, send
from tests.fakes import FakeEngine
from tests.serving.driven import BODY, Driven, Hang, ask, plain, stream
from tests.serving.redis_server import redis_server

CHATTED = (
    b'{"choices":[{"message":{"content":"x"}}],"usage":{"prompt_tokens":7,"completion_tokens":13,"total_tokens":20}}'
)
PROMPT = -(-len(json.dumps(BODY)) // 4)  # the estimate for what `ask` sends
CLOCK = 1_800_000_030.0  # half a minute has gone by


class Door:
    """Access with one caller. Requests that `ask` makes come in through it when it is their state's access."""

    trouble = None
    gate = None

    def __init__(self, limiter: Limiter | None = None, **limits: int) -> None:
        self.caller = Caller("team", limits=Limits(**limits))
        self.limiter = limiter or Limiter(clock=lambda: CLOCK)

    def admit(self, key: bytes | None) -> Caller:
        return self.caller

    def ask(self, answer: Any, **options: Any) -> Driven:
        driven = ask(answer, **options)
        driven.state.access = self  # type: ignore[assignment]
        return driven

    async def go(self, answer: Any = None, **options: Any) -> Driven:
        return await self.ask(plain(CHATTED) if answer is None else answer, **options).start().finish()


def told(driven: Driven) -> dict[str, str]:
    mark = b"x-ratelimit-"
    return {k.removeprefix(mark).decode(): v.decode() for k, v in driven.headers.items() if k.startswith(mark)}


async def test_requests_per_minute() -> None:
    door = Door(rpm=2)
    replies = [await door.go(body={"stream": False}) for _ in range(4)]
    assert [driven.status for driven in replies] == [200, 200, 429, 429]
    assert [told(driven)["remaining-requests"] for driven in replies] == ["1", "0", "0", "0"]
    assert {told(driven)["limit-requests"] for driven in replies} == {"2"}
    assert {told(driven)["reset-requests"] for driven in replies} == {"1m30s"}, (
        "nothing else is told, and on every reply"
    )
    assert all(len(told(driven)) == 3 for driven in replies)
    refused = replies[2]
    assert refused.error == {
        "message": "Key 'team' may use 2 requests per minute, and 0 are left. Please try again in 1m0s.",
        "type": "rate_limit_error",
        "param": None,
        "code": "rate_limit_exceeded",
    }
    assert refused.headers[b"retry-after"] == b"60"
    assert (refused.pool.sent, refused.exchange.outcome, refused.exchange.error) == (
        [],
        "rejected",
        "rate_limit_exceeded",
    )


async def test_the_headers_are_on_streams_and_on_errors_too() -> None:
    door = Door(rpm=9, tpm=1000)
    names = {f"{what}-{kind}" for what in ("limit", "remaining", "reset") for kind in ("requests", "tokens")}
    for answer, options, status in [
        (stream(b"data: [DONE]\n\n"), {}, 200),
        (plain(b'{"error":{"message":"no"}}', status=400), {}, 400),
        (plain(b"{}"), {"body": b"{"}, 400),
        (UpstreamUnavailable("gone"), {}, 503),
        (plain(b"{}"), {"path": "/v1/embeddings"}, 200),
    ]:
        driven = await door.go(answer, **options)
        assert (driven.status, set(told(driven))) == (status, names)
    assert told(await Door(concurrency=1).go()) == {}


async def test_a_key_without_limits_is_told_nothing() -> None:
    door = Door()
    door.caller = Caller("free")
    driven = door.ask(plain(CHATTED)).start()
    await driven.finish()
    assert (driven.status, told(driven)) == (200, {})


# --- tokens


async def test_tokens_are_an_estimate_first_and_then_what_the_engine_says() -> None:
    door = Door(tpm=100)
    first = await door.go()
    assert told(first)["remaining-tokens"] == str(100 - PROMPT)
    second = await door.go()
    assert told(second)["remaining-tokens"] == str(100 - 20 - PROMPT), "20 were used, not the estimate"
    third = await door.go(body={"messages": [{"role": "user", "content": "long " * 60}]})
    assert (third.status, third.error["code"]) == (429, "rate_limit_exceeded")
    assert "100 tokens per minute, and 60 are left. Please try again in " in third.error["message"]
    assert told(third)["remaining-tokens"] == "60"
    assert (await door.go()).status == 200, "what did not fit took nothing"


async def test_what_was_used_beyond_the_limit_has_to_be_waited_for() -> None:
    door = Door(tpm=PROMPT)
    body = b'{"choices":[],"usage":{"total_tokens":5000}}'
    assert [(await door.go(plain(body))).status for _ in range(2)] == [200, 429]
    vast = await Door(tpm=1).go()
    assert vast.status == 200, "a prompt above the limit passes when nothing was used; otherwise it never could"


@pytest.mark.parametrize(
    ("answer", "used"),
    [
        (plain(b'{"error":{}}', status=500), 0),
        (UpstreamUnavailable("gone"), 0),
        (plain(b"not JSON"), 0),
        (plain(b'{"choices":[]}'), PROMPT),
        (stream(b"data: 1\n\n", b"data: 2\n\n", UpstreamReset("gone")), PROMPT + 2),
    ],
)
async def test_tokens_where_the_engine_did_not_count(answer: Any, used: int) -> None:
    door = Door(tpm=1000)
    await door.go(answer)
    assert told(await door.go())["remaining-tokens"] == str(1000 - used - PROMPT)


def events(*documents: dict[str, Any]) -> list[bytes]:
    return [b"data: " + json.dumps(each).encode() + b"\n\n" for each in documents]


COUNTED = {"prompt_tokens": 7, "total_tokens": 20, "completion_tokens": 13}
PARTS = {"input_tokens": 7, "output_tokens": 13}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"])
@pytest.mark.parametrize("streaming", [True, False])
def test_usage_in_every_protocol_as_the_engine_writes_it(path: str, streaming: bool) -> None:
    body = {**BODY, "model": "smollm2", "stream": streaming, "stream_options": {"include_usage": True}}
    with FakeEngine.in_thread(text="one two three four five") as engine:
        found = send(engine.url, "POST", path, json.dumps(body).encode(), {}).body
    assert 5 <= spent(made([found], stream=streaming), 1_000_000) < 1000, "the engine's count, not the estimate"


@pytest.mark.parametrize(
    ("reply", "streaming", "tokens"),
    [
        ([CHATTED], False, 20),
        ([b'{"usage":{"input_tokens":7,"output_tokens":13}}'], False, 20),
        ([b'{"data":[],"usage":{"prompt_tokens":7,"total_tokens":7}}'], False, 7),
        ([*events({"choices": [{}]}, {"choices": [], "usage": COUNTED}), b"data: [DONE]\n\n"], True, 20),
        (events({"type": "response.completed", "response": {"usage": {**PARTS, "total_tokens": 20}}}), True, 20),
        (
            events(
                {"type": "message_start", "message": {"usage": {"input_tokens": 7, "output_tokens": 0}}},
                {"type": "content_block_delta", "delta": {"text": 'a text with "usage" and "total_tokens": 9'}},
                {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 13}},
            ),
            True,
            20,
        ),
        ([b'data: {"usage": nul', b'l}\n\ndata: {"us', b'age":{"total_tokens":20}}\n\n'], True, 20),
        ([b"data: {}\n\n"], True, 100 + 3),
        ([b"[1]"], False, 100),
        ([b'{"usage":{"total_tokens":"many"}}'], False, 100),
        ([b'{"usage":{"total_tokens":%d}}' % 2**70], False, 100),
        ([b'{"usage":{"total_tokens":-5}}'], False, 100),
        ([], False, 100),
    ],
)
def test_what_an_exchange_has_cost(reply: list[bytes], streaming: bool, tokens: int) -> None:
    assert spent(made(reply, stream=streaming), 100) == tokens
    assert spent(made(reply, stream=streaming, status=429), 100) == 0


def test_what_one_leaves_the_other_leaves_too() -> None:
    left = []

    def trip(exchange: RawExchange) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        _both(trip, left.append)(made([], stream=False))
    assert len(left) == 1


def made(reply: list[bytes], *, stream: bool, status: int = 200) -> RawExchange:
    found = RawExchange("x", "x", 0.0, "chat")
    found.reply, found.stream, found.status, found.pieces = reply, stream, status, 3 if stream else 0
    return found


# --- requests in flight


@pytest.mark.parametrize(
    ("answer", "left"),
    [
        (stream(b"data: 1\n\n", Hang), True),
        (Hang, True),
        (stream(b"data: 1\n\n", UpstreamReset("gone")), False),
        (UpstreamUnavailable("gone"), False),
        (plain(b"{", status=500), False),
        (OSError("a fault of ours"), False),
        (plain(CHATTED), False),
    ],
)
async def test_a_place_comes_back_whatever_happens(answer: Any, left: bool) -> None:
    door = Door(concurrency=1)
    driven = door.ask(answer).start()
    if left:
        await driven.settle()
        refused = await door.go()
        assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
        assert refused.headers[b"retry-after"] == b"1"
        assert "as many requests in flight as it may: 1." in refused.error["message"]
        driven.leave()
    await driven.finish()
    assert (await door.go()).status == 200


async def test_a_refused_request_takes_nothing() -> None:
    door = Door(rpm=1, tpm=1000, concurrency=1)
    assert (await door.go()).status == 200
    for _ in range(5):
        assert told(await door.go())["remaining-requests"] == "0"
    door.caller = Caller("team", limits=Limits(tpm=1000, concurrency=1))
    assert told(await door.go())["remaining-tokens"] == str(1000 - 20 - PROMPT)


async def test_another_limit_is_in_force_at_once_and_goes_on_with_what_was_used() -> None:
    door = Door(rpm=2)
    assert [(await door.go()).status for _ in range(3)] == [200, 200, 429]
    door.caller = Caller("team", limits=Limits(rpm=4))
    assert [(await door.go()).status for _ in range(3)] == [200, 200, 429]
    door.caller = Caller("team")
    assert (await door.go()).status == 200


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (0.2, "1s"), (59, "59s"), (59.5, "1m0s"), (360, "6m0s"), (119.9, "2m0s")]
)
def test_durations_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# --- a shared store that is away


async def test_a_store_that_refuses(caplog: pytest.LogCaptureFixture) -> None:
    """Every replica goes on alone, says so, and finds the store again."""
    port = free_port()
    limiter = Limiter(f"redis://:hunter-two@127.0.0.1:{port}/0")
    door = Door(limiter, rpm=2, tpm=1000, concurrency=2)
    watching = asyncio.create_task(limiter.watch())
    try:
        assert [(await door.go()).status for _ in range(3)] == [200, 200, 429]
        await until(lambda: limiter.trouble is not None)
        assert limiter.trouble is not None
        assert "ConnectionError" in limiter.trouble
        assert [record.levelno for record in caplog.records if "shared store" in record.message] == [logging.ERROR]
        assert str(port) not in limiter.trouble
        assert "hunter-two" not in caplog.text + limiter.trouble
    finally:
        watching.cancel()
        await limiter.close()


async def test_a_store_that_says_nothing_is_waited_for_once_and_not_long() -> None:
    silent = await asyncio.start_server(lambda reader, writer: asyncio.sleep(60), "127.0.0.1", 0)
    limiter = Limiter(f"redis://127.0.0.1:{silent.sockets[0].getsockname()[1]}/0")
    door = Door(limiter, rpm=2)
    try:
        first = door.ask(plain(CHATTED)).start()
        await first.settle()
        assert first.sent == [], "it asks"
        await first.finish()
        for status in (200, 429):
            driven = await door.ask(plain(CHATTED)).start().settle()
            assert driven.status == status, "without waiting for anything"
        assert limiter.alone == 3
    finally:
        await limiter.close()
        silent.close()


async def test_a_store_that_comes_back() -> None:
    port = free_port()
    with redis_server(port) as url:
        limiter = Limiter(url, clock=lambda: CLOCK)
        door = Door(limiter, rpm=100, concurrency=2)
        held, over = (door.ask(stream(b"data: 1\n\n", Hang)).start() for _ in range(2))
        await until(lambda: held.sent and over.sent)
        watching = asyncio.create_task(limiter.watch())
    over.leave()  # and the store cannot be told
    await over.finish()
    await until(lambda: limiter.trouble)
    assert (await door.go()).status == 200, "counted here, where nothing is in flight"
    with redis_server(port) as url:
        await until(lambda: limiter.trouble is None)
        other = Door(Limiter(url), concurrency=1)
        assert (await other.go()).status == 429, "what is in flight since before is told to the new one"
        held.leave()
        await held.finish()
        await until_status(other, 200)
        await other.limiter.close()
        watching.cancel()
        await limiter.close()


async def test_a_client_that_goes_while_the_store_is_asked_leaves_nothing_there() -> None:
    with redis_server() as url:
        limiter = Limiter(url)
        door = Door(limiter, concurrency=1)
        for steps in range(12):
            driven = door.ask(plain(CHATTED)).start()
            for _ in range(steps):
                await asyncio.sleep(0.0002)
            driven.leave()
            await driven.finish()
        await until_status(door, 200)
        await limiter.close()


async def test_keys_names_and_counts_are_all_that_the_store_sees() -> None:
    from redis.asyncio import Redis

    with redis_server() as url:
        limiter = Limiter(url, clock=lambda: CLOCK)
        door = Door(limiter, rpm=5, tpm=1000, concurrency=5)
        driven = door.ask(stream(b"data: 1\n\n", Hang), headers=[(b"authorization", b"Bearer tk-canary")]).start()
        await until(lambda: len(driven.sent) > 0)
        client: Any = Redis.from_url(url)
        keys = sorted(await client.keys("*"))
        minute = int(CLOCK // 60)
        names = ["tempera:leases/team", f"tempera:rpm/team/{minute}", f"tempera:tpm/team/{minute}"]
        assert [key.decode() for key in keys] == names
        assert min([await client.ttl(key) for key in keys]) > 0, "nothing stays for ever"
        driven.leave()
        await driven.finish()
        await client.aclose()
        await limiter.close()


async def until(true: Any) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.01)


async def until_status(door: Door, status: int) -> None:
    async with asyncio.timeout(10):
        while (await door.go()).status != status:
            await asyncio.sleep(0.01)
