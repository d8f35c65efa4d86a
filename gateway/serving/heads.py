"""How requests are read off the wire: the parser, as this server sets it, and a request's target.

Knows httptools; nothing about connections or routes.
"""

from __future__ import annotations

from urllib.parse import unquote

import httptools

from gateway.protocol.errors import InvalidRequest


def new_parser(protocol: object) -> httptools.HttpRequestParser:
    """A parser that calls `protocol`. What follows a client's last request is not looked at, and no error."""
    parser = httptools.HttpRequestParser(protocol)
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser


def not_a_request(why: str = "The parser does not understand it.") -> InvalidRequest:
    """The refusal of what does not become a request."""
    return InvalidRequest(f"This is not an HTTP/1.1 request. {why}", code="invalid_http")


def split(url: bytes) -> tuple[str, bytes, bytes]:
    """(path, path as sent, query). Raises for what is no path; the parser makes that a refusal."""
    parsed = httptools.parse_url(url)
    return unquote(parsed.path.decode("ascii")), parsed.path, parsed.query or b""
