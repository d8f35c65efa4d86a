"""The counters behind the keys' limits for several workers of one machine, in memory that they share.

One table in a file without a name, mapped by every worker: rows found by the hash of their name, changed under a lock
of the file, which the kernel takes from a process that dies. A few microseconds, and no process in the middle: asking
one would cost each request two wake-ups. Rows that have run out are used again; when a bucket holds none, the one that
runs out first is forgotten, which takes some 10,000 keys in use within the same three minutes. Knows rows by name; what
fits is the ledger's to say.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Final

from gateway.serving.ledger import KEPT, Taken, Want, discard, fits

_ROW: Final = struct.Struct("=16sdqI4x")  # hash of the name, Unix time at which it runs out, value, owner
_WAYS: Final = 16
_BUCKET: Final = _WAYS * _ROW.size
_BUCKETS: Final = 8192
_SIZE: Final = _BUCKETS * _BUCKET
_MOST: Final = 2**62  # the largest value that a row is given


def create() -> int:
    """A descriptor of an empty table, to be inherited."""
    return anonymous("tempera-limits", _SIZE)


def anonymous(name: str, size: int) -> int:
    """A descriptor of `size` zeros in memory; the name is for who looks at a process from outside."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create(name)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor


class Table:
    """The rows. Every call but `locked` is made under the lock."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._map = mmap.mmap(descriptor, _SIZE)

    @contextmanager
    def locked(self) -> Iterator[None]:
        # A record lock: one by flock(2) would belong to all that inherited the descriptor.
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN)

    def value(self, name: str, now: float) -> int:
        """0 for a row that is not there or has run out."""
        at = self._find(_hash(name))
        if at is None:
            return 0
        _, end, value, _ = _ROW.unpack_from(self._map, at)
        return int(value) if end > now else 0

    def put(self, name: str, value: int, end: float, now: float, owner: int = 0) -> None:
        """A new row, or a new value; a row that exists keeps its end unless it has run out. `end` 0 drops it."""
        key = _hash(name)
        at = self._find(key)
        if at is None:
            at = self._room(key, now)
        elif end and now < (lasting := _ROW.unpack_from(self._map, at)[1]):
            end = lasting
        _ROW.pack_into(self._map, at, key, end, min(value, _MOST), owner)

    def drop(self, owner: int) -> None:
        """Every row of an owner."""
        for at in range(0, _SIZE, _ROW.size):
            key, _, _, whose = _ROW.unpack_from(self._map, at)
            if whose == owner:
                _ROW.pack_into(self._map, at, key, 0.0, 0, 0)

    def _find(self, key: bytes) -> int | None:
        start = _bucket(key)
        # Not mmap.find: before Python 3.11.4 (gh-105235) it read a byte beyond the map, which killed the process.
        at = self._map[start : start + _BUCKET].find(key)
        return start + at if at >= 0 and at % _ROW.size == 0 else None

    def _room(self, key: bytes, now: float) -> int:
        start = _bucket(key)
        rows = range(start, start + _BUCKET, _ROW.size)
        ends = [_ROW.unpack_from(self._map, at)[1] for at in rows]
        return rows[next((place for place, end in enumerate(ends) if end <= now), ends.index(min(ends)))]


class CommonLedger:
    """What the keys have used, by all workers. `worker` is this one, in [1, workers].

    A worker's requests in flight are rows that it owns, so that its supervisor can end them when it dies.
    """

    def __init__(self, table: Table, worker: int, workers: int) -> None:
        self._table, self._worker, self._workers = table, worker, workers
        self._held: dict[str, set[str]] = {}

    def take(self, want: Want) -> Taken:
        """Everything or nothing."""
        value, name, at = self._table.value, want.name, want.at
        with self._table.locked():
            in_flight = sum(value(_lease(name, worker), at) for worker in range(1, self._workers + 1))
            room = want.concurrency is None or in_flight < want.concurrency
            keys = [want.counters(ask) for ask in want.asks]
            counts = [(value(before, at), value(now, at)) for now, before in keys]
            taken = room and all(fits(*used, ask, want.share) for used, ask in zip(counts, want.asks, strict=True))
            if taken:
                if want.concurrency is not None:
                    self._held.setdefault(name, set()).add(want.request)
                    self._show(name, at)
                for (now, _), (_, used), ask in zip(keys, counts, want.asks, strict=True):
                    self._table.put(now, used + ask.cost, at + KEPT, at)
        return Taken(taken, room, counts)

    def end(self, want: Want) -> None:
        """The request is no longer in flight; everybody knows at once."""
        if want.request in self._held.get(want.name, ()):
            discard(self._held, want)
            with self._table.locked():
                self._show(want.name, want.at)

    def settle(self, want: Want, more: int, at: float) -> None:
        """Correct the tokens by `more`."""
        minute = want.corrected(more, at)
        if minute is not None:
            key = want.counter("tpm", minute)
            with self._table.locked():
                self._table.put(key, max(0, self._table.value(key, at) + more), at + KEPT, at)

    def _show(self, name: str, at: float) -> None:
        held = len(self._held.get(name, ()))
        self._table.put(_lease(name, self._worker), held, math.inf if held else 0.0, at, self._worker)


def end_leases(table: Table, worker: int) -> None:
    """Of a worker that is gone."""
    with table.locked():
        table.drop(worker)


def _lease(name: str, worker: int) -> str:
    return f"lease/{name}/{worker}"


def _hash(name: str) -> bytes:
    return blake2b(name.encode(), digest_size=16).digest()


def _bucket(key: bytes) -> int:
    return int.from_bytes(key[:4]) % _BUCKETS * _BUCKET
