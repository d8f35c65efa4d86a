"""What the sample log keeps, as values: a Row per exchange, a Snapshot per revision of the presets.

The names are those of SQL, HTTP and exports, in this order. Knows nothing about where rows come from or go to.
"""

from __future__ import annotations

from typing import Final
from uuid import uuid4

import msgspec


class Row(msgspec.Struct, frozen=True, array_like=True, tag="x"):
    """A row of `exchanges`, in column order; JSON_COLUMNS hold JSON. `time` is in Unix seconds.

    Spool files hold rows by position: a new column goes to the end, with a default.
    """

    id: str
    response_id: str | None
    time: float
    protocol: str
    preset: str | None
    revision: str | None
    experiment: str | None
    variant: str | None
    unit: str | None
    unit_kind: str | None
    asked: str | None
    effective: str | None
    adjustments: str | None
    messages: bytes | None  # JSON as well, in UTF-8: mostly the client's own bytes, and large
    text: str | None
    finish_reason: str | None
    usage: str | None
    ttft_ms: float | None
    duration_ms: float
    outcome: str
    key: str | None
    truncated: bool
    request_id: str


class Snapshot(msgspec.Struct, frozen=True, array_like=True, tag="c"):
    """The presets and prompts behind a revision, as one text."""

    revision: str
    yaml: str


JSON_COLUMNS: Final = frozenset(("asked", "effective", "adjustments", "messages", "usage"))
COLUMNS: Final = Row.__struct_fields__
Item = Row | Snapshot


def new_id(time: float) -> str:
    """A UUIDv7 of this time (Unix seconds)."""
    return f"{first_id(time)[:14]}7{str(uuid4())[15:]}"


def first_id(time: float) -> str:
    """The smallest UUIDv7 of this time (Unix seconds): ids sort by time, so it divides older rows from younger ones."""
    digits = f"{max(0, int(time * 1000)):012x}"
    return f"{digits[:8]}-{digits[8:]}-7000-8000-000000000000"
