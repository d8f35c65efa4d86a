"""Ten thousand exchanges, and none of them lost: with the database there, away, and when the gateway is killed."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from tests.contract.targets import gateway
from tests.fakes import FakeEngine
from tests.log.postgres import Postgres
from tests.records.house import eventually, exported, metrics, mortal, rows, tempera
from tests.records.visitors import Answer, Visitor, crowd

MANY = 10_000
FULL = os.environ.get("TEMPERA_TEST_FULL") == "1"
AWAY = 10.0  # seconds
INTERVALS = 0.2  # seconds: what docs/experiments.md says that a kill -9 may cost
SLACK = 1.0  # seconds that a busy machine may keep the log's threads waiting


class Killed(Exception):
    """The connection ended because the gateway was killed."""


def flags(engine: FakeEngine) -> tuple[str, ...]:
    return "--upstream", engine.url, "--dialect", "vllm"


def test_ten_thousand_exchanges_are_on_record_with_their_votes(tmp_path: Path, database: dict[str, str]) -> None:
    asked: dict[str, str] = {}  # exchange id -> the question
    votes: dict[str, float] = {}

    async def ask(visitor: Visitor, number: int) -> None:
        answer = await visitor.chat(f"Question {number}", model="creative", user=f"user-{number % 500}")
        assert answer.whole, answer
        asked[answer.exchange] = f"Question {number}"
        if number % 10 == 0:
            votes[answer.exchange] = (number % 30 - 10) / 10
            said = await visitor.vote(answer.exchange, votes[answer.exchange])
            assert said.status == 201, said

    with FakeEngine.in_thread(text="Yes, gladly.") as engine, gateway(tmp_path, *flags(engine), **database) as url:
        asyncio.run(crowd(url, range(MANY), ask))
        assert len(asked) == len(engine.generations) == MANY
        found = eventually(lambda: len(got := exported(url)) == MANY and got)
        told = metrics(url)
    assert {row["id"]: row["messages"][0]["content"] for row in found} == asked
    assert {row["id"]: row["feedback"] for row in found if row["feedback"] is not None} == votes
    assert {(row["text"], row["outcome"], row["effective"]["temperature"]) for row in found} == {
        ("Yes, gladly.", "ok", 0.9)
    }
    assert told["tempera_log_written_total"] == MANY
    assert sum(value for name, value in told.items() if name.startswith("tempera_log_dropped_total")) == 0
    assert [row[0] for row in rows(database, tmp_path)] == sorted(asked)
    lines = tempera(tmp_path, "export", **database).splitlines()  # without a gateway: the same
    assert [json.loads(line) for line in lines] == found


@pytest.mark.parametrize(
    "trouble",
    ["stopped", pytest.param("frozen", marks=pytest.mark.skipif(not FULL, reason="only with TEMPERA_TEST_FULL=1"))],
)
def test_nobody_notices_that_the_database_is_away(tmp_path: Path, postgres_server: Postgres, trouble: str) -> None:
    database = {"TEMPERA_DATABASE_URL": postgres_server.url()}
    told: dict[str, str] = {}  # exchange id -> request id
    took: list[float] = []  # seconds

    async def under_load(url: str) -> None:
        going = True
        counter = count()
        numbers = iter(lambda: next(counter) if going else None, None)

        async def ask(visitor: Visitor, number: int) -> None:
            answer = await visitor.chat(f"Question {number}", {"x-request-id": f"turn-{number}"}, model="creative")
            assert answer.whole, answer
            told[answer.exchange] = f"turn-{number}"
            took.append(answer.ended - answer.began)
            await asyncio.sleep(0.05)

        async with asyncio.TaskGroup() as group:
            group.create_task(crowd(url, numbers, ask))
            await asyncio.sleep(1)
            away, back = {
                "stopped": (postgres_server.stop, postgres_server.start),
                "frozen": (postgres_server.freeze, postgres_server.thaw),
            }[trouble]
            await asyncio.to_thread(away)
            before = len(took)
            await asyncio.sleep(AWAY)
            during = len(took)
            await asyncio.to_thread(back)
            await asyncio.sleep(1)
            going = False
        for when, part in (("before", took[:before]), ("meanwhile", took[before:during])):
            part.sort()
            shares = ", ".join(f"p{share} {part[len(part) * share // 100] * 1000:.1f}" for share in (50, 99))
            print(f"{when}: {len(part)} replies, ms: {shares}, longest {part[-1] * 1000:.1f}")
        assert during - before > 100

    with FakeEngine.in_thread(text="Yes.") as engine, gateway(tmp_path, *flags(engine), **database) as url:
        asyncio.run(under_load(url))
        eventually(lambda: len(rows(database, tmp_path)) >= len(told))
        assert rows(database, tmp_path) == sorted(told.items())
        numbers = metrics(url)
    assert numbers["tempera_log_spooled_total"] > 100
    assert list((tmp_path / "data" / "spool").iterdir()) == []


@pytest.mark.parametrize(  # SQLite lies in the gateway's own directory: it cannot be away
    ("database", "away"),
    [("sqlite", False), ("postgresql", False), ("postgresql", True)],
    indirect=["database"],
    ids=["sqlite", "postgresql", "postgresql away"],
)
def test_after_a_kill_all_but_the_last_moment_is_there(
    tmp_path: Path, database: dict[str, str], away: bool, request: pytest.FixtureRequest
) -> None:
    server: Postgres | None = request.getfixturevalue("postgres_server") if away else None
    answers: list[Answer] = []

    async def under_load(url: str, kill: Callable[[], None]) -> float:
        async def ask(visitor: Visitor, number: int) -> None:
            try:
                answers.append(await visitor.chat(f"Question {number}", model="creative"))
            except (OSError, asyncio.IncompleteReadError):
                raise Killed from None

        load = asyncio.create_task(crowd(url, count(), ask))
        await asyncio.sleep(1.5)
        if server is not None:
            await asyncio.to_thread(server.stop)
            await asyncio.sleep(1.5)
        assert not load.done()
        killed = time.monotonic()
        kill()
        with pytest.raises(ExceptionGroup) as ended:
            await load
        assert ended.group_contains(Killed)
        return killed

    with FakeEngine.in_thread(text="Yes.") as engine:
        with mortal(tmp_path, *flags(engine), **database) as (url, kill):
            killed = asyncio.run(under_load(url, kill))
        if server is not None:
            assert [path for path in (tmp_path / "data" / "spool").iterdir() if path.stat().st_size]
            server.start()
        with gateway(tmp_path, *flags(engine), **database) as url:
            expected = {answer.exchange for answer in answers if answer.ended < killed - INTERVALS - SLACK}
            eventually(lambda: expected <= {row["id"] for row in exported(url)})
            found = [row["id"] for row in exported(url)]
    lost = [answer for answer in answers if answer.exchange not in set(found)]
    age = max((killed - answer.ended for answer in lost), default=0.0)
    print(f"{len(answers)} replies, {len(lost)} not on record, the oldest of them {age:.3f} s before the kill")
    assert len(expected) > 100
    assert expected <= set(found)
    assert len(set(found)) == len(found)
