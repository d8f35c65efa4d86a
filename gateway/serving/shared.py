"""The ledger that replicas share, in a Redis or Valkey.

The counters are `limits`' own there; what a request asks for is looked at and taken by one script, since five commands
cost this process five times as much and let others in between. Requests in flight are leases: those of a replica that
was killed run out. Knows the store; nothing about what to do while it is away.
"""

from __future__ import annotations

from typing import Any, Final

from limits.aio.storage import RedisStorage
from limits.errors import ConfigurationError

from gateway.serving.ledger import KEPT, Taken, Want, discard

_SCHEMES: Final = {"redis": "redis", "rediss": "rediss", "valkey": "redis", "valkeys": "rediss"}
_CONNECTIONS: Final = 64
_PREFIX: Final = "tempera"
# In flight: a sorted set per key name, request ids by when their lease ends, on the store's own clock.
_NOW: Final = "local t = redis.call('TIME'); local now = t[1] + t[2] / 1000000\n"
# KEYS: the set, then for each ask the counters of this minute and of the last. ARGV: concurrency (0: any), lease,
# request, share, kept, then cost and limit for each ask.
_TAKE: Final = (
    _NOW
    + """
local most, fits, room, counts = tonumber(ARGV[1]), true, 1, {}
if most > 0 then
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
  if redis.call('ZCARD', KEYS[1]) >= most then fits, room = false, 0 end
end
for i = 2, #KEYS, 2 do
  local current, previous = tonumber(redis.call('GET', KEYS[i]) or 0), tonumber(redis.call('GET', KEYS[i + 1]) or 0)
  counts[i - 1], counts[i] = previous, current
  if previous * ARGV[4] + current + ARGV[i + 4] > ARGV[i + 5] + 1e-9 then fits = false end
end
if fits then
  if most > 0 then
    redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[3])
    redis.call('EXPIRE', KEYS[1], math.ceil(ARGV[2]) + 1)
  end
  for i = 2, #KEYS, 2 do
    redis.call('INCRBY', KEYS[i], ARGV[i + 4])
    redis.call('EXPIRE', KEYS[i], ARGV[5])
  end
end
return {fits and 1 or 0, room, unpack(counts)}"""
)
_HOLD: Final = (
    _NOW
    + """
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], now + ARGV[1], ARGV[i]) end
redis.call('EXPIRE', KEYS[1], math.ceil(ARGV[1]) + 1)"""
)


class SharedLedger:
    """Of all replicas, in a Redis or Valkey. A lease ends `lease` seconds after it was taken or last held.

    Raises ValueError for an address that cannot be used, or without the package `redis`. Nothing is connected yet.
    """

    def __init__(self, url: str, lease: float, timeout: float) -> None:
        client = _client(url, timeout)
        options: Any = {"connection_pool": client.connection_pool}  # its annotation forgets this one
        try:
            self._store = RedisStorage(
                "async+" + _address(url), implementation="redispy", key_prefix=_PREFIX, **options
            )
        except ConfigurationError:
            raise ValueError("TEMPERA_LIMITS_URL must look like redis://host:6379/0") from None
        self.faults: tuple[type[Exception], ...] = (*_several(self._store.base_exceptions), OSError, TimeoutError)
        self._client, self._lease = client, lease
        self._take, self._hold = client.register_script(_TAKE), client.register_script(_HOLD)
        self._held: dict[str, set[str]] = {}
        self._ended: dict[str, set[str]] = {}  # what the store does not know yet

    async def take(self, want: Want) -> Taken:
        """Everything or nothing."""
        keys, amounts = [_leases(want.name)], list[int]()
        for ask in want.asks:
            keys += (f"{_PREFIX}:{key}" for key in want.counters(ask))
            amounts += (ask.cost, ask.limit)
        about = [want.concurrency or 0, self._lease, want.request, want.share, KEPT]
        taken, room, *counts = await self._take(keys=keys, args=[*about, *amounts])
        if taken and want.concurrency is not None:
            self._held.setdefault(want.name, set()).add(want.request)
        return Taken(bool(taken), bool(room), list(zip(counts[::2], counts[1::2], strict=True)))

    def end(self, want: Want) -> bool:
        """The request is no longer in flight (or never was). Whether `settle` is needed to make that known."""
        discard(self._held, want)
        if want.concurrency is not None:
            self._ended.setdefault(want.name, set()).add(want.request)
        return want.concurrency is not None

    async def settle(self, want: Want, more: int, at: float) -> None:
        """Correct the tokens that were asked for by `more`, and make `end` known."""
        await self._tell_ended(want.name)
        minute = want.corrected(more, at)
        if minute is not None:
            await self._store.incr(want.counter("tpm", minute), KEPT, more)

    async def hold(self) -> None:
        """Renew what this process holds, and end what has ended; also after the store was away or lost everything."""
        for name in list(self._ended):
            await self._tell_ended(name)
        for name, held in list(self._held.items()):
            await self._hold(keys=[_leases(name)], args=[self._lease, *held])

    async def _tell_ended(self, name: str) -> None:
        if told := set(self._ended.get(name, ())):
            await self._client.zrem(_leases(name), *told)
            if not (left := self._ended.pop(name, set()) - told):
                return
            self._ended[name] = left

    async def ping(self) -> None:
        """Raises one of `faults` when the store is away."""
        await self._client.ping()

    async def close(self) -> None:
        """Hang up."""
        await self._client.connection_pool.disconnect()


def _leases(name: str) -> str:
    return f"{_PREFIX}:leases/{name}"


def _address(url: str) -> str:
    scheme, _, rest = url.partition("://")
    if not rest or scheme not in _SCHEMES:  # the address itself may hold a password
        raise ValueError(f"TEMPERA_LIMITS_URL must be {'://, '.join(_SCHEMES)}:// and then host:port")
    return f"{_SCHEMES[scheme]}://{rest}"


def _client(url: str, timeout: float) -> Any:
    address = _address(url)
    try:
        from redis import asyncio as redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError:
        raise ValueError("TEMPERA_LIMITS_URL needs the package redis: install tempera-gateway[redis]") from None
    pool = redis.BlockingConnectionPool.from_url(
        address,
        max_connections=_CONNECTIONS,
        timeout=timeout,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        retry=Retry(NoBackoff(), 1),  # once more at once, for a connection that the store has closed meanwhile
    )
    return redis.Redis(connection_pool=pool)


def _several(found: type[Exception] | tuple[type[Exception], ...]) -> tuple[type[Exception], ...]:
    return found if isinstance(found, tuple) else (found,)
