"""The gate of the whole gateway: never more than its places, first come first served, and no place is ever lost."""

from __future__ import annotations

import asyncio
import random

import pytest

from gateway.protocol.errors import RateLimited
from gateway.serving.queueing import Gate
from tests.serving.driven import Hang, ask, plain, stream


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_first_come_first_served_and_the_queue_has_an_end() -> None:
    gate, order = Gate(2, 2, 5.0), []

    async def visit(name: str) -> None:
        await gate.enter()
        order.append(name)

    tasks = [asyncio.create_task(visit(name)) for name in "abcd"]
    await settle()
    assert (order, gate.in_flight, gate.waiting) == (["a", "b"], 2, 2)
    with pytest.raises(RateLimited) as caught:
        await gate.enter()
    assert (caught.value.code, caught.value.status, caught.value.headers) == (
        "too_many_requests",
        429,
        [(b"retry-after", b"5")],
    )
    for _ in range(4):
        gate.leave()
    await asyncio.gather(*tasks)
    assert (order, gate.in_flight, gate.waiting) == (list("abcd"), 0, 0)


async def test_who_leaves_the_queue_frees_its_place_there() -> None:
    gate = Gate(1, 1, 5.0)
    await gate.enter()
    waiting = asyncio.create_task(gate.enter())
    await settle()
    waiting.cancel()
    await settle()
    assert (gate.waiting, gate.in_flight) == (0, 1)
    another = asyncio.create_task(gate.enter())
    await settle()
    gate.leave()
    await another
    assert gate.in_flight == 1


@pytest.mark.parametrize("leaves_first", [True, False])
async def test_a_place_handed_to_someone_who_goes_in_that_moment_is_handed_on(leaves_first: bool) -> None:
    gate = Gate(1, 2, 5.0)
    await gate.enter()
    first, second = asyncio.create_task(gate.enter()), asyncio.create_task(gate.enter())
    await settle()
    if leaves_first:
        first.cancel()
        gate.leave()
    else:
        gate.leave()  # first has it now, but did not run yet
        first.cancel()
    await second
    assert first.cancelled()
    assert (gate.in_flight, gate.waiting) == (1, 0)


async def test_nobody_waits_longer_than_the_patience() -> None:
    gate = Gate(1, 1, 0.01)
    await gate.enter()
    with pytest.raises(RateLimited, match=r"none ended within 0\.01 s"):
        await gate.enter()
    assert (gate.in_flight, gate.waiting) == (1, 0)


async def test_no_place_is_lost_or_made_whatever_happens() -> None:
    gate, inside, most = Gate(3, 5, 0.02), 0, 0
    chance = random.Random(1)

    async def visit(stay: float) -> None:
        nonlocal inside, most
        try:
            await gate.enter()
        except RateLimited:
            return
        inside += 1
        most = max(most, inside)
        try:
            await asyncio.sleep(stay)
        finally:
            inside -= 1
            gate.leave()

    tasks = []
    for _ in range(400):
        tasks.append(asyncio.create_task(visit(chance.random() / 100)))
        await asyncio.sleep(chance.random() / 500)
        if chance.random() < 0.3:
            chance.choice(tasks).cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (most, inside, gate.in_flight, gate.waiting) == (3, 0, 0, 0)


# --- on the data path


async def test_requests_wait_at_the_gate_and_go_through_it_in_order() -> None:
    gate, end = Gate(1, 1, 5.0), asyncio.Event()
    first, second, third = ask(stream(b"data: 1\n\n", end, b"data: [DONE]\n\n")), ask(plain(b"{}")), ask(plain(b"{}"))
    for driven in (first, second, third):
        driven.state.access.gate = gate
        await driven.start().settle()
    assert (first.status, second.sent, second.pool.sent) == (200, [], [])
    assert (third.status, third.error["code"], third.headers[b"retry-after"]) == (429, "too_many_requests", b"5")
    assert third.exchange.outcome == "rejected"
    end.set()
    await first.finish()
    await second.finish()
    assert (second.status, gate.in_flight, gate.waiting) == (200, 0, 0)


@pytest.mark.parametrize("answer", [Hang, OSError("a fault of ours")])
async def test_a_place_is_given_back_when_the_client_goes_or_all_fails(answer: object) -> None:
    gate = Gate(1, 1, 5.0)
    driven, waiting = ask(answer), ask(plain(b"{}"))
    driven.state.access.gate = waiting.state.access.gate = gate
    await driven.start().settle()
    if answer is Hang:
        await waiting.start().settle()
        waiting.leave()  # from the queue
        await waiting.finish()
        assert (gate.in_flight, gate.waiting, waiting.exchange.outcome) == (1, 0, "client_disconnect")
        driven.leave()
    await driven.finish()
    assert (gate.in_flight, gate.waiting) == (0, 0)


async def test_a_request_that_is_refused_takes_no_place() -> None:
    gate = Gate(1, 0, 5.0)
    for body in (b"{", b'{"model":"nope"}', b'{"temperature":9}'):
        driven = ask(plain(b"{}"), body=body)
        driven.state.access.gate = gate
        await driven.start().finish()
        assert (400 <= driven.status < 500, gate.in_flight) == (True, 0)
