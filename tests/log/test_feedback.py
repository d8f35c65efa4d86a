"""Votes: which exchange they reach, which of them count, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from sqlalchemy import Engine, insert, select

from gateway.log import feedback, queries, store
from gateway.log.digest import digest
from gateway.log.options import Options
from gateway.log.row import first_id, new_id
from gateway.log.schema import feedback as votes
from gateway.log.writer import Log
from gateway.protocol.errors import GatewayError
from tests.log.made import REPLY, exchange

Start = Callable[..., Log]


def vote(**fields: Any) -> feedback.Vote:
    return feedback.parse(msgspec.json.encode({"value": 1} | fields))


def test_a_vote_reaches_its_exchange_by_any_of_its_names(start_log: Start) -> None:
    log = start_log()
    made = exchange(request_id="client-1", reply=REPLY | {"id": "chatcmpl-unique"})
    log.offer(exchange())
    log.offer(made)
    for name in ({"exchange_id": made.id}, {"response_id": "chatcmpl-unique"}, {"request_id": "client-1"}):
        row = feedback.give(log, vote(**name, comment="good", source="test"))
        assert row["exchange_id"] == made.id
    found = queries.one(log.engine, made.id)
    assert found is not None
    assert [(v["name"], v["value"], v["comment"]) for v in found["feedback"]] == [("thumb", 1.0, "good")] * 3
    own = exchange()
    log.offer(own)
    assert feedback.give(log, vote(request_id=own.request_id))["exchange_id"] == own.id


def test_a_repeated_client_id_means_the_newest_exchange(start_log: Start) -> None:
    log = start_log()
    both = [exchange(request_id="again"), exchange(request_id="again")]
    for made in both:
        log.offer(made)
    assert log.flush(60)
    assert feedback.give(log, vote(request_id="again"))["exchange_id"] == both[1].id


@pytest.mark.parametrize("name", ["exchange_id", "response_id", "request_id"])
def test_unknown_exchanges_are_404(start_log: Start, name: str) -> None:
    with pytest.raises(GatewayError, match="no exchange") as refusal:
        feedback.give(start_log(), vote(**{name: new_id(1e9)}))
    assert (refusal.value.status, refusal.value.param) == (404, name)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"exchange_id": "x", "value": 1.01}', "value must be a number in [-1, 1]"),
        (b'{"exchange_id": "x", "value": -2}', "got -2"),
        (b'{"exchange_id": "x", "value": true}', "value"),
        (b'{"exchange_id": "x", "value": "1"}', "value"),
        (b'{"exchange_id": "x"}', "value"),
        (b'{"value": 1}', "exchange_id"),
        (b'{"value": 1, "exchange_id": "x", "response_id": "y"}', "One of"),
        (b'{"value": 1, "exchange_id": "x", "vote": 1}', "vote"),
        (b'{"value": 1, "exchange_id": "x", "name": "' + b"n" * 65 + b'"}', "name"),
        (b'{"value": NaN, "exchange_id": "x"}', "cannot be read"),
        (b"\xff", "cannot be read"),
    ],
)
def test_what_is_no_vote_is_400(body: bytes, says: str) -> None:
    with pytest.raises(GatewayError) as refusal:
        feedback.parse(body)
    assert refusal.value.status == 400
    assert says in refusal.value.message


def test_a_database_that_is_away_is_503_and_not_404(tmp_path: Any) -> None:
    log = Log(Options(data_dir=tmp_path, database_url=f"sqlite:///{tmp_path}/no/log.db", interval=0.02))
    with pytest.raises(feedback.LogUnavailable) as refusal:
        feedback.give(log, vote(exchange_id=new_id(1e9)))
    assert refusal.value.status == 503
    assert refusal.value.headers
    log.close()


HOUR = 3600.0


@pytest.mark.parametrize(
    ("said", "counts"),
    [
        ([(0, 1.0)], 1.0),
        ([(0, 1.0), (HOUR, -1.0)], -1.0),
        ([(0, 1.0), (25 * HOUR, -1.0)], 1.0),
        ([(0, 1.0), (23 * HOUR, None)], None),
        ([(0, 1.0), (HOUR, None), (2 * HOUR, 0.5)], 0.5),
        ([(0, 1.0), (25 * HOUR, None)], 1.0),
        ([(0, None)], None),
        ([(0, 1.0), (0, -1.0)], -1.0),
    ],
)
def test_the_last_vote_within_a_day_counts(
    engine: Engine, said: list[tuple[float, float | None]], counts: float | None
) -> None:
    other, made = exchange(at=1e9), exchange(at=1e9)
    store.write(engine, [digest(other), digest(made)])
    rows = [
        {"id": first_id(1e9 + n), "exchange_id": made.id, "time": 2e9 + at, "name": "thumb", "value": value}
        for n, (at, value) in enumerate(said)
    ]
    rows.append({"id": first_id(9e8), "exchange_id": other.id, "time": 1e9, "name": "stars", "value": 0.2})
    with engine.begin() as connection:
        connection.execute(insert(votes), rows)
    counted = queries.rows_of(engine, select(feedback.counted("thumb")))
    assert [(row["exchange_id"], row["value"]) for row in counted] == ([] if counts is None else [(made.id, counts)])
