"""What keys have used, in memory that several processes share."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from gateway.serving.ledger import Ask, Want
from gateway.serving.shared_limits import CommonLedger, Table, create, end_leases
from tests.contract.targets import ROOT

AT = 1_000_000 * 60.0  # the beginning of a minute


@pytest.fixture
def table() -> Table:
    return Table(create())


def want(request: str = "a", at: float = AT, name: str = "k", **limits: Any) -> Want:
    concurrency = limits.pop("concurrency", None)
    return Want(name, request, at, concurrency, [Ask(kind, cost, limit) for kind, (cost, limit) in limits.items()])


async def test_two_workers_hold_one_limit(table: Table) -> None:
    one, two = CommonLedger(table, 1, 2), CommonLedger(table, 2, 2)
    assert [(ledger.take(want(rpm=(1, 4)))).taken for ledger in (one, two, one, two, one, two)] == [True] * 4 + [
        False
    ] * 2
    assert (one.take(want(name="other", rpm=(1, 4)))).counts == [(0, 0)]
    later = two.take(want(at=AT + 60 + 30, rpm=(1, 4)))  # half of the last minute counts
    assert (later.taken, later.counts) == (True, [(4, 0)])
    assert (two.take(want(at=AT + 240, rpm=(4, 4)))).counts == [(0, 0)]


async def test_all_or_nothing_and_tokens_are_settled(table: Table) -> None:
    ledger = CommonLedger(table, 1, 1)
    first = want(concurrency=5, rpm=(1, 10), tpm=(100, 150))
    assert (ledger.take(first)).taken
    refused = ledger.take(want("b", concurrency=5, rpm=(1, 10), tpm=(100, 150)))
    assert (refused.taken, refused.room, refused.counts) == (False, True, [(0, 1), (0, 100)])
    ledger.settle(first, -80, AT + 1)
    second = ledger.take(want("b", concurrency=5, rpm=(1, 10), tpm=(100, 150)))
    assert (second.taken, second.counts) == (True, [(0, 1), (0, 20)])
    ledger.settle(first, 500, AT + 61)  # what was used beyond it counts when it is known
    assert (ledger.take(want(at=AT + 61, tpm=(1, 150)))).counts == [(120, 500)]
    ledger.settle(first, -10_000, AT + 1)
    assert (ledger.take(want(tpm=(1, 150)))).counts == [(0, 0)]


def test_no_count_is_too_large_for_the_table(table: Table) -> None:
    table.put("k", 2**80, AT + 180, AT)
    assert table.value("k", AT) >= 2**60


async def test_requests_in_flight_count_together_and_end_with_their_worker(table: Table) -> None:
    one, two = CommonLedger(table, 1, 2), CommonLedger(table, 2, 2)

    async def take(ledger: CommonLedger, request: str, name: str = "k", limit: int = 3) -> bool:
        found = ledger.take(want(request, name=name, concurrency=limit))
        assert found.room is found.taken
        return found.taken

    assert [await take(one, "a"), await take(two, "b"), await take(two, "c"), await take(one, "d")] == [True] * 3 + [
        False
    ]
    one.end(want("d"))  # never taken
    one.end(want("b"))  # another's
    assert not await take(one, "d")
    assert await take(one, "d", "other", 1)
    two.end(want("b"))
    assert await take(one, "d")
    end_leases(table, 1)  # it held two of the three
    fresh = CommonLedger(table, 1, 2)
    assert [await take(fresh, str(n)) for n in range(3)] == [True, True, False]
    assert await take(fresh, "e", "other", 1)


def test_many_names_keep_their_own_numbers_and_rows_are_used_again(table: Table) -> None:
    for round_ in range(3):
        now = AT + 200 * round_
        for n in range(20_000):
            table.put(f"{round_}/{n}", n + 1, now + 180, now)
        assert [table.value(f"{round_}/{n}", now) for n in range(20_000)] == list(range(1, 20_001))
        assert table.value(f"{round_}/7", now + 180) == 0


def test_a_full_table_forgets_and_goes_on(table: Table) -> None:
    for n in range(150_000):
        table.put(str(n), 7, AT + 180 + n, AT)
        assert table.value(str(n), AT) == 7


AT_THE_END = """
import mmap
from gateway.serving import shared_limits as shared
guard = mmap.mmap(-1, shared._SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=0)
table = shared.Table(shared.create())  # Linux maps it right below
last = shared._SIZE - shared._BUCKET
hashes = ((str(n), shared._hash(str(n))) for n in range(1_000_000))
name = next(name for name, key in hashes if shared._bucket(key) == last and 0 in key[:-1])  # so that find goes slowly
table.put(name, 7, 2.0, 1.0)
print(table.value(name, 1.0))
"""


def test_nothing_is_read_beyond_the_table() -> None:
    """mmap.find of Python before 3.11.4 did, and the process was gone."""
    done = subprocess.run([sys.executable, "-c", AT_THE_END], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "7\n")


CHILD = """
import asyncio, sys
from gateway.serving.ledger import Ask, Want
from gateway.serving.shared_limits import CommonLedger, Table
ledger = CommonLedger(Table(int(sys.argv[1])), int(sys.argv[2]), 4)
async def main():
    print("go", flush=True)
    while True:
        for n in range(1000):
            want = Want("k", str(n), 60e6, 4, [Ask("rpm", 1, 10**9)])
            assert (ledger.take(want)).taken
            ledger.end(want)
        print(1000, flush=True)
asyncio.run(main())
"""


async def test_nothing_is_lost_between_processes_and_a_kill_leaves_no_lock(table: Table) -> None:
    descriptor = os.dup(table._descriptor)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(descriptor), str(n)],
            cwd=ROOT,
            pass_fds=(descriptor,),
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in (1, 2, 3)
    ]
    ledger, counted = CommonLedger(table, 4, 4), 0
    for child in children:
        assert child.stdout is not None
        lines = await asyncio.to_thread(lambda out=child.stdout: [out.readline() for _ in range(4)])  # type: ignore[misc]
        assert lines[0] == "go\n"
        child.send_signal(signal.SIGKILL)  # in the middle of something
        child.wait()
        counted += 1000 * sum(line == "1000\n" for line in [*lines, *child.stdout])
        child.stdout.close()
    os.close(descriptor)
    assert counted >= 9000
    [(_, found)] = (ledger.take(want(rpm=(1, 10**9)))).counts
    assert counted <= found <= counted + 3000  # what they did since they last said so
