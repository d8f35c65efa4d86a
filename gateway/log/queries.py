"""Reading the sample log: one exchange, a page of them by filters, what a revision was.

Rows come out as dictionaries under the column names, JSON columns decoded. Pages run from the newest to the oldest and
continue at an id, so rows that arrive meanwhile neither repeat nor hide any. Everything here blocks (call it in a
thread) and raises store.Away when the database does not answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, Double, Engine, Select, and_, cast, func, or_, select

from gateway.log.row import first_id
from gateway.log.schema import NOT_OK, OWN_REQUEST_ID, config_snapshots, exchanges, feedback
from gateway.log.store import border

PAGE: Final = 50
MOST: Final = 500
_c = exchanges.c


class Filters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which exchanges; all that are given must hold. `since` and `until` (exclusive) are Unix times."""

    preset: str | None = None
    protocol: str | None = None
    outcome: str | None = None
    experiment: str | None = None
    variant: str | None = None
    unit: str | None = None
    key: str | None = None
    revision: str | None = None
    since: float | None = None
    until: float | None = None
    min_temperature: float | None = None
    max_temperature: float | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        names = ("preset", "protocol", "outcome", "experiment", "variant", "unit", "key", "revision")
        given = [_c[name] == value for name in names if (value := getattr(self, name)) is not None]
        if self.outcome not in (None, "ok"):
            given.append(NOT_OK)
        if self.since is not None:
            given.append(_c.id >= first_id(self.since))
        if self.until is not None:
            given.append(_c.id < first_id(self.until))
        if self.min_temperature is not None:
            given.append(temperature() >= self.min_temperature)
        if self.max_temperature is not None:
            given.append(temperature() <= self.max_temperature)
        return given


def temperature() -> ColumnElement[Any]:
    """The effective temperature of an exchange, as a number."""
    return cast(_c.effective["temperature"].as_string(), Double)


def output_tokens() -> ColumnElement[Any]:
    """The tokens generated, under either of the names that protocols have for them; NULL where the engine gave none."""
    return func.coalesce(_c.usage["completion_tokens"].as_integer(), _c.usage["output_tokens"].as_integer())


def page(
    engine: Engine, filters: Filters, before: str | None = None, limit: int = PAGE
) -> tuple[list[dict[str, Any]], str | None]:
    """(exchanges older than the id `before`, newest first, at most `limit`; the id to go on from, None at the end)."""
    query = select(exchanges).where(*filters.conditions()).order_by(_c.id.desc()).limit(limit + 1)
    if before is not None:
        query = query.where(_c.id < before)
    rows = rows_of(engine, query)
    return rows[:limit], rows[limit - 1]["id"] if len(rows) > limit else None


def every(engine: Engine, filters: Filters, size: int = MOST) -> Iterator[dict[str, Any]]:
    """All exchanges that match, oldest first, read page by page: no transaction stays open between two rows."""
    last = ""
    while True:
        query = select(exchanges).where(*filters.conditions(), _c.id > last).order_by(_c.id).limit(size)
        rows = rows_of(engine, query)
        yield from rows
        if len(rows) < size:
            return
        last = rows[-1]["id"]


def one(engine: Engine, name: str) -> dict[str, Any] | None:
    """The exchange with this id, and `feedback`: all that was said about it, oldest first."""
    rows = rows_of(engine, select(exchanges).where(_c.id == name))
    if not rows:
        return None
    votes = select(feedback).where(feedback.c.exchange_id == name).order_by(feedback.c.time, feedback.c.id)
    return rows[0] | {"feedback": rows_of(engine, votes)}


def find(engine: Engine, *, exchange_id: str | None, response_id: str | None, request_id: str | None) -> str | None:
    """The id of the exchange with this name, the newest where a client used a name twice; None if there is none."""
    if exchange_id is not None:
        condition = _c.id == exchange_id
    elif response_id is not None:
        condition = _c.response_id == response_id
    else:
        condition = or_(and_(_c.request_id == request_id, OWN_REQUEST_ID), _c.id == request_id)
    rows = rows_of(engine, select(_c.id).where(condition).order_by(_c.id.desc()).limit(1))
    return rows[0]["id"] if rows else None


def snapshot(engine: Engine, revision: str) -> str | None:
    """The presets and prompts behind a revision."""
    rows = rows_of(engine, select(config_snapshots).where(config_snapshots.c.revision == revision))
    return rows[0]["yaml"] if rows else None


def rows_of(engine: Engine, query: Select[Any]) -> list[dict[str, Any]]:
    with border(engine), engine.connect() as connection:
        result = connection.execute(query)
        names = list(result.keys())
        return [dict(zip(names, row, strict=True)) for row in result]
