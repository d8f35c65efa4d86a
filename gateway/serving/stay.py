"""What one request takes of its key's limits: requests and tokens per minute, a place in flight.

Tokens are taken as an estimate of the prompt and settled when the exchange ends, with what the engine says it used.
Knows what an exchange says of itself, and how limits are told to clients; nothing about keys' files, presets or where
it is counted.
"""

from __future__ import annotations

import math
from typing import Final

from gateway.log.exchange import RawExchange
from gateway.protocol.assembled import read_usage
from gateway.protocol.errors import RateLimited
from gateway.serving.keyfile import Limits
from gateway.serving.ledger import PERIOD, Ask, Standing, Want, standing
from gateway.serving.limits import Limiter

_MOST: Final = 2**31  # tokens of one exchange; an engine that counts more, or less than none, has not counted
BYTES_PER_TOKEN: Final = 4  # of a request's body: English is below it, Chinese at it, JSON's own marks make up for some


class Stay:
    """One request's. `told` are reply headers, once `enter` has returned or raised."""

    def __init__(self, limiter: Limiter, request: str, name: str, limits: Limits, size: int) -> None:
        """`request` is the exchange's id, `name` the key's, `size` the body's in bytes."""
        self._limiter = limiter
        self._prompt = max(1, -(-size // BYTES_PER_TOKEN))
        self._reserved = 0
        self._refused = False
        asks: list[Ask] = []
        if limits.rpm is not None:
            asks.append(Ask("rpm", 1, limits.rpm))
        if limits.tpm is not None:  # a prompt beyond the limit may pass when nothing else was used
            asks.append(Ask("tpm", min(self._prompt, limits.tpm), limits.tpm))
        self.want = Want(name, request, limiter.clock(), limits.concurrency, asks)
        self.asked = self.shared = False  # whether a ledger was asked, and whether it was the shared one
        self.told = b""

    async def enter(self) -> None:
        """Raises RateLimited. `leave` is due whatever happens, even if this is cancelled."""
        want, limiter = self.want, self._limiter
        self.asked = True
        found = limiter.here.take(want) if limiter.shared is None else await limiter.take(self)
        self._refused = not found.taken
        longest: Standing | None = None
        short: Ask | None = None
        for ask, counts in zip(want.asks, found.counts, strict=True):
            stands = standing(counts, ask, want.at, found.taken)
            self.told += _HEADERS[ask.kind] % (stands.limit, stands.remaining, _DURATIONS[math.ceil(stands.reset)])
            if stands.wait and (longest is None or stands.wait > longest.wait):
                longest, short = stands, ask
            if ask.kind == "tpm" and found.taken:
                self._reserved = ask.cost
        if not found.room:
            raise RateLimited(
                f"Key {want.name!r} has as many requests in flight as it may: {want.concurrency}. "
                "Please try again when one has ended.",
                retry_after=1,
            )
        if longest is not None and short is not None:
            raise RateLimited(
                f"Key {want.name!r} may use {longest.limit} {_KINDS[short.kind]} per minute, and {longest.remaining} "
                f"are left. Please try again in {duration(longest.wait)}.",
                retry_after=longest.wait,
            )

    def leave(self, exchange: RawExchange) -> None:
        """The exchange is over: it is no longer in flight, and its tokens are settled."""
        if self.asked and not self._refused:
            self._limiter.leave(self, spent(exchange, self._prompt) - self._reserved if self._reserved else 0)


def spent(exchange: RawExchange, prompt: int) -> int:
    """The tokens of an exchange whose prompt was estimated at `prompt`: the engine's count, if it gave one."""
    if exchange.status >= 400:
        return 0
    body = b"".join(exchange.reply)
    if exchange.stream:  # only the events that matter, at the beginning (messages) and the end
        body = b"\n\n".join([event for event in body.split(b"\n\n") if b'"usage"' in event])
    usage = read_usage(body, exchange.stream)
    found = usage.get("total_tokens")
    if not isinstance(found, int):
        parts = [usage.get(name) for name in ("input_tokens", "output_tokens")]
        found = sum([part for part in parts if isinstance(part, int)])
    # A stream that was left or broke off: about one token per piece.
    return found if 0 < found <= _MOST else prompt + exchange.pieces


def duration(seconds: float) -> str:
    """As OpenAI writes it, in whole seconds, rounded up: `0s`, `59s`, `1m0s`."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


_KINDS: Final = {"rpm": "requests", "tpm": "tokens"}
_HEADERS: Final = {
    kind: f"x-ratelimit-limit-{of}: %d\r\nx-ratelimit-remaining-{of}: %d\r\nx-ratelimit-reset-{of}: %b\r\n".encode()
    for kind, of in _KINDS.items()
}
_DURATIONS: Final = [duration(seconds).encode() for seconds in range(2 * PERIOD + 1)]
