"""The tables of the sample log, for queries; migrations/ is what makes them (a test holds the two together).

Exchange ids grow with time (UUIDv7), so the primary key is also the order of time. Knows column types; knows no
queries.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import JSON, Boolean, Column, Double, Index, MetaData, String, Table, Text, literal_column
from sqlalchemy.dialects.postgresql import JSONB

REVISION: Final = "0001"  # the newest migration

# Bytewise order: ids sort by time whatever the database's locale.
_KEY: Final = String().with_variant(String(collation="C"), "postgresql")
_DATA: Final = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")

metadata = MetaData()

exchanges = Table(
    "exchanges",
    metadata,
    Column("id", _KEY, primary_key=True),
    Column("response_id", String),
    Column("time", Double, nullable=False),
    Column("protocol", String, nullable=False),
    Column("preset", String),
    Column("revision", String),
    Column("experiment", String),
    Column("variant", String),
    Column("unit", _KEY),
    Column("unit_kind", String),
    Column("asked", _DATA),
    Column("effective", _DATA),
    Column("adjustments", _DATA),
    Column("messages", JSON(none_as_null=True)),  # the client's own bytes: PostgreSQL's jsonb would refuse some numbers
    Column("text", Text),
    Column("finish_reason", String),
    Column("usage", _DATA),
    Column("ttft_ms", Double),
    Column("duration_ms", Double, nullable=False),
    Column("outcome", String, nullable=False),
    Column("key", String),
    Column("truncated", Boolean, nullable=False),
    Column("request_id", String, nullable=False),
)
_c = exchanges.c
Index("exchanges_by_preset", _c.preset, _c.id)
NOT_OK: Final = _c.outcome != literal_column("'ok'")  # literal, so that planners see that the index holds the answer
OWN_REQUEST_ID: Final = _c.request_id != _c.id  # most clients send none: only the others are indexed
for name, columns, condition in (
    ("exchanges_by_response", (_c.response_id,), _c.response_id.is_not(None)),
    ("exchanges_by_request", (_c.request_id,), OWN_REQUEST_ID),
    ("exchanges_by_outcome", (_c.outcome, _c.id), NOT_OK),
    ("exchanges_by_unit", (_c.experiment, _c.unit), _c.experiment.is_not(None)),
):
    Index(name, *columns, sqlite_where=condition, postgresql_where=condition)

feedback = Table(
    "feedback",
    metadata,
    Column("id", _KEY, primary_key=True),
    Column("exchange_id", _KEY, nullable=False),
    Column("time", Double, nullable=False),
    Column("name", String, nullable=False),
    Column("value", Double),  # in [-1, 1]; NULL takes the vote back
    Column("comment", Text),
    Column("source", String),
)
Index("feedback_by_exchange", feedback.c.exchange_id, feedback.c.name, feedback.c.time)

config_snapshots = Table(
    "config_snapshots",
    metadata,
    Column("revision", String, primary_key=True),
    Column("yaml", Text, nullable=False),
)

experiment_state = Table(
    "experiment_state",
    metadata,
    Column("experiment", String, primary_key=True),
    Column("variant", String, primary_key=True),
    Column("max_log_e", Double, nullable=False),
    Column("crossed_at", Double),  # when the evidence first reached 1/alpha
)

allocations = Table(
    "allocations",
    metadata,
    Column("experiment", String, primary_key=True),
    Column("valid_from", Double, primary_key=True),
    Column("weights", _DATA, nullable=False),
)
