"""Server-sent events on bytes: splitting a stream, letting whole events through, and taking one out again.

Lines end in LF, CR LF or CR and in nothing else: U+2028 is text. Any cutting of a stream gives the same events. What a
finished stream said is `assembled`'s to find out. Knows nothing about sockets.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

DONE: Final = b"[DONE]"

# The first event that carries generated text, in any of the four protocols. The role-only first chunk has an empty
# content.
_CONTENT: Final = re.compile(
    rb'"(?:content|text|delta|reasoning|reasoning_content|thinking|arguments|partial_json)":\s*"[^"]'
)


def has_content(data: bytes) -> bool:
    """Whether these bytes of a stream carry generated text (or a tool call's arguments)."""
    return _CONTENT.search(data) is not None


def is_last(data: bytes) -> bool:
    """Whether these bytes end a stream for its client, in any of the four protocols; clients may hang up then."""
    return data.endswith(_LAST) or b'"message_stop"' in data[-64:] or b"event: response.completed" in data


_LAST: Final = (b"[DONE]\n\n", b"[DONE]\r\n\r\n")


class Event(msgspec.Struct, frozen=True):
    """One event: its name (empty for the default) and its data, lines joined by LF."""

    name: bytes
    data: bytes


class Splitter:
    """Bytes in, whole events out. Comments are skipped; an event that the stream's end cuts off is never given out."""

    def __init__(self) -> None:
        self._rest = b""
        self._after_cr = False

    def feed(self, data: bytes) -> list[Event]:
        """The events completed by these bytes, in order."""
        if not data:
            return []
        # A CR ends its line at once; an LF right after it belongs to it, wherever the stream was cut.
        text = data[1:] if self._after_cr and data.startswith(b"\n") else data
        self._after_cr = data.endswith(b"\r")
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *blocks, self._rest = (self._rest + text).split(b"\n\n")
        return [event for block in blocks if (event := _event(block)) is not None]


def _event(block: bytes) -> Event | None:
    name, data = b"", []
    for line in block.split(b"\n"):
        field, _, content = line.partition(b":")
        content = content.removeprefix(b" ")
        if field == b"data":
            data.append(content)
        elif field == b"event":
            name = content
    return Event(name, b"\n".join(data)) if data else None


class Gate:
    """Lets whole events through and holds the last, unfinished one back, so that a stream that breaks off never
    leaves half an event with the client. Optionally takes out the usage event that the gateway itself asked for.

    A stream whose writes end at event borders is never delayed, and every byte that is let through is the engine's own.
    """

    def __init__(self, drop_usage: bool) -> None:
        self._drop = drop_usage
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """What may go to the client now."""
        if self._rest:
            data, self._rest = self._rest + data, b""
        if not data.endswith(_ENDS):
            cut = max(data.rfind(end) + len(end) for end in _ENDS if end in data) if _ends_in(data) else 0
            if len(data) - cut <= MAX_HELD:
                data, self._rest = data[:cut], data[cut:]
        if self._drop and b'"usage"' in data:
            return b"".join(event for event in _EVENT.findall(data) if not _only_usage(event))
        return data

    def rest(self) -> bytes:
        """What was held back when the stream has ended; complete or not is for the client to judge."""
        rest, self._rest = self._rest, b""
        return rest


MAX_HELD: Final = 1024 * 1024  # bytes; a longer "event" is let through unfinished
_ENDS: Final = (b"\n\n", b"\r\n\r\n", b"\r\r")
_EVENT: Final = re.compile(rb".*?(?:\r\n\r\n|\n\n|\r\r)|.+\Z", re.DOTALL)


def _ends_in(data: bytes) -> bool:
    return any(end in data for end in _ENDS)


def _only_usage(event: bytes) -> bool:
    """Whether an event carries the token counts and no choice."""
    if b'"usage"' not in event:
        return False
    for parsed in Splitter().feed(event):
        document = loads(parsed.data)
        return document.get("choices") == [] and isinstance(document.get("usage"), dict)
    return False


def error_event(body: bytes, named: bool) -> bytes:
    """An error envelope as the last event of a stream.

    `named` for the protocols whose clients dispatch on the event's name.
    """
    return (b"event: error\n" if named else b"") + b"data: " + body + b"\n\n"


def loads(data: bytes) -> dict[str, Any]:
    """A JSON object; an empty one for whatever cannot be read."""
    try:
        document = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
