"""Holding keys to their limits: requests and tokens per minute, requests in flight.

Tokens are taken as an estimate of the prompt and settled when the exchange ends, with what the engine says it used.
With a shared store the limits hold across replicas; while it is away each replica holds them by itself (never an error
or a long wait for a client), which is logged once and said in /readyz.

Knows what an exchange says of itself; nothing about keys' files, HTTP or presets.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from typing import Final

from gateway.log.exchange import RawExchange
from gateway.protocol.assembled import assemble
from gateway.protocol.errors import RateLimited
from gateway.serving.keyfile import Limits
from gateway.serving.ledger import PERIOD, Ask, Ledger, OwnLedger, Standing, Taken, Want, standing
from gateway.serving.shared import SharedLedger

PATIENCE: Final = 0.25  # seconds that a request waits for the shared ledger, at most
BYTES_PER_TOKEN: Final = 4  # of a request's body: English is below it, Chinese at it, JSON's own marks make up for some
_TIMEOUT: Final = 2.0  # seconds for what nobody waits for
_LOOK: Final = 1.0  # seconds between looks at a ledger that is away
_log = logging.getLogger("tempera.limits")


class Limiter:
    """Counts for all keys of this process, or of all workers that share `here`. `url` of a store that replicas share;
    `lease` in seconds.

    Raises ValueError for a URL that cannot be used.
    """

    def __init__(
        self,
        url: str | None = None,
        lease: float = 60.0,
        clock: Callable[[], float] = time.time,
        here: Ledger | None = None,
    ) -> None:
        self._own = OwnLedger()
        self._here: Ledger = self._own if here is None else here
        self._shared = None if url is None else SharedLedger(url, lease, _TIMEOUT)
        self._faults = () if self._shared is None else self._shared.faults
        self._lease, self.clock = lease, clock
        self._doubt: Exception | None = None  # why the shared ledger is not asked until it has answered a ping
        self._look = asyncio.Event()
        self._later: set[asyncio.Task[None]] = set()
        self.trouble: str | None = None  # why the limits hold for this process only
        self.alone = 0  # requests counted here although there is a shared ledger

    async def take(self, stay: Stay) -> Taken:
        """Ask the shared ledger or, while it is away, our own."""
        shared = self._shared
        if shared is not None and self._doubt is None:
            stay.ledger = shared
            try:
                async with asyncio.timeout(PATIENCE):
                    return await shared.take(stay.want)
            except self._faults as error:
                shared.end(stay.want)  # it may have been taken all the same
                self._suspect(error)
        self.alone += shared is not None
        stay.ledger = self._here
        return await self._here.take(stay.want)

    def leave(self, stay: Stay, more: int) -> None:
        """A request that took something is over; `more` tokens than it took were used."""
        assert stay.ledger is not None
        if stay.ledger.end(stay.want) or more:
            task = asyncio.get_running_loop().create_task(self._settle(stay.ledger, stay.want, more))
            self._later.add(task)
            task.add_done_callback(self._later.discard)

    async def _settle(self, ledger: Ledger, want: Want, more: int) -> None:
        try:
            async with asyncio.timeout(_TIMEOUT):
                await ledger.settle(want, more, self.clock())
        except self._faults as error:
            self._suspect(error)

    async def watch(self) -> None:
        """Renew leases, look for a ledger that is away, forget old counters; for as long as the gateway runs."""
        # The storage would look through all its counters whenever one is raised, if this were not its sweeper.
        self._own.store.timer = asyncio.current_task()
        swept = held = time.monotonic()
        while True:
            try:
                async with asyncio.timeout(min(_LOOK, self._lease / 3)):
                    await self._look.wait()
            except TimeoutError:
                pass
            now = time.monotonic()
            if now - swept > PERIOD:
                swept = now
                await self._own.store.sweep()
            if self._shared is not None and (self._doubt is not None or now - held > self._lease / 3):
                held = now
                await self._tend(self._shared)
                self._look.clear()

    async def _tend(self, shared: SharedLedger) -> None:
        try:
            async with asyncio.timeout(_TIMEOUT):
                await shared.ping()
                await shared.hold()
        except self._faults as error:
            self._doubt = error
            if self.trouble is None:
                self.trouble = f"held by each replica alone: the shared store is away ({type(error).__name__})"
                _log.error("limits are %s: %s", self.trouble, error)
        else:
            self._doubt = None
            if self.trouble is not None:
                self.trouble = None
                _log.warning("the shared store for limits is back")

    def _suspect(self, error: Exception) -> None:
        """It was us, or it is away: go on alone, and look at once. A rush that makes us slow is not said anywhere."""
        if self._doubt is None:
            self._doubt = error
            self._look.set()

    async def close(self) -> None:
        """Finish what was left for later, and hang up."""
        await asyncio.gather(*self._later)
        if self._shared is not None:
            await self._shared.close()


class Stay:
    """What one request takes of its key's limits. `told` are reply headers, once `enter` has returned or raised."""

    __slots__ = ("_limiter", "_prompt", "_refused", "_reserved", "ledger", "told", "want")

    def __init__(self, limiter: Limiter, request: str, name: str, limits: Limits, size: int) -> None:
        """`request` is the exchange's id, `name` the key's, `size` the body's in bytes."""
        self._limiter = limiter
        self._prompt = max(1, -(-size // BYTES_PER_TOKEN))
        self._reserved = 0
        self._refused = False
        asks = []
        if limits.rpm is not None:
            asks.append(Ask("rpm", 1, limits.rpm))
        if limits.tpm is not None:  # a prompt beyond the limit may pass when nothing else was used
            asks.append(Ask("tpm", min(self._prompt, limits.tpm), limits.tpm))
        self.want = Want(name, request, limiter.clock(), limits.concurrency, asks)
        self.ledger: Ledger | None = None
        self.told: tuple[tuple[bytes, bytes], ...] = ()

    async def enter(self) -> None:
        """Raises RateLimited. `leave` is due whatever happens, even if this is cancelled."""
        want = self.want
        found = await self._limiter.take(self)
        self._refused = not found.taken
        longest: tuple[Standing, Ask] | None = None
        for ask, counts in zip(want.asks, found.counts, strict=True):
            stands = standing(counts, ask, want.at, found.taken)
            self.told += _headers(ask.kind, stands)
            if stands.wait and (longest is None or stands.wait > longest[0].wait):
                longest = stands, ask
            if ask.kind == "tpm" and found.taken:
                self._reserved = ask.cost
        if not found.room:
            raise RateLimited(
                f"Key {want.name!r} has as many requests in flight as it may: {want.concurrency}. "
                "Please try again when one has ended.",
                retry_after=1,
            )
        if longest is not None:
            stands, ask = longest
            raise RateLimited(
                f"Key {want.name!r} may use {stands.limit} {_KINDS[ask.kind]} per minute, and {stands.remaining} are "
                f"left. Please try again in {duration(stands.wait)}.",
                retry_after=stands.wait,
            )

    def leave(self, exchange: RawExchange) -> None:
        """The exchange is over: it is no longer in flight, and its tokens are settled."""
        if self.ledger is not None and not self._refused:
            self._limiter.leave(self, spent(exchange, self._prompt) - self._reserved if self._reserved else 0)


_KINDS: Final = {"rpm": "requests", "tpm": "tokens"}
_NAMES: Final = {
    kind: tuple(f"x-ratelimit-{what}-{of}".encode() for what in ("limit", "remaining", "reset"))
    for kind, of in _KINDS.items()
}


def _headers(kind: str, stands: Standing) -> tuple[tuple[bytes, bytes], ...]:
    limit, remaining, reset = _NAMES[kind]
    told = duration(stands.reset).encode()
    return (limit, b"%d" % stands.limit), (remaining, b"%d" % stands.remaining), (reset, told)


def spent(exchange: RawExchange, prompt: int) -> int:
    """The tokens of an exchange whose prompt was estimated at `prompt`: the engine's count, if it gave one."""
    if exchange.status >= 400:
        return 0
    body = b"".join(exchange.reply)
    if exchange.stream:  # only the events that matter, at the beginning (messages) and the end
        body = b"\n\n".join(event for event in body.split(b"\n\n") if b'"usage"' in event)
    usage = assemble(body, exchange.stream).usage or {}
    found = usage.get("total_tokens")
    if not isinstance(found, int):
        parts = [usage.get(name) for name in ("input_tokens", "output_tokens")]
        found = sum(part for part in parts if isinstance(part, int))
    # A stream that was left or broke off: about one token per piece.
    return found or prompt + exchange.pieces


def duration(seconds: float) -> str:
    """As OpenAI writes it, in whole seconds, rounded up: `0s`, `59s`, `1m0s`."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
