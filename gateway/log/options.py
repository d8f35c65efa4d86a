"""What an operator may set about the log, as values."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from msgspec import Struct

from gateway.log.reading import MESSAGE_LIMIT

MB: Final = 1024 * 1024


class Options(Struct, frozen=True, kw_only=True):
    """What an operator may set. `interval` and `sync_every` are seconds, limits are bytes."""

    data_dir: Path
    database_url: str | None = None  # None: SQLite in data_dir
    interval: float = 0.1  # between two batches
    glance: float = 0.02  # between two looks at the queue while exchanges come: what is read soon is still in the cache
    patience: float = 0.5  # seconds a batch may wait for the database before it goes to the spool as well
    batch: int = 500
    message_limit: int = MESSAGE_LIMIT
    queue_limit: int = 8 * MB
    spool_limit: int = 1024 * MB
    sync_every: float = 1.0
    retention_days: float = 0.0  # 0: rows are kept for ever
