"""SIGTERM with requests under way, in real processes, alone and as one of several workers."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes import FakeEngine
from tests.serving.crews import Crew, Request, chat, crew, linux

pytestmark = linux
CHAT = "/v1/chat/completions"


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    with FakeEngine.in_thread(text="word " * 30, pace=0.05) as engine:
        yield engine


@pytest.fixture(params=[1, 3], ids=["alone", "three"])
def workers(request: pytest.FixtureRequest) -> int:
    count: int = request.param
    return count


async def under_way(gateway: Crew, count: int) -> list[tuple[Request, dict[str, str]]]:
    """Streams whose first event has come, and their heads."""
    streams = [await Request.open(gateway.port, CHAT, chat(stream=True)).send() for _ in range(count)]
    return [(stream, (await stream.begun())[1]) for stream in streams]


async def test_what_is_under_way_ends_well_and_nothing_new_begins(
    tmp_path: Path, engine: FakeEngine, workers: int
) -> None:
    with crew(tmp_path, engine, workers) as gateway:
        idle = await Request.open(gateway.port, CHAT, chat()).send()
        _, headers = await idle.head()
        await idle.rest(headers)  # a kept connection that rests
        streams = await under_way(gateway, 12)
        plain = asyncio.create_task(gateway.chat())
        await engine.arrival(14)
        gateway.signal(signal.SIGTERM)
        for _ in range(100):
            ready = await gateway.get("/readyz")
            if ready.status == 503:
                break
        assert (ready.status, ready.json["status"]) == (503, "draining")
        await asyncio.sleep(0.1)  # the signal has gone from process to process
        for _ in range(5):
            new = await gateway.chat()
            assert (new.status, new.json["error"]["code"]) == (503, "shutting_down")
            assert (new.headers["connection"], new.headers["retry-after"]) == ("close", "1")
        idle.again()
        try:
            status, headers = await idle.head()
            assert (status, headers["connection"]) == (503, "close")
        except (asyncio.IncompleteReadError, ConnectionError):
            assert workers > 1  # its worker had nothing to wait for, and is gone
        done = await asyncio.gather(*(stream.rest(headers) for stream, headers in streams))
        assert [(b"[DONE]" in body, complete) for body, complete in done] == [(True, True)] * 12
        assert ((await plain).status, await gateway.end()) == (200, 0)
        assert sorted(gateway.rows("outcome")) == ["ok"] * 14 + ["rejected"] * 6
        assert "ERROR" not in gateway.said


async def test_what_is_left_at_the_deadline_is_told_so_and_logged(
    tmp_path: Path, engine: FakeEngine, workers: int
) -> None:
    engine.text = "word " * 2000
    with crew(tmp_path, engine, workers, "--shutdown-timeout", "0.5") as gateway:
        streams = await under_way(gateway, 6)
        plain = asyncio.create_task(gateway.chat())
        await engine.arrival(7)
        gateway.signal(signal.SIGTERM)
        done = await asyncio.gather(*(stream.rest(headers) for stream, headers in streams))
        for body, complete in done:
            events = [line for line in body.split(b"\n") if line.startswith(b"data: ")]
            assert complete
            assert "shutting down" in json.loads(events[-1].removeprefix(b"data: "))["error"]["message"]
            assert b"[DONE]" not in body
        answer = await plain
        assert (answer.status >= 500, "shutting down" in answer.json["error"]["message"]) == (True, True)
        assert await gateway.end() == 0
        assert gateway.rows() == [7]
        assert "ok" not in gateway.rows("outcome")
        assert "client_disconnect" not in gateway.rows("outcome")


async def test_a_second_interrupt_is_in_a_hurry(tmp_path: Path, engine: FakeEngine, workers: int) -> None:
    engine.text = "word " * 2000
    with crew(tmp_path, engine, workers) as gateway:
        streams = await under_way(gateway, 3)
        gateway.signal(signal.SIGINT)
        await asyncio.sleep(0.3)
        gateway.signal(signal.SIGINT)
        done = await asyncio.gather(*(stream.rest(headers) for stream, headers in streams))
        assert all(b'"error"' in body and b"[DONE]" not in body for body, _ in done)
        assert await gateway.end() == 0
        assert gateway.rows() == [3]


async def test_a_reader_that_never_reads_does_not_hold_it_up(tmp_path: Path, engine: FakeEngine, workers: int) -> None:
    engine.text, engine.pace = "word " * 200_000, 0.0
    with crew(tmp_path, engine, workers, "--shutdown-timeout", "0.5") as gateway:
        stream = await Request.open(gateway.port, CHAT, chat(stream=True)).send()
        await stream.begun()
        gateway.signal(signal.SIGTERM)
        assert await gateway.end() == 0
        assert gateway.rows() == [1]
