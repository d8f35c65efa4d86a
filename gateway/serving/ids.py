"""Exchange ids: UUIDs of version 7 (RFC 9562), which grow with time and so keep the log's index small."""

from __future__ import annotations

import random
import re
import time
from typing import Final

_source = random.Random()  # noqa: S311 - an id is no secret
_SANE: Final = re.compile(rb"[A-Za-z0-9._-]{1,128}").fullmatch


def exchange_id() -> str:
    """48 bits of Unix milliseconds, then 74 random bits."""
    milliseconds = time.time_ns() // 1_000_000
    noise = _source.getrandbits(74)
    text = f"{milliseconds << 80 | 0x7 << 76 | (noise >> 62) << 64 | 0b10 << 62 | noise & (1 << 62) - 1:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def request_id(own: bytes | None, fallback: str) -> str:
    """The client's X-Request-Id if it is sane, else the exchange id."""
    return own.decode() if own is not None and _SANE(own) else fallback
