"""What is sent to an engine for a route without sampling, where a Plan would decide too much."""

from __future__ import annotations

from msgspec import Struct


class Passage(Struct, frozen=True):
    """What is sent for a route without sampling."""

    upstream: str
    path: str
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    drop_usage: bool = False
    query: bytes = b""
    session: bytes | None = None
