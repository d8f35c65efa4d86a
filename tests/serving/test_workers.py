"""Several workers behind one port, in real processes: what they share, and what the death of one costs."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from gateway.serving.gathering import GAUGES
from tests.contract.targets import ROOT
from tests.fakes import FakeEngine
from tests.serving.crews import Crew, Request, chat, crew, linux, presets, until

pytestmark = linux


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    with FakeEngine.in_thread() as engine:
        yield engine


@pytest.fixture
def three(tmp_path: Path, engine: FakeEngine) -> Iterator[Crew]:
    with crew(tmp_path, engine, 3) as gateway:
        yield gateway


async def test_every_row_of_every_worker_is_in_the_one_database(three: Crew) -> None:
    """600 requests, 24 at a time; three processes write to SQLite."""

    async def client() -> int:
        return sum([(await three.chat()).status == 200 for _ in range(25)])

    assert sum(await asyncio.gather(*(client() for _ in range(24)))) == 600
    numbers = await three.numbers()
    assert numbers['tempera_requests_total{outcome="ok",preset="plain",protocol="chat",status="200"}'] == 600
    assert numbers["tempera_log_offered_total"] == 600
    assert numbers["tempera_request_seconds_count{" + 'preset="plain",protocol="chat"}'] == 600
    assert numbers["tempera_workers"] == 3
    assert {name for name in numbers if name.startswith("process_open_fds")} == {
        f'process_open_fds{{worker="{n}"}}' for n in (1, 2, 3)
    }
    assert sum(value for name, value in numbers.items() if name.startswith("tempera_log_dropped_total")) == 0
    three.signal(signal.SIGTERM)
    assert await three.end() == 0
    assert three.rows() == [600]
    assert len(set(three.rows("id"))) == 600


async def test_it_is_decided_of_every_gauge_how_several_become_one(three: Crew) -> None:
    page = (await three.get("/metrics")).body.decode()
    known = ("_workers", *(end for ends, _ in GAUGES for end in ends))
    gauges = [name for name in re.findall(r"^# TYPE (\S+) gauge$", page, re.MULTILINE) if name.startswith("tempera_")]
    assert len(gauges) > 5
    assert [name for name in gauges if not name.endswith(known)] == []


async def test_counters_never_go_down_whoever_is_asked_and_whoever_dies(three: Crew) -> None:
    stop = asyncio.Event()

    async def client() -> None:
        while not stop.is_set():
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await three.chat()

    clients = [asyncio.create_task(client()) for _ in range(4)]
    victim, seen, last = three.workers[1], 0, dict[str, float]()
    for scrape in range(200):
        if scrape == 80:
            os.kill(victim, signal.SIGKILL)
        with suppress(ConnectionError, asyncio.IncompleteReadError):  # it may have been the victim that was asked
            numbers = await three.numbers()
            counted = {n: v for n, v in numbers.items() if n.startswith("tempera_") and _counts(n)}
            assert {
                name: (value, counted.get(name)) for name, value in last.items() if counted.get(name, -1) < value
            } == {}
            seen, last = seen + 1, counted
    stop.set()
    await asyncio.gather(*clients)
    assert seen >= 198
    assert last["tempera_worker_restarts_total"] == 1
    assert last['tempera_requests_total{outcome="ok",preset="plain",protocol="chat",status="200"}'] > 200


def _counts(name: str) -> bool:
    return name.partition("{")[0].endswith(("_total", "_count", "_sum", "_bucket"))


async def test_the_death_of_one_costs_its_own_requests_and_nobody_is_refused(three: Crew, engine: FakeEngine) -> None:
    engine.text, engine.pace = "word " * 40, 0.05
    streams = [Request.open(three.port, "/v1/chat/completions", chat(stream=True)) for _ in range(30)]
    for stream in streams:
        await stream.send()
    heads = [await stream.begun() for stream in streams]
    rests = [asyncio.create_task(s.rest(headers)) for s, (_, headers) in zip(streams, heads, strict=True)]
    stop, knocks, refused = asyncio.Event(), 0, 0

    async def knock() -> None:
        nonlocal knocks, refused
        while not stop.is_set():
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", three.port)
                writer.close()
                knocks += 1
            except OSError:
                refused += 1
            await asyncio.sleep(0.005)

    knocking = asyncio.create_task(knock())
    victim = three.workers[0]
    theirs = _connections(victim) // 2  # each stream has one to its client and one to the engine
    os.kill(victim, signal.SIGKILL)
    done = await asyncio.gather(*rests)
    await asyncio.to_thread(until, lambda: len(three.workers) == 3)
    stop.set()
    await knocking
    broken = sum(not complete for _, complete in done)
    assert 0 < broken <= theirs + 1
    assert sum(b"[DONE]" in body for body, _ in done) == 30 - broken >= 5
    assert (refused, knocks > 50) == (0, True)
    assert "worker 1 ended (killed by SIGKILL)" in three.said
    engine.pace = 0.0
    assert [(await three.chat()).status for _ in range(20)] == [200] * 20


def _connections(pid: int) -> int:
    """Established TCP connections of a process."""
    inodes = set()
    for descriptor in os.scandir(f"/proc/{pid}/fd"):
        with suppress(OSError):
            inodes.add(os.readlink(descriptor.path).removeprefix("socket:[").rstrip("]"))
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return sum(row[3] == "01" and row[9] in inodes for row in rows)


async def test_a_reload_reaches_every_worker_and_no_request_under_way(three: Crew, engine: FakeEngine) -> None:
    engine.text, engine.pace = "word " * 60, 0.05
    old = (await three.get("/readyz")).json["revision"]
    stream = await Request.open(three.port, "/v1/chat/completions", chat(stream=True)).send()
    status, headers = await stream.begun()
    (three.home / "kind.md").write_text("Be kind.")
    presets(three.home / "presets.yaml", 0.9, system_prompt="kind.md")
    three.signal(signal.SIGHUP)
    new = await _settled(three, {old})
    engine.pace = 0.0
    fresh = await three.chat()
    assert (fresh.headers["x-tempera-revision"], "temperature=0.9" in fresh.headers["x-tempera-params"]) == (new, True)
    assert engine.generations[-1].json["messages"][0] == {"role": "system", "content": "Be kind."}
    engine.pace = 0.05
    body, complete = await stream.rest(headers)
    assert (status, complete, b"[DONE]" in body) == (200, True, True)
    assert headers["x-tempera-revision"] == old
    assert "temperature=0.5" in headers["x-tempera-params"]
    (three.home / "kind.md").write_text("Be brief.")  # a prompt's own change, unasked
    newest = await _settled(three, {old, new})
    presets(three.home / "presets.yaml", 7)  # far outside the domain
    await asyncio.to_thread(until, lambda: three.said.count("was refused") >= 3)
    assert await three.revisions() == {newest}
    victim = three.workers[2]
    os.kill(victim, signal.SIGKILL)
    await asyncio.to_thread(until, lambda: victim not in three.workers and len(three.workers) == 3)
    await asyncio.to_thread(until, lambda: three.said.count("was refused") >= 4)  # the new one read it too,
    assert await three.revisions() == {newest}  # and serves with the last good
    numbers = await three.numbers()
    assert numbers['tempera_reloads_total{outcome="refused"}'] >= 3
    assert numbers['tempera_reloads_total{outcome="ok"}'] >= 6
    presets(three.home / "presets.yaml", 0.2, system_prompt="missing.md")
    await asyncio.to_thread(until, lambda: three.said.count("missing.md") >= 3)
    (three.home / "missing.md").write_text("Here I am.")  # nothing else changes
    await _settled(three, {old, new, newest})


async def _settled(gateway: Crew, olds: set[str]) -> str:
    """The revision in force on every worker, once it is a new one."""
    for _ in range(200):
        found = await gateway.revisions()
        if len(found) == 1 and not found & olds:
            return found.pop()
        await asyncio.sleep(0.1)
    raise AssertionError(f"the workers do not agree: {found}")


async def test_a_key_that_came_stays_needed_whoever_dies(three: Crew) -> None:
    key = await three.new_key("somebody")
    assert {(await three.chat(key)).status for _ in range(20)} == {200}
    await asyncio.sleep(1.5)  # the supervisor asks once a second
    (three.home / "data" / "keys.yaml").unlink()
    victim = three.workers[0]
    os.kill(victim, signal.SIGKILL)
    await asyncio.to_thread(until, lambda: victim not in three.workers and len(three.workers) == 3)
    while (await three.numbers())["tempera_workers"] < 3:
        await asyncio.sleep(0.05)
    assert {answer.status for answer in await three.everywhere("/v1/chat/completions", chat())} == {401}


async def test_the_limits_of_a_key_hold_for_all_workers_together(three: Crew) -> None:
    key = await three.new_key("metered", "--rpm", "7")
    found = [await three.chat(key) for _ in range(30)]
    assert sorted(answer.status for answer in found) == [200] * 7 + [429] * 23
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in found[:7]] == [
        str(n) for n in range(6, -1, -1)
    ]


async def test_streams_of_a_worker_that_was_killed_count_no_more(three: Crew, engine: FakeEngine) -> None:
    key = await three.new_key("two-hands", "--concurrency", "6")
    engine.text, engine.pace = "word " * 2000, 0.05

    async def attempt() -> tuple[int, Request]:
        stream = await Request.open(three.port, "/v1/chat/completions", chat(stream=True), key).send()
        return (await stream.head())[0], stream

    streams = [await attempt() for _ in range(12)]
    assert [status for status, _ in streams] == [200] * 6 + [429] * 6
    victim = max(three.workers, key=_connections)
    os.kill(victim, signal.SIGKILL)
    await asyncio.to_thread(until, lambda: victim not in three.workers and len(three.workers) == 3)
    ends = await asyncio.gather(*(_ended(stream) for _, stream in streams[:6]))
    assert 0 < sum(ends) < 6
    again = [await attempt() for _ in range(6)]
    assert [status for status, _ in again].count(200) == sum(ends)


async def _ended(stream: Request) -> bool:
    """Whether its connection is gone."""
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        try:
            async with asyncio.timeout(0.5):
                while await stream.reader.read(65536):
                    pass
        except TimeoutError:
            return False
    return True


async def test_workers_end_in_order_when_their_supervisor_is_killed(three: Crew, engine: FakeEngine) -> None:
    engine.text, engine.pace = "word " * 20, 0.05
    stream = await Request.open(three.port, "/v1/chat/completions", chat(stream=True)).send()
    _, headers = await stream.begun()
    workers = three.workers
    three.process.kill()
    body, complete = await stream.rest(headers)
    assert (complete, b"[DONE]" in body) == (True, True)
    await asyncio.to_thread(until, lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    assert three.rows() == [1]


def test_one_worker_is_one_process(tmp_path: Path, engine: FakeEngine) -> None:
    with crew(tmp_path, engine, 1) as gateway:
        assert gateway.workers == []


@pytest.mark.parametrize("workers", [1, 2])
def test_what_stops_a_start_is_said_once(tmp_path: Path, workers: int) -> None:
    presets(tmp_path / "presets.yaml")
    command = [sys.executable, "-m", "gateway.cli", "serve", "--workers", str(workers), "--data-dir", str(tmp_path)]
    command += ["--presets", str(tmp_path / "presets.yaml"), "--upstream", "http://127.0.0.1:9"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for flags, words in [
            (("--port", port), f"cannot listen on 127.0.0.1:{port}: Address already in use"),
            (("--port", "0", "--host", "0.0.0.0"), "Without keys the gateway binds to this machine only"),
        ]:
            done = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True, timeout=60)
            assert (done.returncode, done.stderr.count(words), "Traceback" in done.stderr) == (1, 1, False), done.stderr


@pytest.mark.parametrize("at_once", [True, False], ids=["burst", "trickle"])
async def test_connections_are_spread(three: Crew, engine: FakeEngine, at_once: bool) -> None:
    engine.text, engine.pace = "word " * 2000, 0.1
    streams = [Request.open(three.port, "/v1/chat/completions", chat(stream=True)) for _ in range(60)]
    if at_once:
        await asyncio.gather(*(stream.send() for stream in streams))
    for stream in streams:
        if not at_once:
            await stream.send()
        await stream.head()
    share = [_connections(worker) // 2 for worker in three.workers]
    assert sum(share) == pytest.approx(60, abs=5)
    assert min(share) >= 10, share
