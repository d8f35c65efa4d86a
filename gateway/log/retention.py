"""Forgetting: rows older than the operator wants to keep, with their feedback, a thousand at a time.

Snapshots of the presets and what experiments remember stay. Knows nothing about threads or schedules but its own hour.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from sqlalchemy import Engine, delete, select

from gateway.log.row import first_id
from gateway.log.schema import exchanges, feedback
from gateway.log.store import border

_DAY: Final = 86400.0
_HOUR: Final = 3600.0
_SPELL: Final = 0.25  # seconds of purging at a time: the caller has rows to write


def purge(engine: Engine, before: float, most: int = 1000) -> int:
    """Deletes at most `most` exchanges from before a Unix time, and as many votes; returns how many rows went."""
    limit = first_id(before)
    old = select(exchanges.c.id).where(exchanges.c.id < limit).order_by(exchanges.c.id).limit(most)
    votes = select(feedback.c.id).where(feedback.c.exchange_id < limit).limit(most)
    with border(engine), engine.begin() as connection:
        gone = connection.execute(delete(exchanges).where(exchanges.c.id.in_(old))).rowcount
        return gone + connection.execute(delete(feedback).where(feedback.c.id.in_(votes))).rowcount


def chore(engine: Engine, days: float) -> Callable[[], None]:
    """A function to call every few seconds: a short while of purging, and an hour's rest when nothing is too old."""
    rest_until = 0.0

    def purge_if_due() -> None:
        nonlocal rest_until
        now = time.monotonic()
        while rest_until <= time.monotonic() < now + _SPELL:
            if purge(engine, time.time() - days * _DAY) == 0:
                rest_until = now + _HOUR

    return purge_if_due
