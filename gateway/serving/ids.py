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
    return "%08x-%04x-7%03x-%04x-%012x" % (  # noqa: UP031 - half the time of an f-string here
        milliseconds >> 16,
        milliseconds & 0xFFFF,
        noise >> 62,
        0x8000 | (noise >> 48 & 0x3FFF),
        noise & 0xFFFFFFFFFFFF,
    )


def request_id(own: bytes | None, fallback: str) -> str:
    """The client's X-Request-Id if it is sane, else the exchange id."""
    return own.decode() if own is not None and _SANE(own) else fallback
