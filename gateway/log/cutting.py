"""Cutting what was said to what a log keeps, as JSON and in bytes: the client's own, where they are kept.

Pure. Whoever has a long request waits for this on the event loop, so no part with very many values in it is decoded.
Raises msgspec.MsgspecError, UnicodeDecodeError or RecursionError for what is no JSON. Knows JSON; knows no protocol.
"""

from __future__ import annotations

import re
from contextlib import suppress
from itertools import islice
from typing import Any, Final

import msgspec

LEAST: Final = 256  # bytes kept of the first message of a long chat
_MARK: Final = b'{"role"'
_MANY: Final = 20_000  # values that are decoded at once, some 5 ms
_FEW: Final = 256 * 1024  # bytes that are decoded however many values they hold


class _Message(msgspec.Struct):
    role: msgspec.Raw = msgspec.Raw()
    content: msgspec.Raw = msgspec.Raw()


_array = msgspec.json.Decoder(list[msgspec.Raw])
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_message = msgspec.json.Decoder(_Message)
_encoder = msgspec.json.Encoder()


def cut(text: str, limit: int) -> tuple[str, bool]:
    """(the first `limit` bytes of a text, whole characters only; whether anything is missing)."""
    if len(text) <= limit // 4:
        return text, False
    data = text[:limit].encode()
    short = data if len(data) <= limit else data[:limit].decode(errors="ignore").encode()
    return short.decode(), len(short) < len(data) or len(text) > limit


def cut_value(value: bytes, limit: int) -> tuple[bytes, bool]:
    """(a JSON value whose texts keep `limit` bytes, all together little more; whether anything is missing)."""
    if len(value) <= limit + 2:
        return value, False
    if value.startswith(b'"'):
        return _cut_string(value[: limit + 1]), True
    if _holds_many(value):
        return _omitted(len(value)), True
    shortened, missing = _shorten(msgspec.json.decode(value), limit)
    return _encoder.encode(shortened), missing


def cut_chat(messages: bytes, limit: int) -> tuple[bytes, bool]:
    """(of a JSON array the newest messages, `limit` bytes of them, after the beginning of the first one; whether
    anything is missing). `omitted_bytes` counts what lies between: it is on record already, as the newest of its own
    exchanges.
    """
    if len(messages) <= limit:
        return messages, False
    with suppress(msgspec.MsgspecError):
        return _shortened(_by_marks(messages, limit), limit)
    if _holds_many(messages):
        return b"[%b]" % _omitted(len(messages)), True
    return _shortened(_one_by_one(messages, limit), limit)


class _Chat(msgspec.Struct):
    """A long chat: the first message (b"" if it is the one that is cut), how many bytes lie between, the newest message
    that does not fit any more, and all after it, with commas.
    """

    first: bytes
    between: int
    cut: bytes
    newest: bytes


def _shortened(chat: _Chat, limit: int) -> tuple[bytes, bool]:
    between, older, left = chat.between, chat.cut, limit - len(chat.newest)
    if chat.first and left <= LEAST:
        between, older = between + len(older), b""
    parts = (
        chat.first and _beginning(chat.first, LEAST),
        _omitted(between) if between else b"",
        older and _beginning(older, max(left, LEAST)),
    )
    head = b",".join(filter(None, parts))
    return b"[%b%b%b]" % (head, b"," if head and chat.newest else b"", chat.newest), bool(chat.cut)


def _by_marks(messages: bytes, limit: int) -> _Chat:
    """A few looks from the end, for chats whose messages begin with their role and hold nothing else that does.

    No string holds the mark: its quotes would be escaped. What is found is held against the grammar: if a mark stands
    deeper, a piece is no JSON (brackets do not match). Raises MsgspecError then.
    """
    end = len(messages) - 1
    at = messages.find(_MARK, max(1, end - limit), end)
    at = end if at < 0 else at
    newest = messages[at:end]
    _array.decode(b"[%b]" % newest)
    first, start = messages.find(_MARK), messages.rfind(_MARK, 0, at)
    if start <= first:
        return _Chat(b"", 0, _checked(messages[1:at]), newest)
    second = messages.find(_MARK, first + 1)
    return _Chat(_checked(messages[1:second]), start - second, _checked(messages[start:at]), newest)


def _checked(piece: bytes) -> bytes:
    """One object, without the comma behind it. Raises MsgspecError for anything else."""
    message = piece.rstrip().removesuffix(b",")
    _message.decode(message)
    return message


def _one_by_one(messages: bytes, limit: int) -> _Chat:
    """The same, for every array."""
    items = [bytes(item) for item in _array.decode(messages)]
    at, left = len(items), limit
    while at and len(items[at - 1]) <= left:
        at -= 1
        left -= len(items[at])
    older, newest = items[:at], b",".join(items[at:])
    return _Chat(b"".join(older[:-1][:1]), sum(map(len, older[1:-1])), b"".join(older[-1:]), newest)


def _beginning(message: bytes, limit: int) -> bytes:
    """A message that keeps `limit` bytes and little more; one that is an object is not decoded for it."""
    if not message.startswith(b"{"):
        return cut_value(message, limit)[0]
    fields: dict[str, msgspec.Raw]
    if _holds_many(message):
        known = _message.decode(message)
        fields = {name: value for name in ("role", "content") if memoryview(value := getattr(known, name))}
    else:
        fields = _fields.decode(message)
    kept: dict[str, msgspec.Raw] = {}
    left = limit + LEAST
    for name, value in fields.items():
        short, _ = cut_value(bytes(value), min(limit, left))
        left -= len(name) + len(short) + 4
        if left < 0:
            break
        kept[name] = msgspec.Raw(short)
    return _encoder.encode(kept)


def _holds_many(value: bytes) -> bool:
    """Whether a long JSON value may hold more values than are decoded at once. Commas in texts count too."""
    at = -1
    if len(value) > _FEW:
        for _ in range(_MANY):
            at = value.find(b",", at + 1)
            if at < 0:
                return False
    return at >= 0


def _omitted(size: int) -> bytes:
    return b'{"omitted_bytes":%d}' % size


_HALF_A_PAIR: Final = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\Z")


def _cut_string(start: bytes) -> bytes:
    """The beginning of a JSON string as a JSON string of its own: whole characters, escapes and pairs of them only."""
    whole = start.decode(errors="ignore")
    backslash = whole.rfind("\\", len(whole) - 12)
    if backslash >= 0:  # perhaps half an escape, or half a pair of them: let the last few go
        whole = whole[:backslash].rstrip("\\")
        if _HALF_A_PAIR.search(whole):
            whole = whole[:-6].rstrip("\\")
    return whole.encode() + b'"'


def _shorten(value: Any, limit: int) -> tuple[Any, bool]:
    """(a value whose strings keep `limit` bytes each at most, and little more together; is anything missing)."""
    left, missing = limit + LEAST, False

    def walk(value: Any) -> Any:
        nonlocal left, missing
        if isinstance(value, str):
            value, short = cut(value, max(0, min(limit, left)))
            missing = missing or short
            left -= len(value) if value.isascii() else len(value.encode())
        elif isinstance(value, dict | list):
            # What is not a string (token ids, names) counts too: two bytes at least for each.
            most = max(left, 0) // 2 + 1
            missing = missing or len(value) > most
            if isinstance(value, list):
                return [walk(item) for item in value[:most]]
            return {cut(key, limit)[0]: walk(item) for key, item in islice(value.items(), most)}
        else:
            left -= 2
        return value

    return walk(value), missing
