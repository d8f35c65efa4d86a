"""The sample log, feedback, snapshots of the presets, and what experiments remember."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None

_KEY = sa.String().with_variant(sa.String(collation="C"), "postgresql")
_DATA = sa.JSON().with_variant(JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "exchanges",
        sa.Column("id", _KEY, primary_key=True),
        sa.Column("response_id", sa.String),
        sa.Column("time", sa.Double, nullable=False),
        sa.Column("protocol", sa.String, nullable=False),
        sa.Column("preset", sa.String),
        sa.Column("revision", sa.String),
        sa.Column("experiment", sa.String),
        sa.Column("variant", sa.String),
        sa.Column("unit", _KEY),
        sa.Column("unit_kind", sa.String),
        sa.Column("asked", _DATA),
        sa.Column("effective", _DATA),
        sa.Column("adjustments", _DATA),
        sa.Column("messages", sa.JSON),
        sa.Column("text", sa.Text),
        sa.Column("finish_reason", sa.String),
        sa.Column("usage", _DATA),
        sa.Column("ttft_ms", sa.Double),
        sa.Column("duration_ms", sa.Double, nullable=False),
        sa.Column("outcome", sa.String, nullable=False),
        sa.Column("key", sa.String),
        sa.Column("truncated", sa.Boolean, nullable=False),
        sa.Column("request_id", sa.String, nullable=False),
    )
    op.create_index("exchanges_by_preset", "exchanges", ["preset", "id"])
    for name, columns, condition in (
        ("exchanges_by_response", ["response_id"], "response_id IS NOT NULL"),
        ("exchanges_by_request", ["request_id"], "request_id != id"),
        ("exchanges_by_outcome", ["outcome", "id"], "outcome != 'ok'"),
        ("exchanges_by_unit", ["experiment", "unit"], "experiment IS NOT NULL"),
    ):
        where = sa.text(condition)
        op.create_index(name, "exchanges", columns, sqlite_where=where, postgresql_where=where)
    op.create_table(
        "feedback",
        sa.Column("id", _KEY, primary_key=True),
        sa.Column("exchange_id", _KEY, nullable=False),
        sa.Column("time", sa.Double, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("value", sa.Double),
        sa.Column("comment", sa.Text),
        sa.Column("source", sa.String),
    )
    op.create_index("feedback_by_exchange", "feedback", ["exchange_id", "name", "time"])
    op.create_table(
        "config_snapshots",
        sa.Column("revision", sa.String, primary_key=True),
        sa.Column("yaml", sa.Text, nullable=False),
    )
    op.create_table(
        "experiment_state",
        sa.Column("experiment", sa.String, primary_key=True),
        sa.Column("variant", sa.String, primary_key=True),
        sa.Column("max_log_e", sa.Double, nullable=False),
        sa.Column("crossed_at", sa.Double),
    )
    op.create_table(
        "allocations",
        sa.Column("experiment", sa.String, primary_key=True),
        sa.Column("valid_from", sa.Double, primary_key=True),
        sa.Column("weights", _DATA, nullable=False),
    )
