"""What keys have used: the sliding minute, giving back, leases; in memory, and in a real Redis where there is one."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.serving.ledger import PERIOD, Ledger, OwnLeases, OwnStore, SharedStore, standing
from tests.serving.redis_server import redis_server

MINUTE = 1_800_000_000.0  # a time at which a minute begins
assert MINUTE % PERIOD == 0
AMOUNTS = st.integers(0, 10**6)
TIMES = st.floats(MINUTE, MINUTE + 3600)


@given(AMOUNTS, AMOUNTS, st.integers(1, 10**6), st.integers(1, 10**6), TIMES)
def test_the_wait_is_enough_and_no_longer_than_needed(
    previous: int, current: int, cost: int, limit: int, at: float
) -> None:
    cost = min(cost, limit)

    def fits(later: float) -> bool:
        gone = int((at + later) // PERIOD) - int(at // PERIOD)
        counts = {0: (previous, current), 1: (current, 0)}.get(gone, (0, 0))
        return standing(*counts, cost, limit, at + later).wait == 0

    wait = standing(previous, current, cost, limit, at).wait
    assert 0 <= wait <= 2 * PERIOD
    assert fits(wait + 0.01)
    assert wait < 0.02 or not fits(wait - 0.02) or math.isclose(wait, 0.02)


@given(AMOUNTS, AMOUNTS, st.integers(1, 10**6), TIMES)
def test_what_is_told_of_a_limit(previous: int, current: int, limit: int, at: float) -> None:
    found = standing(previous, current, 1, limit, at)
    assert 0 <= found.remaining <= limit - (not found.wait)
    assert 0 <= found.reset <= 2 * PERIOD
    assert found.wait <= found.reset + 1e-6
    if not found.wait:
        again = standing(previous, current + 1, 1, limit, at)
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
    found = standing(previous, current, 1, 10, MINUTE + into)
    assert (found.remaining, found.reset, found.wait) == (remaining, reset, pytest.approx(wait))


@pytest.fixture(scope="module")
def redis() -> Iterator[str]:
    with redis_server() as url:
        yield url


@pytest.fixture(params=["memory", "redis"])
def ledger(request: pytest.FixtureRequest) -> Ledger:
    if request.param == "memory":
        return Ledger(OwnStore(), OwnLeases())
    return SharedStore(request.getfixturevalue("redis"), 1.0, 2.0).ledger


async def test_a_limit_holds_around_a_full_minute_and_comes_back(ledger: Ledger) -> None:
    end = MINUTE + 59.9
    taken = [not (await ledger.take("rpm", "edge", 1, 5, at)).wait for at in [end] * 7 + [end + 0.2] * 7]
    assert taken == [True] * 5 + [False] * 9
    half = end + 30
    assert [not (await ledger.take("rpm", "edge", 1, 5, half)).wait for _ in range(4)] == [True, True, False, False]
    assert (await ledger.take("rpm", "other", 1, 5, half)).remaining == 4
    assert (await ledger.take("tpm", "edge", 1, 5, half)).remaining == 4
    assert (await ledger.take("rpm", "edge", 1, 50, half)).remaining > 40, "another limit goes on with what was used"


async def test_all_at_once_never_pass_together(ledger: Ledger) -> None:
    found = await asyncio.gather(*(ledger.take("rpm", "rush", 1, 10, MINUTE) for _ in range(30)))
    assert sum(not each.wait for each in found) == 10


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
    ledger: Ledger, name: str, more: int, later: float, remaining: int | None
) -> None:
    assert not (await ledger.take("tpm", name, 80, 100, MINUTE)).wait
    await ledger.settle("tpm", name, more, MINUTE, MINUTE + later)
    found = await ledger.take("tpm", name, 1, 100, MINUTE + later)
    assert (found.remaining if not found.wait else None) == remaining
    for after in (300, 360):
        assert (await ledger.take("tpm", name, 1, 100, MINUTE + after)).remaining <= 99, "nobody has a credit"


async def test_leases(ledger: Ledger) -> None:
    leases = ledger.leases
    assert [await leases.take("team", request, 2) for request in "abc"] == [True, True, False]
    assert await leases.take("other", "a", 2)
    await leases.give("team", "never-taken")
    await leases.give("team", "a")
    assert [await leases.take("team", request, 2) for request in "cd"] == [True, False]
    for request in "bc":
        await leases.give("team", request)
    assert await leases.take("team", "e", 1)


async def test_a_lease_runs_out_unless_it_is_held(redis: str) -> None:
    dead, alive, other = (SharedStore(redis, 1.0, 2.0) for _ in range(3))
    assert await dead.leases.take("k", "of-a-killed-one", 2)
    assert await alive.leases.take("k", "held", 2)
    assert not await other.leases.take("k", "new", 2)
    end = time.monotonic() + 10
    while not await other.leases.take("k", "new", 2):
        await alive.leases.hold()
        assert time.monotonic() < end
        await asyncio.sleep(0.1)
    assert not await other.leases.take("k", "third", 2), "what is held is still there"


@pytest.mark.parametrize(
    "url", ["localhost:6379", "http://:secret-word@h:1", "redis://:secret-word@host-without-port", "", "redis://"]
)
def test_an_address_that_cannot_be_used(url: str) -> None:
    with pytest.raises(ValueError, match="TEMPERA_LIMITS_URL") as caught:
        SharedStore(url, 60.0, 0.25)
    assert "secret-word" not in str(caught.value)


@pytest.mark.parametrize("url", ["redis://h:1/3", "valkey://u:p@h:1", "rediss://h:1", "valkeys://h:1"])
def test_an_address_that_can(url: str) -> None:
    SharedStore(url, 60.0, 0.25)


async def test_old_counters_are_forgotten() -> None:
    store = OwnStore()
    await store.incr("old", 0, 1)
    await store.incr("new", 60, 1)
    await store.sweep()
    assert list(store.storage) == ["new"]
