"""What holds when there is more than one of everything, and what breaks when a part dies. Seen from outside only."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from itertools import cycle
from typing import Any
from uuid import uuid4

import sqlalchemy

from gateway.log import store
from tests.contract.targets import Reply
from tests.records.house import eventually
from tests.scale.conftest import Say
from tests.scale.lines import Line, Load
from tests.scale.parts import EXPERIMENT, LIMIT, OPERATOR_KEY, SECRET, WORKERS, Installation, Part

OPERATOR = {"authorization": f"Bearer {OPERATOR_KEY}"}
LOST_LOG = 0.7  # seconds before a SIGKILL whose exchanges may miss in the log, as docs/experiments.md says


def at_once(everywhere: list[Line], ask: Callable[[Line, int], Reply], numbers: Iterable[int]) -> list[Reply]:
    """`ask` for every number, the lines taking turns, each line one request at a time, all lines at once."""
    shares: dict[int, list[int]] = defaultdict(list)
    for turn, number in zip(cycle(range(len(everywhere))), numbers):
        shares[turn].append(number)
    with ThreadPoolExecutor(len(everywhere)) as pool:
        done = pool.map(lambda share: [ask(everywhere[share[0]], n) for n in share[1]], shares.items())
        return [reply for replies in done for reply in replies]


def journal(installation: Installation) -> dict[str, list[tuple[str, str, str]]]:
    """Engine's name -> (mark, request id, session) of all that it wrote down."""
    found = {}
    for engine in installation.engines:
        rows = installation.journal(engine).read_text().splitlines() if installation.journal(engine).exists() else []
        found[engine.name] = [tuple(row.split(" ")) for row in rows]
    return found  # type: ignore[return-value]


def on_record(installation: Installation, prefix: str) -> Counter[str]:
    """How often each request id that begins so is in the one table."""
    engine = store.connect(installation.database)
    query = sqlalchemy.text("SELECT request_id FROM exchanges WHERE request_id LIKE :like")
    try:
        with engine.connect() as connection:
            return Counter(connection.execute(query, {"like": f"{prefix}-%"}).scalars())
    finally:
        engine.dispose()


def test_a_conversation_stays_on_one_engine(installation: Installation, everywhere: list[Line], say: Say) -> None:
    """By a hash: the client's identifier never leaves the gateway, nor does a session that a client made up."""
    run, key = uuid4().hex[:8], installation.keys["load"]
    conversations, each = 100, 4

    def ask(line: Line, number: int) -> Reply:
        # The turns of a conversation are so far apart that each comes through another process.
        conversation = f"{run}-{number % conversations}"
        told = {"x-request-id": f"{run}-{number}", "x-conversation-id": conversation, "x-session-id": "mine"}
        return line.chat(key, told)

    order = [n + conversations * turn + turn for turn in range(each) for n in range(conversations)]
    replies = at_once(everywhere, ask, order)
    assert {reply.status for reply in replies} == {200}
    where: dict[str, set[str]] = defaultdict(set)
    for engine, rows in journal(installation).items():
        for mark, request, session in rows:
            if mark == "+" and request.startswith(f"{run}-"):
                where[session].add(engine)
    wanted = {
        hmac.new(SECRET.encode(), f"load\0{run}-{n}".encode(), sha256).hexdigest()[:32] for n in range(conversations)
    }
    assert set(where) == wanted
    assert all(len(engines) == 1 for engines in where.values())
    shares = Counter(engine for engines in where.values() for engine in engines)
    assert len(shares) == 2
    assert min(shares.values()) > 0.1 * conversations
    say(f"affinity     {conversations} conversations, {len(order)} requests: each on one engine ({dict(shares)})")


def test_requests_without_a_conversation_are_spread(installation: Installation, everywhere: list[Line]) -> None:
    run, key = uuid4().hex[:8], installation.keys["load"]
    replies = at_once(
        everywhere, lambda line, n: line.chat(key, {"x-request-id": f"{run}-{n}", "x-session-id": "one"}), range(60)
    )
    assert {reply.status for reply in replies} == {200}
    rows = [(engine, row) for engine, rows in journal(installation).items() for row in rows if row[1].startswith(run)]
    assert {session for _, (_, _, session) in rows} == {"-"}
    assert {engine for engine, _ in rows} == {engine.name for engine in installation.engines}


def test_all_processes_give_a_unit_the_same_arm(installation: Installation, everywhere: list[Line], say: Say) -> None:
    key, units = installation.keys["load"], 40
    arms: dict[str, set[str]] = defaultdict(set)
    for line in everywhere:
        for unit in range(units):
            reply = line.chat(key, model="tried", user=f"user-{unit}")
            arms[f"user-{unit}"].add(reply.headers["x-tempera-variant"])
    assert all(len(given) == 1 for given in arms.values())
    both = Counter(arm for given in arms.values() for arm in given)
    assert set(both) == {f"{EXPERIMENT}=control", f"{EXPERIMENT}=warm"}
    say(f"experiments  {units} units, each asked of {len(everywhere)} processes: the same arm ({dict(both)})")


def test_one_limit_for_all(installation: Installation, everywhere: list[Line], say: Say) -> None:
    key, asked = installation.keys["limited"], 2 * LIMIT
    if (into := time.time() % 60) > 50:
        time.sleep(60 - into)  # across the minute's end some of what was used would be given back
    replies = at_once(everywhere, lambda line, _: line.chat(key), range(asked))
    found = Counter(reply.status for reply in replies)
    assert found == {200: LIMIT, 429: asked - LIMIT}
    assert all(1 <= int(reply.headers["retry-after"]) <= 120 for reply in replies if reply.status == 429)
    say(f"limit        {LIMIT} a minute, {asked} asked of {len(everywhere)} processes at once: {found[200]} let in")


def test_one_log_and_one_result(installation: Installation, everywhere: list[Line], say: Say) -> None:
    run, key, asked = uuid4().hex[:8], installation.keys["load"], 80
    replies = at_once(
        everywhere,
        lambda line, n: line.chat(key, {"x-request-id": f"{run}-{n}"}, model="tried", user=f"{run}-{n}"),
        range(asked),
    )
    assert {reply.status for reply in replies} == {200}
    wanted = Counter(f"{run}-{n}" for n in range(asked))
    assert eventually(lambda: on_record(installation, run) == wanted)
    exchange = replies[0].headers["x-tempera-exchange"]
    seen, results = set(), []
    for line in everywhere:
        seen.add(line.send("GET", f"/v1/exchanges/{exchange}", None, OPERATOR).body)
        result = line.send("GET", f"/v1/experiments/{EXPERIMENT}", None, OPERATOR).json
        results.append({name: value for name, value in result.items() if name not in ("now", "days")})
    assert len(seen) == 1
    assert all(result == results[0] for result in results)
    say(f"log          {asked} requests to {len(everywhere)} processes: {asked} rows, the same result page from all")


async def under_load(installation: Installation, load: Load, kill: Callable[[], Any]) -> Any:
    """What `kill` gives, called in the middle of a load; between its look and the death the load cannot move."""
    running = asyncio.create_task(load.run(32))
    await asyncio.sleep(2.5)
    found = kill()
    await asyncio.sleep(2.5)
    load.stopping = True
    await running
    return found


async def test_a_gateway_dies_with_its_own_requests_only(installation: Installation, say: Say) -> None:
    load, dead = Load(installation, uuid4().hex[:8]), installation.gateways[1]

    def kill() -> tuple[set[str], float]:
        flying = load.in_flight(dead)
        dead.kill()
        return flying, asyncio.get_running_loop().time()

    flying, at = await under_load(installation, load, kill)
    installation.start(dead)
    lost = {each.id for each in load.lost}
    assert flying
    assert [(each.gateway, each.ended - at, each.reply[:200]) for each in load.lost if each.id not in flying] == []
    assert len([each for each in load.asked if each.passed_over]) > 10  # the load went on, past the dead one
    whole = {each.id: each for each in load.asked if each.state == "whole"}
    assert len(whole) + len(lost) == len(load.asked)
    eventually(lambda: set(on_record(installation, load.prefix)) >= set(whole), 5)
    rows = on_record(installation, load.prefix)
    assert set(rows.values()) == {1}
    missing = [whole[id] for id in whole.keys() - rows.keys()]
    assert all(each.gateway == dead.name and each.ended > at - LOST_LOG - 0.5 for each in missing)
    freed = {row[1] for rows in journal(installation).values() for row in rows if row[0] == "x"} & flying
    assert freed  # the engines were told, through the router, that nobody waits any more
    say(
        f"gateway      kill -9 of one of two ({WORKERS} workers): {len(load.asked)} requests, {len(flying)} in flight "
        f"there, {len(lost)} lost, 0 of the other's; {len(freed)} stopped at the engines; "
        f"{len(missing)} answered ones not in the log"
    )


async def test_an_engine_dies_with_its_own_requests_only(installation: Installation, say: Say) -> None:
    load, dead = Load(installation, uuid4().hex[:8]), installation.engines[0]

    def kill() -> set[str]:
        dead.kill()
        marks = {request: mark for mark, request, _ in journal(installation)[dead.name]}  # the last one counts
        return {request for request, mark in marks.items() if mark == "+" and request.startswith(load.prefix)}

    flying = await under_load(installation, load, kill)
    installation.start(dead)
    lost = {each.id: each for each in load.lost}
    assert flying
    assert [(each.gateway, each.reply[-200:]) for each in load.lost if each.id not in flying] == []
    assert len(load.asked) > 100
    # What was lost had begun, and was told so; what had not begun was answered by the other engine.
    assert all(each.stream and b'"upstream_reset"' in each.reply for each in lost.values())
    say(
        f"engine       kill -9 of one of two: {len(load.asked)} requests, {len(flying)} in flight there, "
        f"{len(lost)} lost (streams that had begun), {len(flying) - len(lost)} answered by the other"
    )
    home_again(installation, dead, sorted(flying)[:5])


def test_an_engine_found_dead_costs_no_request(installation: Installation, everywhere: list[Line], say: Say) -> None:
    """One request after the other, so that the first ones must find out."""
    dead, line, key = installation.engines[1], everywhere[0], installation.keys["load"]
    wanted = [uuid4().hex[:8] for _ in range(24)]
    for conversation in wanted:
        line.chat(key, {"x-conversation-id": conversation, "x-request-id": f"{conversation}-1"})
    there = [each for each in wanted if engine_of(installation, f"{each}-1") == dead.name]
    assert len(there) > 2
    dead.kill()
    replies = [line.chat(key, {"x-conversation-id": conversation}) for conversation in there]
    installation.start(dead)
    assert {reply.status for reply in replies} == {200}
    home_again(installation, dead, there)
    say(f"dead engine  found by {len(there)} conversations at home there: 0 lost, all at home again after its return")


def engine_of(installation: Installation, request: str) -> str | None:
    """The engine that a request reached."""
    found = [name for name, rows in journal(installation).items() for row in rows if row[:2] == ("+", request)]
    return found[0] if found else None


def home_again(installation: Installation, engine: Part, conversations: list[str]) -> None:
    """Waits until conversations that were at home at an engine are so again."""
    line, key = Line(installation.gateways[0]), installation.keys["load"]

    def home(conversation: str) -> bool:
        request = uuid4().hex
        reply = line.chat(key, {"x-conversation-id": conversation, "x-request-id": request})
        assert reply.status == 200, reply.body
        return engine_of(installation, request) == engine.name

    assert eventually(lambda: all(home(conversation) for conversation in conversations))
    line.close()
