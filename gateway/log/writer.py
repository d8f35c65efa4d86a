"""The sample log of a process: exchanges in, rows out, and never a wait for whoever offers.

`offer` appends to a queue that is bounded in bytes, and wakes nobody until that holds a batch. The writer thread turns
exchanges into rows a few times an interval and hands them to the loader in batches. A row is in the database or in the
spool at the latest two intervals and the patience after its exchange was offered: that is what a `kill -9` can cost.
Knows nothing about SQL.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Final

from gateway.log import retention, store
from gateway.log.digest import Redact, digest, kept
from gateway.log.exchange import RawExchange
from gateway.log.loader import Batch, Loader
from gateway.log.options import MB, Options
from gateway.log.row import Item, Row, Snapshot
from gateway.log.spool import Spool

_BATCH_BYTES: Final = MB // 2  # twice as much is no faster, and 5 MB dearer with long requests
_LONG: Final = 64 * 1024  # bytes of a request that is not worth keeping whole until it is read
_logger = logging.getLogger(__name__)


OnRow = Callable[[Row, RawExchange], None]


class Log:
    """The log of one process; `engine` is for queries. `offer` is for one thread, the event loop's.

    `on_row` is called on the writer thread with every row and the exchange it is of, whose bytes may be gone by then.
    """

    def __init__(self, options: Options, redact: Redact | None = None, on_row: OnRow | None = None) -> None:
        self.engine = store.connect(options.database_url or store.default_url(options.data_dir))
        options.data_dir.mkdir(parents=True, exist_ok=True)
        if options.database_url is None:  # what people wrote is not for everybody on this machine
            store.default_path(options.data_dir).touch(mode=0o600)
        spool = options.data_dir / "spool"
        self._loader = Loader(
            self.engine,
            Spool(spool, options.spool_limit),
            spool,
            batch=options.batch,
            memory=options.queue_limit,
        )
        if options.retention_days:
            self._loader.chores.append(retention.chore(self.engine, options.retention_days))
        self._options = options
        self._redact, self._on_row = redact, on_row
        self._queue: SimpleQueue[tuple[int, RawExchange | Item, RawExchange | None] | None] = SimpleQueue()
        self._wake = threading.Event()  # set when a batch has gathered, or somebody waits for the end of the queue
        self._closed = False
        # Changed by the offering thread only:
        self._offered = self._put_in = self._bytes_in = 0
        self._refused: Counter[str] = Counter()
        # Changed by the writer thread only:
        self._taken = self._bytes_out = self._handed = self._unreadable = 0
        self._reading = self._full = self._busy = self._hurried = False
        self._items: list[Item] = []
        self._size = 0
        self._synced_at = self._handed_at = 0.0
        self._threads = [self._start("log-writer", self._turn), self._start("log-loader", self._loader.turn)]

    def _start(self, name: str, turn: Callable[[], bool]) -> threading.Thread:
        thread = threading.Thread(target=self._forever, args=(turn,), name=name, daemon=True)
        thread.start()
        return thread

    def _forever(self, turn: Callable[[], bool]) -> None:
        """The one place of the log that survives every exception: a row may be lost, the thread may not."""
        while True:
            try:
                if not turn():
                    return
            except Exception:
                _logger.exception("the log tripped; it goes on")
                time.sleep(self._options.interval)

    def offer(self, exchange: RawExchange, share: float = 1.0) -> None:
        """Takes an exchange without ever waiting. `share` in [0, 1]: which part of its preset's exchanges is logged."""
        plan = exchange.plan
        self._offered += 1
        if plan is not None and plan.log == "off":
            self._refused["off"] += 1
        elif share < 1 and not kept(exchange, share):
            self._refused["sampled"] += 1
        else:
            body = 0 if plan is None else len(plan.body)
            size = 1024 + body + len(exchange.request) + sum(map(len, exchange.reply))
            if len(exchange.request) < _LONG and self.queued + size < self._options.queue_limit // 2:
                self._put(size, exchange)
            else:  # long, or the writer is behind: reading it here costs some 0.1 ms and saves most of the memory
                row = digest(exchange, self._redact, self._options.message_limit)
                exchange.request, exchange.messages, exchange.reply = b"", None, []
                self._put(_weight(row), row, exchange)

    def snapshot(self, revision: str, yaml: str) -> None:
        """Keeps the presets and prompts of a revision, so that its rows can be traced to them. As `offer`."""
        item = Snapshot(revision, yaml)
        self._put(_weight(item), item)

    @property
    def queued(self) -> int:
        """Bytes in the queue."""
        return self._bytes_in - self._bytes_out

    def _put(self, size: int, item: RawExchange | Item, read: RawExchange | None = None) -> None:
        if self._closed or self.queued + size > self._options.queue_limit:
            self._refused["closed" if self._closed else "queue_full"] += 1
            return
        self._bytes_in += size
        self._put_in += 1
        self._queue.put((size, item, read))
        if self.queued >= _BATCH_BYTES and not self._wake.is_set():
            self._wake.set()

    def _turn(self) -> bool:
        """Gathers a batch, hands it over, and spools what the loader could not write in time. False at the end."""
        self._unreadable += self._reading  # the last one raised
        self._reading = False
        going = self._gather()
        now = time.monotonic()
        if self._full or self._hurried or not going or now - self._handed_at >= self._options.interval:
            if self._items:
                self._loader.hand(Batch(self._items, self._handed, self._size, now))
                self._items, self._size = [], 0
            self._handed, self._handed_at = self._taken, now
        self._loader.spool_late(
            now - (self._options.interval if self._loader.database_error else self._options.patience)
        )
        if now - self._synced_at >= self._options.sync_every:
            self._loader.sync()
            self._synced_at = now
        return going

    def _gather(self) -> bool:
        """Reads what is queued, at the next glance, or at once after a full batch. False once closed and empty.

        Nobody wakes this thread for one exchange: a wake-up costs more than reading it, and takes the interpreter away
        from whoever offered. How long it keeps the interpreter is the server's switch interval.
        """
        self._hurried = False
        if not self._full:
            self._hurried = self._wake.wait(self._options.glance if self._busy else self._options.interval)
            self._wake.clear()
        before = self._taken
        while len(self._items) < self._options.batch and self._size < _BATCH_BYTES:
            try:
                entry = self._queue.get_nowait()
            except Empty:
                break
            if entry is None:
                return False
            self._take(*entry)
        self._busy = self._taken > before
        self._full = len(self._items) >= self._options.batch or self._size >= _BATCH_BYTES
        return True

    def _take(self, size: int, offered: RawExchange | Item, read: RawExchange | None) -> None:
        self._bytes_out += size
        self._taken += 1
        self._reading = True
        item: Item
        if isinstance(offered, RawExchange):
            read, item = offered, digest(offered, self._redact, self._options.message_limit)
        else:
            item = offered
        self._reading = False
        self._items.append(item)
        self._size += _weight(item)
        if self._on_row is not None and read is not None and isinstance(item, Row):
            self._on_row(item, read)

    def flush(self, timeout: float = 1.0) -> bool:
        """Waits until all that was offered before is in the database; False if it is not after `timeout` seconds."""
        target, end = self._put_in, time.monotonic() + timeout
        self._wake.set()
        while not self._loader.opened or self._handed < target or not self._loader.settled(target):
            if time.monotonic() >= end:
                return False
            time.sleep(self._options.interval / 20)
        return True

    @property
    def opened(self) -> bool:
        """Whether the database has been reached since the start, so that its tables are there."""
        return self._loader.opened

    @property
    def behind(self) -> bool:
        """Whether rows lie in a spool, of this process or of one that is gone, that the database does not have yet."""
        return self._loader.behind

    def close(self, timeout: float = 10.0) -> None:
        """Writes what was offered: to the database if that takes it within `timeout` seconds, else to the spool."""
        if self._closed:
            return
        self._closed = True
        end = time.monotonic() + timeout
        self._queue.put(None)
        self._wake.set()
        writer, loading = self._threads
        writer.join(timeout)
        while not self._loader.settled(self._taken) and not self._loader.database_error and time.monotonic() < end:
            time.sleep(self._options.interval / 20)
        self._loader.stop()
        loading.join(1.0)
        self._loader.spool_late(math.inf)
        self._loader.sync()
        self._loader.spool.close()
        self.engine.dispose()

    def stats(self) -> dict[str, Any]:
        """Numbers for metrics and readiness. In the end `offered` = `written` + all `left_out` + all `dropped`."""
        tally, loader = self._loader.tally, self._loader
        refused = dict(self._refused)
        left_out = {reason: refused.pop(reason, 0) for reason in ("off", "sampled")}
        dropped = refused | dict(tally.dropped) | {"unreadable": self._unreadable}
        return {
            "offered": self._offered,
            "queued_bytes": self.queued,
            "written": tally.written,
            "duplicates": tally.duplicates,
            "spooled": tally.spooled,
            "replayed": tally.replayed,
            "batches_waiting": loader.waiting,
            "spool_bytes": loader.spool.waiting,
            "left_out": left_out,
            "dropped": {reason: number for reason, number in dropped.items() if number},
            "database": "down" if loader.database_error else "up" if loader.opened else "opening",
            "database_error": loader.database_error,
            "spool_error": loader.spool_error,
        }


def _weight(item: Item) -> int:
    """About the bytes that an item takes in memory."""
    if isinstance(item, Row):
        return 2048 + len(item.messages or b"") + len(item.text or "")
    return len(item.yaml)
