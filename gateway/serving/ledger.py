"""What keys have used, by the minute and in flight, and whether what a request asks for still fits.

The counters are those of `limits`' storages, one per key and minute. What is in force slides: the last minute counts by
the share of it that is less than 60 seconds ago, so no burst fits around a full minute. Its own sliding window is not
used because tokens have to be given back to the minute they were taken from. Everything a request asks for is taken
together or not at all.

Knows names and numbers; nothing about requests or replies. The ledger that replicas share is in shared.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Protocol

from limits.aio.storage import MemoryStorage, Storage
from msgspec import Struct

PERIOD: Final = 60  # seconds
KEPT: Final = 3 * PERIOD  # seconds; a counter matters during its own minute and the next
_ROUNDING: Final = 1e-9


class Ask(Struct, frozen=True):
    """`cost`, in [1, limit], of a limit per minute."""

    kind: str
    cost: int
    limit: int


class Want(Struct, frozen=True):
    """What one request asks for at Unix time `at`. `name` is the key's, `request` an id; `concurrency` its limit."""

    name: str
    request: str
    at: float
    concurrency: int | None
    asks: Sequence[Ask]

    def counters(self, ask: Ask) -> tuple[str, str]:
        """The names of the counters of this minute and of the one before."""
        minute = int(self.at // PERIOD)
        return f"{ask.kind}/{self.name}/{minute}", f"{ask.kind}/{self.name}/{minute - 1}"

    @property
    def share(self) -> float:
        """How much of the last minute still counts."""
        return 1 - self.at % PERIOD / PERIOD

    def corrected(self, kind: str, more: int, at: float) -> str | None:
        """The counter to correct by `more` at `at`; None if it makes no difference any more.

        What was used beyond what was asked for counts now; what was not used goes back to its own minute.
        """
        now, then = int(at // PERIOD), int(self.at // PERIOD)
        return f"{kind}/{self.name}/{now if more > 0 else then}" if more > 0 or then >= now - 1 else None


class Taken(Struct, frozen=True):
    """Whether it was taken. `room`: it was not for the requests in flight. `counts`: for each ask what was used before,
    in the last minute and in this one.
    """

    taken: bool
    room: bool
    counts: Sequence[tuple[int, int]]


class Standing(Struct, frozen=True):
    """How a key stands against one limit. Times in seconds from now."""

    limit: int
    remaining: int
    reset: float  # until nothing of it is used any more
    wait: float  # until what was asked for fits; 0 when it does


def fits(previous: int, current: int, ask: Ask, share: float) -> bool:
    """Whether what is asked for fits after `current` in this minute and `previous` in the last."""
    return previous * share + current + ask.cost <= ask.limit + _ROUNDING


def standing(counts: tuple[int, int], ask: Ask, at: float, taken: bool) -> Standing:
    """How a key stands at Unix time `at`, what was asked for `taken` or not; `counts` as in Taken."""
    (previous, current), into = counts, at % PERIOD
    share = 1 - into / PERIOD
    wait = 0.0 if fits(previous, current, ask, share) else _wait(previous, current, ask.limit - ask.cost, into)
    current += ask.cost if taken else 0
    reset = 2 * PERIOD - into if current > 0 else PERIOD - into if previous > 0 else 0.0
    remaining = max(0, math.floor(ask.limit - previous * share - current + _ROUNDING))
    return Standing(ask.limit, remaining, reset, wait)


def _wait(previous: int, current: int, room: int, into: float) -> float:
    """Seconds until what is used has come down to `room`."""
    if current <= room:  # as soon as enough of the last minute has gone by
        return PERIOD * (1 - (room - current) / previous) - into
    return PERIOD - into + PERIOD * (1 - room / current)


class Ledger(Protocol):
    """Where it is written down."""

    async def take(self, want: Want) -> Taken:
        """Everything or nothing."""

    def end(self, want: Want) -> bool:
        """The request is no longer in flight (or never was). Whether `settle` is needed to make that known."""

    async def settle(self, want: Want, more: int, at: float) -> None:
        """Correct the tokens by `more`, and make `end` known."""


class OwnStore(MemoryStorage):
    """Counters of this process."""

    async def sweep(self) -> None:
        """Drop counters that have run out."""
        for key in list(self.expirations):
            await self.get(key)


class OwnLedger:
    """Of this process; it ends with it. Nothing here waits, so nothing comes in between."""

    def __init__(self) -> None:
        self.store = OwnStore()
        self._held: dict[str, set[str]] = {}

    async def take(self, want: Want) -> Taken:
        room = want.concurrency is None or len(self._held.get(want.name, ())) < want.concurrency
        taken, counts, get = room, [], self.store.get
        for ask in want.asks:
            now, before = want.counters(ask)
            counts.append((await get(before), await get(now)))
            taken = taken and fits(*counts[-1], ask, want.share)
        if taken:
            if want.concurrency is not None:
                self._held.setdefault(want.name, set()).add(want.request)
            for ask in want.asks:
                await self.store.incr(want.counters(ask)[0], KEPT, ask.cost)
        return Taken(taken, room, counts)

    def end(self, want: Want) -> bool:
        discard(self._held, want)
        return False

    async def settle(self, want: Want, more: int, at: float) -> None:
        await correct(self.store, want, more, at)


async def correct(store: Storage, want: Want, more: int, at: float) -> None:
    """Correct the tokens that were asked for by `more`."""
    key = want.corrected("tpm", more, at) if more else None
    if key is not None:
        await store.incr(key, KEPT, more)


def discard(held: dict[str, set[str]], want: Want) -> None:
    """Take a request out of those in flight, by key name, if it is among them."""
    requests = held.get(want.name, set())
    requests.discard(want.request)
    if not requests:
        held.pop(want.name, None)
