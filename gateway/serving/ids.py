"""Exchange ids: UUIDs of version 7 (RFC 9562), which grow with time and so keep the log's index small."""

from __future__ import annotations

import random
import re
import time
from typing import Final

_source = random.Random()  # noqa: S311 - an id is no secret
_MARKS: Final = 7 << 76 | 2 << 62  # version and variant
_RANDOM: Final = ~(3 << 62)
_SANE: Final = re.compile(rb"[A-Za-z0-9._-]{1,128}").fullmatch


def exchange_id() -> str:
    """48 bits of Unix milliseconds, then 74 random bits."""
    digits = (time.time_ns() // 1_000_000 << 80 | _source.getrandbits(76) & _RANDOM | _MARKS).to_bytes(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def request_id(own: bytes | None, fallback: str) -> str:
    """The client's X-Request-Id if it is sane, else the exchange id."""
    return own.decode() if own is not None and _SANE(own) else fallback
