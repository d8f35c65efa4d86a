"""What people said about exchanges: append-only votes, and the rule which of them counts.

A vote is never changed: the last one given within 24 hours of the first, on one exchange and under one name, is the one
that counts, and a NULL value takes it back. Knows nothing about experiments.
"""

from __future__ import annotations

import time
from typing import Any, Final

import msgspec
from sqlalchemy import Select, Subquery, func, insert, select

from gateway.log import queries
from gateway.log.row import first_id, new_id
from gateway.log.schema import feedback
from gateway.log.store import Away, border
from gateway.log.writer import Log
from gateway.protocol.errors import GatewayError, InvalidRequest, NotFound, OutOfRange

LONGEST: Final = {"name": 64, "source": 64, "comment": 10_000}  # characters
WINDOW: Final = 86400.0  # seconds in which a vote may still be changed
_PAUSES: Final = (0.0, 0.1, 0.3)  # seconds of waiting for a row that another process may still have in its hands
_YOUNG: Final = 60.0  # seconds after which a row is in the database, or in a spool


class LogUnavailable(GatewayError):
    """The log's database does not answer, so nobody can say whether the exchange exists."""

    status = 503
    type = "server_error"
    code = "log_unavailable"


class Vote(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of POST /v1/feedback. One of the three ids says which exchange is meant; a null value takes it back."""

    exchange_id: str | None = None
    response_id: str | None = None
    request_id: str | None = None
    value: float | None
    name: str = "thumb"
    comment: str | None = None
    source: str | None = None


def parse(body: bytes) -> Vote:
    """A vote from a request's body. Raises InvalidRequest or OutOfRange (400), naming the field."""
    try:
        vote = msgspec.json.decode(body, type=Vote)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The feedback cannot be read: {error}.") from None
    if sum(name is not None for name in (vote.exchange_id, vote.response_id, vote.request_id)) != 1:
        raise InvalidRequest("One of exchange_id, response_id and request_id must say which exchange is meant.")
    if vote.value is not None and not -1 <= vote.value <= 1:
        raise OutOfRange(
            f"value must be a number in [-1, 1], or null to take it back; got {vote.value:g}.", param="value"
        )
    if not vote.name:
        raise InvalidRequest("name must not be empty; leave it out for `thumb`.", param="name")
    for field, most in LONGEST.items():
        if len(getattr(vote, field) or "") > most:
            raise InvalidRequest(f"{field} may have {most} characters at most.", param=field)
    return vote


def give(log: Log, vote: Vote) -> dict[str, Any]:
    """Appends a vote and returns its row. Blocks for up to about a second: call it in a thread.

    Raises NotFound for an exchange nobody knows, LogUnavailable when that cannot be found out now.
    """
    try:
        found = _find(log, vote)
        row = {
            "id": new_id(time.time()),
            "exchange_id": found,
            "time": time.time(),
            "name": vote.name,
            "value": vote.value,
            "comment": vote.comment,
            "source": vote.source,
        }
        with border(log.engine), log.engine.begin() as connection:
            connection.execute(insert(feedback).values(row))
    except Away as error:
        raise LogUnavailable(f"The log's database does not answer: {error}.", retry_after=2) from error
    return row


def _find(log: Log, vote: Vote) -> str:
    """The exchange's id. It may have been offered a moment ago, here or in another process: then once more."""
    ids = {"exchange_id": vote.exchange_id, "response_id": vote.response_id, "request_id": vote.request_id}
    old = vote.exchange_id is not None and vote.exchange_id < first_id(time.time() - _YOUNG)
    if not log.opened:
        log.flush()
    for pause in _PAUSES[:1] if old else _PAUSES:
        time.sleep(pause)
        found = queries.find(log.engine, **ids)
        if found is None and log.flush():
            found = queries.find(log.engine, **ids)
        if found is not None:
            return found
    if log.behind:
        raise LogUnavailable(
            "The log is catching up with its database; the exchange may be among those.", retry_after=5
        )
    name, value = next((name, value) for name, value in ids.items() if value is not None)
    raise NotFound(f"There is no exchange with {name} {value[:128]!r}.", code="exchange_not_found", param=name)


def counted(name: str, among: Select[tuple[str]] | None = None) -> Subquery:
    """(exchange_id, value, time) of the votes that count under a name: the last within 24 hours of the first.

    `among` selects the ids of the exchanges to look at; None: all.
    """
    c = feedback.c
    first = func.min(c.time).over(partition_by=c.exchange_id).label("first")
    votes = select(c.exchange_id, c.value, c.time, c.id, first).where(c.name == name)
    given = (votes if among is None else votes.where(c.exchange_id.in_(among))).subquery()
    newest = (given.c.time.desc(), given.c.id.desc())
    rank = func.row_number().over(partition_by=given.c.exchange_id, order_by=newest).label("rank")
    ranked = select(given, rank).where(given.c.time <= given.c.first + WINDOW).subquery()
    last = select(ranked.c.exchange_id, ranked.c.value, ranked.c.time)
    return last.where(ranked.c.rank == 1, ranked.c.value.is_not(None)).subquery("counted")
