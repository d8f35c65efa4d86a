"""The loader thread: takes batches to the database, and what the database would not take in time to the spool and back.

Every row is in memory, in the spool or in the database, and may be in two of them: ids make the second writing a
no-op. Two threads meet here: the writer hands batches in and spools the late ones, the loader writes and replays them.
Knows nothing about exchanges, only rows.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec
from sqlalchemy import Engine

from gateway.log import store
from gateway.log.row import Item, Row
from gateway.log.spool import File, Spool, SpoolFull, leftovers, orphans

_IDLE: Final = 5.0  # seconds between looks at a database, and for files left behind, when there is nothing to write
_LONGEST_PAUSE: Final = 2.0  # seconds between two attempts at a database that is away
_logger = logging.getLogger(__name__)


class Batch(msgspec.Struct, eq=False):
    """Items on their way. `after` counts what was offered before them; `size` is about their bytes in memory."""

    items: list[Item]
    after: int
    size: int
    handed: float  # monotonic seconds
    spooled: bool = False


class Tally:
    """What became of the items. Each number is changed by one thread only."""

    def __init__(self) -> None:
        self.written = 0  # rows that were new to the database
        self.duplicates = 0  # rows that were there already
        self.spooled = 0
        self.replayed = 0
        self.dropped: Counter[str] = Counter()


class Loader:
    """Owns the write connection. `turn` and `stop` aside, everything is called by the writer thread."""

    def __init__(self, engine: Engine, spool: Spool, directory: Path, *, batch: int, memory: int) -> None:
        self.tally = Tally()
        self.opened = False
        self.database_error: str | None = None
        self.spool_error: str | None = None
        self.chores: list[Callable[[], None]] = []  # called every few seconds while the database is there
        self.spool = spool
        self._engine = engine
        self._directory = directory
        self._batch = batch
        self._memory = memory
        self._pending: deque[Batch] = deque()
        self._in_hand: Batch | None = None
        self._lock = threading.Lock()
        self._ready = threading.Event()
        self._halt = threading.Event()
        self._pause = 0.0
        self._idle_at = 0.0

    @property
    def waiting(self) -> int:
        """Batches in memory."""
        return len(self._pending)

    def settled(self, count: int) -> bool:
        """Whether of what was handed in the first `count` have left memory and spool (for the database, or dropped)."""
        with self._lock:
            return not self.spool.waiting and all(batch.after >= count for batch in self._pending)

    @property
    def behind(self) -> bool:
        """Whether a spool file, our own or any other process's, waits for the database."""
        return self.spool.waiting > 0 or leftovers(self._directory)

    def hand(self, batch: Batch) -> None:
        with self._lock:
            self._pending.append(batch)
        self._ready.set()

    def spool_late(self, older_than: float) -> None:
        """Appends to the spool what was handed in before that time and is not in the database."""
        with self._lock:
            late = [batch for batch in self._pending if not batch.spooled and batch.handed <= older_than]
        for batch in late:
            try:
                self.spool.append(batch.items)
            except OSError as error:
                self.spool_error = str(error)
                self._drop_excess("spool_full" if isinstance(error, SpoolFull) else "disk_full")
                return
            self.spool_error = None
            self.tally.spooled += len(batch.items)
            with self._lock:
                batch.spooled = True
                if batch is not self._in_hand and batch in self._pending:
                    self._pending.remove(batch)

    def _drop_excess(self, reason: str) -> None:
        """Neither disk nor database takes anything: memory keeps the newest batches, within its limit."""
        with self._lock:
            while sum(batch.size for batch in self._pending) > self._memory:
                oldest = next((batch for batch in self._pending if batch is not self._in_hand), None)
                if oldest is None:
                    return
                self._pending.remove(oldest)
                self.tally.dropped[reason] += len(oldest.items)

    def sync(self) -> None:
        """Forces the spool to the disk."""
        try:
            self.spool.sync()
        except OSError as error:
            self.spool_error = str(error)

    def stop(self) -> None:
        """Makes `turn` return False soon; what is in memory stays there."""
        self._halt.set()
        self._ready.set()

    def turn(self) -> bool:
        """Writes what there is, then waits for more. False once stopped."""
        try:
            if not self.opened:
                store.prepare(self._engine)
                self.opened = True
            self._work(self.spool)
            if time.monotonic() >= self._idle_at and not self._halt.is_set():
                self._look_around()
        except store.Away as error:
            if self.database_error is None:
                _logger.warning("the log's database is away, rows go to the spool: %s", error)
            self.database_error = str(error)
            self._pause = min(_LONGEST_PAUSE, self._pause * 2 or 0.05)
            self._halt.wait(self._pause)
            return not self._halt.is_set()
        if self.database_error is not None:
            self.database_error, self._pause = None, 0.0
            _logger.info("the log's database is there")
        self._ready.wait(_IDLE)
        self._ready.clear()
        return not self._halt.is_set()

    def _work(self, source: Spool | File) -> None:
        """Batches first, so that memory stays small; then the source, until neither has anything."""
        while not self._halt.is_set() and (self._load() or self._replay(source)):
            pass

    def _look_around(self) -> None:
        store.ping(self._engine)
        for file in orphans(self._directory):
            try:
                self._work(file)
            finally:
                file.close()
        for chore in self.chores:
            chore()
        self._idle_at = time.monotonic() + _IDLE

    def _load(self) -> bool:
        """Writes the oldest batch; False when there is none. Raises Away; the batch is then still here or spooled."""
        with self._lock:
            self._in_hand = batch = self._pending[0] if self._pending else None
        if batch is None:
            return False
        written = False
        try:
            self._write(batch.items)
            written = True
        finally:
            with self._lock:
                self._in_hand = None
                if written or batch.spooled:
                    self._pending.popleft()
        return True

    def _replay(self, source: Spool | File) -> bool:
        """Writes some of the oldest items of a source; False when there is nothing (more) to read."""
        items = source.read(self._batch)
        lost = source.lost
        if not items and not lost:
            return False
        if items:
            self._write(items)
        source.drop()
        self.tally.replayed += len(items)
        self.tally.dropped["torn"] += lost
        return True

    def _write(self, items: Sequence[Item]) -> None:
        """Writes items, leaving out the ones that the database refuses. Raises Away."""
        try:
            new = store.write(self._engine, items)
        except store.Refused as error:
            if len(items) == 1:
                self.tally.dropped["refused"] += 1
                _logger.error("the log's database refuses the row %s: %s", _name(items[0]), error)
                return
            half = len(items) // 2
            self._write(items[:half])
            self._write(items[half:])
            return
        self.tally.written += new
        self.tally.duplicates += sum(isinstance(item, Row) for item in items) - new


def _name(item: Item) -> str:
    return item.id if isinstance(item, Row) else item.revision
