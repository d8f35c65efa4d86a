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
from collections.abc import Callable, Coroutine
from typing import Any, Final

from gateway.log.exchange import RawExchange
from gateway.protocol import sse
from gateway.protocol.errors import RateLimited
from gateway.serving.keyfile import Limits
from gateway.serving.ledger import PERIOD, Ledger, OwnLeases, OwnStore, SharedStore, Standing

PATIENCE: Final = 0.25  # seconds that a request waits for the shared store, at most
BYTES_PER_TOKEN: Final = 4  # of a request's body: English is below it, Chinese at it, JSON's own marks make up for some
_LOOK: Final = 1.0  # seconds between looks at a store that is away
_log = logging.getLogger("tempera.limits")


class Limiter:
    """Counts for all keys of this process. `url` of a store that replicas share; `lease` in seconds.

    Raises ValueError for a URL that cannot be used.
    """

    def __init__(self, url: str | None = None, lease: float = 60.0, clock: Callable[[], float] = time.time) -> None:
        self._own = OwnStore()
        self._here = Ledger(self._own, OwnLeases())
        self._shared = None if url is None else SharedStore(url, lease, PATIENCE)
        self._lease, self.clock = lease, clock
        self._later: set[asyncio.Task[None]] = set()
        self.trouble: str | None = None  # why the limits hold for this process only

    async def ask(self, stay: Stay) -> None:
        """Let a request in, in the shared store or, if that is away, here. Raises RateLimited."""
        shared = self._shared
        if shared is not None and self.trouble is None:
            try:
                async with asyncio.timeout(PATIENCE):
                    return await stay.take(shared.ledger)
            except shared.faults as error:
                self._lose(error)
                self.later(shared.leases.give(stay.name, stay.request))  # it may have been taken all the same
        return await stay.take(self._here)

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Do what a request that has ended need not wait for."""
        task = asyncio.get_running_loop().create_task(self._do(work))
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    async def _do(self, work: Coroutine[Any, Any, None]) -> None:
        if self._shared is None:
            return await work
        try:
            async with asyncio.timeout(PATIENCE):
                await work
        except self._shared.faults as error:
            self._lose(error)

    async def watch(self) -> None:
        """Renew leases, look for a store that is away, forget old counters; for as long as the gateway runs."""
        # The storage would look through all its counters whenever one is raised, if this were not its sweeper.
        self._own.timer = asyncio.current_task()
        shared = self._shared
        swept = held = time.monotonic()
        while True:
            await asyncio.sleep(min(_LOOK, self._lease / 3))
            now = time.monotonic()
            if now - swept > PERIOD:
                swept = now
                await self._own.sweep()
            if shared is None or (self.trouble is None and now - held < self._lease / 3):
                continue
            try:
                async with asyncio.timeout(PATIENCE):
                    await shared.ping()
                    await shared.leases.hold()
            except shared.faults as error:
                self._lose(error)
            else:
                held = now
                self._regain()

    async def close(self) -> None:
        """Finish what was left for later, and hang up."""
        await asyncio.gather(*self._later)
        if self._shared is not None:
            await self._shared.close()

    def _lose(self, error: Exception) -> None:
        if self.trouble is None:
            self.trouble = f"held by each replica alone: the shared store is away ({type(error).__name__})"
            _log.error("limits are %s: %s", self.trouble, error)

    def _regain(self) -> None:
        if self.trouble is not None:
            self.trouble = None
            _log.warning("the shared store for limits is back")


class Stay:
    """What one request takes of its key's limits. `told` are reply headers, once `enter` has returned or raised."""

    __slots__ = ("_at", "_leased", "_ledger", "_limiter", "_limits", "_reserved", "name", "prompt", "request", "told")

    def __init__(self, limiter: Limiter, request: str, name: str, limits: Limits, size: int) -> None:
        """`request` is the exchange's id, `name` the key's, `size` the body's in bytes."""
        self._limiter, self.request, self.name, self._limits = limiter, request, name, limits
        self.prompt = max(1, -(-size // BYTES_PER_TOKEN))
        self.told: tuple[tuple[bytes, bytes], ...] = ()
        self._ledger: Ledger | None = None
        self._leased = False
        self._reserved = 0
        self._at = limiter.clock()

    async def enter(self) -> None:
        """Raises RateLimited. `leave` is due whatever happens, even if this is cancelled."""
        await self._limiter.ask(self)

    async def take(self, ledger: Ledger) -> None:
        """Take everything from one ledger; what a refusal leaves taken is given back by `leave`."""
        self._ledger, self.told, self._reserved = ledger, (), 0
        limits, name, at = self._limits, self.name, self._at
        if limits.concurrency is not None:
            self._leased = True  # even if nobody waits for the answer
            if not await ledger.leases.take(name, self.request, limits.concurrency):
                self._leased = False
                raise RateLimited(
                    f"Key {name!r} has {limits.concurrency} requests in flight, as many as it may. "
                    "Please try again when one has ended.",
                    retry_after=1,
                )
        if limits.tpm is not None:
            cost = min(self.prompt, limits.tpm)  # a prompt beyond the limit may pass when nothing else was used
            found = await ledger.take("tpm", name, cost, limits.tpm, at)
            self._tell(b"tokens", found)
            self._reserved = cost
        if limits.rpm is not None:
            self._tell(b"requests", await ledger.take("rpm", name, 1, limits.rpm, at))

    def _tell(self, kind: bytes, found: Standing) -> None:
        self.told += (
            (b"x-ratelimit-limit-" + kind, b"%d" % found.limit),
            (b"x-ratelimit-remaining-" + kind, b"%d" % found.remaining),
            (b"x-ratelimit-reset-" + kind, duration(found.reset)),
        )
        if found.wait:
            raise RateLimited(
                f"Key {self.name!r} may use {found.limit} {kind.decode()} per minute, and {found.remaining} are left. "
                f"Please try again in {duration(found.wait).decode()}.",
                retry_after=found.wait,
            )

    def leave(self, exchange: RawExchange) -> None:
        """The exchange is over: end the lease and settle the tokens."""
        if self._ledger is not None and (self._leased or self._reserved):
            more = spent(exchange, self.prompt) - self._reserved if self._reserved else 0
            self._limiter.later(self._end(self._ledger, more))

    async def _end(self, ledger: Ledger, more: int) -> None:
        if self._leased:
            await ledger.leases.give(self.name, self.request)
        await ledger.settle("tpm", self.name, more, self._at, self._limiter.clock())


def spent(exchange: RawExchange, prompt: int) -> int:
    """The tokens of an exchange whose prompt was estimated at `prompt`: the engine's count, if it gave one."""
    if exchange.status >= 400:
        return 0
    body = b"".join(exchange.reply)
    if exchange.stream:  # only the events that matter, at the beginning (messages) and the end
        body = b"\n\n".join(event for event in body.split(b"\n\n") if b'"usage"' in event)
    usage = sse.assemble(body, exchange.stream).usage or {}
    found = usage.get("total_tokens")
    if not isinstance(found, int):
        parts = [usage.get(name) for name in ("input_tokens", "output_tokens")]
        found = sum(part for part in parts if isinstance(part, int))
    # A stream that was left or broke off: about one token per piece.
    return found or prompt + exchange.pieces


def duration(seconds: float) -> bytes:
    """As OpenAI writes it, in whole seconds, rounded up: `0s`, `59s`, `1m0s`."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    return b"%dm%ds" % (minutes, rest) if minutes else b"%ds" % rest
