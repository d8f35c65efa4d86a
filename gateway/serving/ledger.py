"""What keys have used, by the minute and in flight: in this process, or in a Redis that replicas share.

The counters are those of `limits`' storages, one per key and minute. What is in force slides: the last minute counts by
the share of it that is less than 60 seconds ago, so no burst fits around a full minute. Its own sliding window is not
used because tokens have to be given back to the minute they were taken from. Requests in flight are leases: those of a
replica that was killed run out. Knows names and numbers; nothing about requests, replies or when a store is away.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

from limits.aio.storage import MemoryStorage, RedisStorage, Storage
from limits.errors import ConfigurationError
from msgspec import Struct

PERIOD: Final = 60  # seconds
_KEPT: Final = 3 * PERIOD  # seconds; a counter matters during its own minute and the next
_ROUNDING: Final = 1e-9
_SCHEMES: Final = {"redis": "redis", "rediss": "rediss", "valkey": "redis", "valkeys": "rediss"}
_CONNECTIONS: Final = 64


class Standing(Struct, frozen=True):
    """How a key stands against one limit. Times in seconds from now."""

    limit: int
    remaining: int
    reset: float  # until nothing of it is used any more
    wait: float  # until what was asked for fits; 0 when it was taken


def standing(previous: int, current: int, cost: int, limit: int, at: float) -> Standing:
    """How `cost` more, in [1, limit], stands against `limit` per minute at Unix time `at`.

    `current` were used in this minute, and `previous` in the one before.
    """
    into = at % PERIOD
    used = previous * (1 - into / PERIOD) + current
    fits = used + cost <= limit + _ROUNDING
    taken = current + cost if fits else current
    reset = 2 * PERIOD - into if taken > 0 else PERIOD - into if previous > 0 else 0.0
    remaining = max(0, int(limit - used - (cost if fits else 0)))
    return Standing(limit, remaining, reset, 0.0 if fits else _wait(previous, current, limit - cost, into))


def _wait(previous: int, current: int, room: int, into: float) -> float:
    """Seconds until what is used has come down to `room`."""
    if current <= room:  # as soon as enough of the last minute has gone by
        return PERIOD * (1 - (room - current) / previous) - into
    return PERIOD - into + PERIOD * (1 - room / current)


class Leases(Protocol):
    """Requests in flight, by key name and request id."""

    async def take(self, name: str, request: str, limit: int) -> bool:
        """Whether there was room for one more."""

    async def give(self, name: str, request: str) -> None:
        """It has ended; nothing happens if it was never taken."""


class Ledger:
    """The counters of one storage, and the leases beside it."""

    def __init__(self, storage: Storage, leases: Leases) -> None:
        self._storage, self.leases = storage, leases

    async def take(self, kind: str, name: str, cost: int, limit: int, at: float) -> Standing:
        """Count `cost` if it fits; look at the result's `wait`."""
        minute = int(at // PERIOD)
        key = f"{kind}/{name}/{minute}"
        # Counted first and taken back if it does not fit: two at the same moment never pass together.
        current = await self._storage.incr(key, _KEPT, cost) - cost
        previous = await self._storage.get(f"{kind}/{name}/{minute - 1}")
        found = standing(previous, current, cost, limit, at)
        if found.wait:
            await self._storage.incr(key, _KEPT, -cost)
        return found

    async def settle(self, kind: str, name: str, more: int, taken_at: float, at: float) -> None:
        """Correct what was taken at `taken_at`.

        What was used beyond it counts now; what was not used goes back to its minute, if that still counts.
        """
        minute, then = int(at // PERIOD), int(taken_at // PERIOD)
        if more > 0 or (more < 0 and then >= minute - 1):
            await self._storage.incr(f"{kind}/{name}/{minute if more > 0 else then}", _KEPT, more)


class OwnLeases:
    """Leases of this process; they end with it."""

    def __init__(self) -> None:
        self._held: dict[str, set[str]] = {}

    async def take(self, name: str, request: str, limit: int) -> bool:
        held = self._held.setdefault(name, set())
        if len(held) >= limit:
            return False
        held.add(request)
        return True

    async def give(self, name: str, request: str) -> None:
        held = self._held.get(name, set())
        held.discard(request)
        if not held:
            self._held.pop(name, None)


# A sorted set per key name, request ids by when their lease ends, on the store's own clock.
_NOW: Final = "local t = redis.call('TIME'); local now = t[1] + t[2] / 1000000 "
_TAKE: Final = (
    _NOW
    + """
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[1]) then return 0 end
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[3])
redis.call('EXPIRE', KEYS[1], math.ceil(ARGV[2]) + 1)
return 1"""
)
_HOLD: Final = (
    _NOW
    + """
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], now + ARGV[1], ARGV[i]) end
redis.call('EXPIRE', KEYS[1], math.ceil(ARGV[1]) + 1)"""
)


class SharedLeases(OwnLeases):
    """Leases of all replicas, in Redis. Each ends `seconds` after it was taken or last held."""

    def __init__(self, client: Any, seconds: float) -> None:
        super().__init__()
        self._client, self._seconds = client, seconds
        self._take, self._hold = client.register_script(_TAKE), client.register_script(_HOLD)

    async def take(self, name: str, request: str, limit: int) -> bool:
        taken = bool(await self._take(keys=[_place(name)], args=[limit, self._seconds, request]))
        return taken and await super().take(name, request, limit)

    async def give(self, name: str, request: str) -> None:
        await super().give(name, request)
        await self._client.zrem(_place(name), request)

    async def hold(self) -> None:
        """Renew what this process holds; also brings it back after the store lost it."""
        for name, held in list(self._held.items()):
            await self._hold(keys=[_place(name)], args=[self._seconds, *held])


def _place(name: str) -> str:
    return f"tempera:leases/{name}"


class OwnStore(MemoryStorage):
    """Counters of this process."""

    async def sweep(self) -> None:
        """Drop counters that have run out."""
        for key in list(self.expirations):
            await self.get(key)


class SharedStore:
    """The way to a Redis or Valkey that replicas share.

    Raises ValueError for an address that cannot be used, or without the package `redis`. Nothing is connected yet.
    """

    def __init__(self, url: str, lease: float, timeout: float) -> None:
        scheme, _, rest = url.partition("://")
        if not rest or scheme not in _SCHEMES:  # the address itself may hold a password
            raise ValueError(f"TEMPERA_LIMITS_URL must be {'://, '.join(_SCHEMES)}:// and then host:port")
        address = f"{_SCHEMES[scheme]}://{rest}"
        try:
            from redis import asyncio as redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError:
            raise ValueError("TEMPERA_LIMITS_URL needs the package redis: install tempera-gateway[redis]") from None
        # Once more at once, for a connection that the store has closed meanwhile; who waits is bounded elsewhere.
        self._pool = redis.BlockingConnectionPool.from_url(
            address,
            max_connections=_CONNECTIONS,
            timeout=timeout,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 1),
        )
        try:
            options: Any = {"connection_pool": self._pool}  # its annotation forgets this one
            storage = RedisStorage(f"async+{address}", implementation="redispy", key_prefix="tempera", **options)
        except ConfigurationError:
            raise ValueError("TEMPERA_LIMITS_URL must look like redis://host:6379/0") from None
        client: Any = redis.Redis(connection_pool=self._pool)
        self.leases = SharedLeases(client, lease)
        self.ledger = Ledger(storage, self.leases)
        self.ping = client.ping
        self.faults: tuple[type[Exception], ...] = (redis.RedisError, OSError, TimeoutError)

    async def close(self) -> None:
        """Hang up."""
        await self._pool.disconnect()
