"""What keys have used: the sliding minute, giving back, leases; in memory, and in a real Redis where there is one."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.serving.ledger import PERIOD, Ask, OwnLedger, Standing, Taken, Want, standing
from gateway.serving.shared import SharedLedger
from tests.serving.redis_server import redis_server

MINUTE = 1_800_000_000.0  # a time at which a minute begins
assert MINUTE % PERIOD == 0
AMOUNTS = st.integers(0, 10**6)
TIMES = st.floats(MINUTE, MINUTE + 3600)


@given(AMOUNTS, AMOUNTS, st.integers(1, 10**6), st.integers(1, 10**6), TIMES)
def test_the_wait_is_enough_and_no_longer_than_needed(
    previous: int, current: int, cost: int, limit: int, at: float
) -> None:
    ask = Ask("rpm", min(cost, limit), limit)

    def fits(later: float) -> bool:
        gone = int((at + later) // PERIOD) - int(at // PERIOD)
        counts = {0: (previous, current), 1: (current, 0)}.get(gone, (0, 0))
        return standing(counts, ask, at + later, False).wait == 0

    wait = standing((previous, current), ask, at, False).wait
    assert 0 <= wait <= 2 * PERIOD
    assert fits(wait + 0.01)
    assert wait < 0.02 or not fits(wait - 0.02) or math.isclose(wait, 0.02)


@given(AMOUNTS, AMOUNTS, st.integers(1, 10**6), TIMES)
def test_what_is_told_of_a_limit(previous: int, current: int, limit: int, at: float) -> None:
    ask = Ask("rpm", 1, limit)
    before = standing((previous, current), ask, at, False)
    found = standing((previous, current), ask, at, not before.wait)
    assert 0 <= found.remaining <= limit - (not found.wait)
    assert 0 <= found.reset <= 2 * PERIOD
    assert found.wait <= found.reset + 1e-6
    if not found.wait:
        assert before.remaining == found.remaining + 1
        again = standing((previous, current + 1), ask, at, False)
        assert (again.wait == 0) == (found.remaining >= 1)


@pytest.mark.parametrize(
    ("previous", "current", "into", "remaining", "reset", "wait"),
    [
        (0, 0, 0, 9, 120, 0),
        (0, 9, 0, 0, 120, 0),
        (0, 10, 30, 0, 90, 36),  # in 30 s a minute begins with 10 in the last; 6 s later 9 of them count
        (10, 0, 0, 0, 60, 6),
        (10, 0, 30, 4, 90, 0),
        (10, 5, 30, 0, 90, 6),
        (20, 0, 0, 0, 60, 33),
    ],
)
def test_the_sliding_minute(
    previous: int, current: int, into: float, remaining: int, reset: float, wait: float
) -> None:
    found = standing((previous, current), Ask("rpm", 1, 10), MINUTE + into, wait == 0)
    assert (found.remaining, found.reset, found.wait) == (remaining, reset, pytest.approx(wait))


@pytest.fixture(scope="module")
def redis() -> Iterator[str]:
    with redis_server() as url:
        yield url


class Memory:
    """This process's, asked as the shared one is."""

    def __init__(self) -> None:
        self._own = OwnLedger()

    async def take(self, want: Want) -> Taken:
        return self._own.take(want)

    def end(self, want: Want) -> bool:
        self._own.end(want)
        return False

    async def settle(self, want: Want, more: int, at: float) -> None:
        self._own.settle(want, more, at)


Either = Memory | SharedLedger


@pytest.fixture(params=["memory", "redis"])
def ledger(request: pytest.FixtureRequest) -> Either:
    if request.param == "memory":
        return Memory()
    return SharedLedger(request.getfixturevalue("redis"), 1.0, 2.0)


async def take(ledger: Either, name: str, at: float, *asks: Ask) -> Standing | None:
    """How the first ask stands; None when it was not taken."""
    want = Want(name, "x", at, None, asks)
    found = await ledger.take(want)
    assert found.room
    stands = [standing(counts, ask, at, found.taken) for counts, ask in zip(found.counts, asks, strict=True)]
    assert found.taken == (not any(each.wait for each in stands)), "both sides decide alike"
    return stands[0] if found.taken else None


async def test_a_limit_holds_around_a_full_minute_and_comes_back(ledger: Either) -> None:
    end, ask = MINUTE + 59.9, Ask("rpm", 1, 5)
    taken = [await take(ledger, "edge", at, ask) is not None for at in [end] * 7 + [end + 0.2] * 7]
    assert taken == [True] * 5 + [False] * 9
    half = end + 30
    assert [await take(ledger, "edge", half, ask) is not None for _ in range(4)] == [True, True, False, False]
    for name, other, left in (
        ("other", ask, 4),
        ("edge", Ask("tpm", 1, 5), 4),
        ("edge", Ask("rpm", 1, 50), 44),  # another limit goes on with what was used
    ):
        found = await take(ledger, name, half, other)
        assert found is not None
        assert found.remaining == left


async def test_all_at_once_never_pass_together_and_all_or_nothing_is_taken(ledger: Either) -> None:
    few, many = Ask("rpm", 1, 10), Ask("tpm", 5, 1000)
    found = await asyncio.gather(*(take(ledger, "rush", MINUTE, few, many) for _ in range(30)))
    assert sum(each is not None for each in found) == 10
    tokens = await take(ledger, "rush", MINUTE, many)
    assert tokens is not None
    assert tokens.remaining == 1000 - 11 * 5


@pytest.mark.parametrize(
    ("name", "more", "later", "remaining"),
    [
        ("not all was used", -60, 10.0, 79),
        ("it goes back to its own minute", -60, 70.0, int(99 - 20 * 50 / 60)),
        ("it no longer counts anyway", -60, 200.0, 99),
        ("more was used", 30, 10.0, None),
        ("more was used, and counts now", 30, 70.0, int(99 - 80 * 50 / 60 - 30)),
    ],
)
async def test_settling_the_80_of_100_that_were_taken(
    ledger: Either, name: str, more: int, later: float, remaining: int | None
) -> None:
    first = Want(name, "x", MINUTE, None, (Ask("tpm", 80, 100),))
    assert (await ledger.take(first)).taken
    await ledger.settle(first, more, MINUTE + later)
    found = await take(ledger, name, MINUTE + later, Ask("tpm", 1, 100))
    assert (found and found.remaining) == remaining
    for after in (300, 360):
        found = await take(ledger, name, MINUTE + after, Ask("tpm", 1, 100))
        assert found is not None
        assert found.remaining <= 99, "nobody has a credit"


def flight(request: str, most: int, name: str = "team") -> Want:
    return Want(name, request, MINUTE, most, ())


async def test_requests_in_flight(ledger: Either) -> None:
    async def over(want: Want) -> None:
        if ledger.end(want):
            await ledger.settle(want, 0, MINUTE)

    async def room(*wants: Want) -> list[bool]:
        found = [await ledger.take(want) for want in wants]
        assert all(each.room == each.taken for each in found)
        return [each.room for each in found]

    assert await room(*(flight(request, 2) for request in "abc")) == [True, True, False]
    assert await room(flight("a", 2, "other")) == [True]
    await over(flight("never-taken", 2))
    await over(flight("a", 2))
    assert await room(flight("c", 2), flight("d", 2)) == [True, False]
    for request in "bc":
        await over(flight(request, 2))
    assert await room(flight("e", 1)) == [True]


async def test_nothing_is_taken_when_there_is_no_room(ledger: Either) -> None:
    ask = Ask("rpm", 1, 10)
    wants = [Want("full", request, MINUTE, 1, (ask,)) for request in "ab"]
    assert [(await ledger.take(want)).taken for want in wants] == [True, False]
    found = await take(ledger, "full", MINUTE, ask)
    assert found is not None
    assert found.remaining == 8


async def test_a_lease_runs_out_unless_it_is_held(redis: str) -> None:
    dead, alive, other = (SharedLedger(redis, 1.0, 2.0) for _ in range(3))
    assert (await dead.take(flight("of-a-killed-one", 2, "k"))).room
    assert (await alive.take(flight("held", 2, "k"))).room
    assert not (await other.take(flight("new", 2, "k"))).room
    end = time.monotonic() + 10
    while not (await other.take(flight("new", 2, "k"))).room:
        await alive.hold()
        assert time.monotonic() < end
        await asyncio.sleep(0.1)
    await other.hold()
    assert not (await other.take(flight("third", 2, "k"))).room, "what is held is still there"
    assert alive.end(flight("held", 2, "k"))
    await alive.hold()
    assert (await other.take(flight("third", 2, "k"))).room, "an end that could not be told is told with the next"


@pytest.mark.parametrize(
    "url", ["localhost:6379", "http://:secret-word@h:1", "redis://:secret-word@host-without-port", "", "redis://"]
)
def test_an_address_that_cannot_be_used(url: str) -> None:
    with pytest.raises(ValueError, match="TEMPERA_LIMITS_URL") as caught:
        SharedLedger(url, 60.0, 0.25)
    assert "secret-word" not in str(caught.value)


@pytest.mark.parametrize("url", ["redis://h:1/3", "valkey://u:p@h:1", "rediss://h:1", "valkeys://h:1"])
def test_an_address_that_can(url: str) -> None:
    SharedLedger(url, 60.0, 0.25)


def test_old_counters_are_forgotten() -> None:
    ledger, ask = OwnLedger(), Ask("rpm", 1, 10)
    for minute in range(100):
        ledger.take(Want(f"key-{minute}", "x", MINUTE + PERIOD * minute, None, (ask,)))
    assert sorted(ledger._minutes) == [int(MINUTE // PERIOD) + 98, int(MINUTE // PERIOD) + 99]
