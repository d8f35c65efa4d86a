"""A request's head as far as the parser leaves it to us: its path, and offers that would mislead the parser.

Pure; knows nothing about routes.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote

import httptools


def without_upgrade(data: bytes) -> bytes:
    """A request without its offer to speak another protocol, which we do not take: the parser would read the body as
    that protocol. Java's client offers HTTP/2 with every first request. (A head that arrives in pieces keeps its offer,
    and is refused if it has a body.)
    """
    head, end, rest = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(b"", head) + end + rest


_UPGRADE: Final = re.compile(rb"(?i)\r\n(?:upgrade|http2-settings):[^\r\n]*")


def split(url: bytes) -> tuple[str, bytes, bytes]:
    """(path, path as sent, query). Raises for what is no path; the parser makes that a refusal."""
    parsed = httptools.parse_url(url)
    return unquote(parsed.path.decode("ascii")), parsed.path, parsed.query or b""
