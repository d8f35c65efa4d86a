"""Server-sent events on bytes: splitting a stream, letting whole events through, and taking one out again.

Lines end in LF, CR LF or CR and in nothing else: U+2028 is text. Any cutting of a stream gives the same events. What a
finished stream said is `assembled`'s to find out. Knows nothing about sockets.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

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


class Event(NamedTuple):
    """One event: its name (empty for the default) and its data, lines joined by LF."""

    name: bytes
    data: bytes


class Splitter:
    """Bytes in, whole events out. Comments are skipped; an event that the stream's end cuts off is never given out."""

    def __init__(self) -> None:
        self._held: list[bytes] = []  # of the event that is not finished
        self._after_cr = self._after_line = False

    def feed(self, data: bytes) -> list[Event]:
        """The events completed by these bytes, in order."""
        if not data:
            return []
        # A CR ends its line at once; an LF right after it belongs to it, wherever the stream was cut.
        text = data[1:] if self._after_cr and data.startswith(b"\n") else data
        self._after_cr = data.endswith(b"\r")
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        ends = b"\n\n" in text or (self._after_line and text.startswith(b"\n"))
        self._held.append(text)
        self._after_line = text.endswith(b"\n") if text else self._after_line
        if not ends:
            return []
        *blocks, rest = b"".join(self._held).split(b"\n\n")
        self._held = [rest]
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
        self._held: list[bytes] = []  # of the event that is not finished; its end is looked for in new bytes only
        self._size = 0

    def feed(self, data: bytes) -> bytes:
        """What may go to the client now."""
        if self._held or not data.endswith(_ENDS):
            data = self._whole(data)
        if self._drop and b'"usage"' in data:
            return b"".join(event for event in _EVENT.findall(data) if not _only_usage(event))
        return data

    def _whole(self, data: bytes) -> bytes:
        if not data:
            return data
        before = b"".join(self._held[-3:])[-3:]  # an end has four bytes at most
        window = before + data
        cut = max((window.rfind(end) + len(end) for end in _ENDS if end in window), default=0) - len(before)
        if cut <= 0 and self._size + len(data) <= MAX_HELD:
            self._held.append(data)
            self._size += len(data)
            return b""
        if cut <= 0 or len(data) - cut > MAX_HELD:
            cut = len(data)
        out, rest = b"".join((*self._held, data[:cut])), data[cut:]
        self._held, self._size = [rest] if rest else [], len(rest)
        return out

    def rest(self) -> bytes:
        """What was held back when the stream has ended; complete or not is for the client to judge."""
        rest = b"".join(self._held)
        self._held, self._size = [], 0
        return rest


MAX_HELD: Final = 1024 * 1024  # bytes; a longer "event" is let through unfinished
_ENDS: Final = (b"\n\n", b"\r\n\r\n", b"\r\r")
_EVENT: Final = re.compile(rb".*?(?:\r\n\r\n|\n\n|\r\r)|.+\Z", re.DOTALL)


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
