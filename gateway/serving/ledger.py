"""What keys have used, by the minute and in flight, and whether what a request asks for still fits.

One counter per key and minute. What is in force slides: the last minute counts by the share of it that is less than 60
seconds ago, so no burst fits around a full minute. Everything a request asks for is taken together or not at all.

Knows names and numbers; nothing about requests or replies. The ledger of several workers is in shared_limits.py, the
one that replicas share in shared.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Protocol

PERIOD: Final = 60  # seconds
KEPT: Final = 3 * PERIOD  # seconds; a counter matters during its own minute and the next
_ROUNDING: Final = 1e-9


class Ask:
    """`cost`, in [1, limit], of a limit per minute."""

    def __init__(self, kind: str, cost: int, limit: int) -> None:
        self.kind, self.cost, self.limit = kind, cost, limit


class Want:
    """What one request asks for at Unix time `at`. `name` is the key's, `request` an id; `concurrency` its limit."""

    def __init__(self, name: str, request: str, at: float, concurrency: int | None, asks: Sequence[Ask]) -> None:
        self.name, self.request, self.at, self.concurrency, self.asks = name, request, at, concurrency, asks
        self.minute = int(at // PERIOD)

    def counter(self, kind: str, minute: int) -> str:
        """The name of a counter."""
        return f"{kind}/{self.name}/{minute}"

    def counters(self, ask: Ask) -> tuple[str, str]:
        """The names of the counters of this minute and of the one before."""
        return self.counter(ask.kind, self.minute), self.counter(ask.kind, self.minute - 1)

    @property
    def share(self) -> float:
        """How much of the last minute still counts."""
        return 1 - self.at % PERIOD / PERIOD

    def corrected(self, more: int, at: float) -> int | None:
        """The minute whose counter is to be corrected by `more` at `at`; None if it makes no difference any more.

        What was used beyond what was asked for counts now; what was not used goes back to its own minute.
        """
        now = int(at // PERIOD)
        return now if more > 0 else self.minute if more and self.minute >= now - 1 else None


class Taken:
    """Whether it was taken. `room`: it was not for the requests in flight. `counts`: for each ask what was used before,
    in the last minute and in this one.
    """

    def __init__(self, taken: bool, room: bool, counts: Sequence[tuple[int, int]]) -> None:
        self.taken, self.room, self.counts = taken, room, counts


class Standing:
    """How a key stands against one limit. Times in seconds from now: `reset` until nothing of it is used any more,
    `wait` until what was asked for fits, 0 when it does.
    """

    def __init__(self, limit: int, remaining: int, reset: float, wait: float) -> None:
        self.limit, self.remaining, self.reset, self.wait = limit, remaining, reset, wait


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
    """Where it is written down, on this machine: nothing here waits, so nothing comes in between."""

    def take(self, want: Want) -> Taken:
        """Everything or nothing."""

    def end(self, want: Want) -> None:
        """The request is no longer in flight (or never was)."""

    def settle(self, want: Want, more: int, at: float) -> None:
        """Correct the tokens that were asked for by `more`."""


class OwnLedger:
    """Of this process; it ends with it."""

    def __init__(self) -> None:
        self._minutes: dict[int, dict[str, int]] = {}
        self._held: dict[str, set[str]] = {}

    def take(self, want: Want) -> Taken:
        room = want.concurrency is None or len(self._held.get(want.name, ())) < want.concurrency
        now, before, share = self._minute(want.minute), self._minutes.get(want.minute - 1), want.share
        taken, names, counts = room, list[str](), list[tuple[int, int]]()
        for ask in want.asks:
            name = f"{ask.kind}/{want.name}"
            previous, current = 0 if before is None else before.get(name, 0), now.get(name, 0)
            taken = taken and fits(previous, current, ask, share)
            names.append(name)
            counts.append((previous, current))
        if taken:
            if want.concurrency is not None:
                self._held.setdefault(want.name, set()).add(want.request)
            for name, ask in zip(names, want.asks, strict=True):
                now[name] = now.get(name, 0) + ask.cost
        return Taken(taken, room, counts)

    def end(self, want: Want) -> None:
        discard(self._held, want)

    def settle(self, want: Want, more: int, at: float) -> None:
        minute = want.corrected(more, at)
        if minute is not None:
            used, name = self._minute(minute), f"tpm/{want.name}"
            used[name] = max(0, used.get(name, 0) + more)

    def _minute(self, minute: int) -> dict[str, int]:
        """The counters of a minute. When one begins, those that do not count any more are forgotten."""
        found = self._minutes.get(minute)
        if found is None:
            self._minutes = {number: used for number, used in self._minutes.items() if number >= minute - 1}
            found = self._minutes[minute] = {}
        return found


def discard(held: dict[str, set[str]], want: Want) -> None:
    """Take a request out of those in flight, by key name, if it is among them."""
    requests = held.get(want.name)
    if requests is not None:
        requests.discard(want.request)
        if not requests:
            del held[want.name]
