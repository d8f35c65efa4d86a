"""Reading what was said: the messages of a request and the text of a reply, in any protocol, cut to what a log keeps.

Pure and total: bytes that cannot be read give nothing instead of an error. Knows JSON and the protocols' shapes; knows
nothing about rows.
"""

from __future__ import annotations

import re
from contextlib import suppress
from itertools import islice
from typing import Any, Final

import msgspec

from gateway.log.exchange import RawExchange
from gateway.protocol.assembled import Assembled, assemble

MESSAGE_LIMIT: Final = 16 * 1024  # bytes kept of one message, and of the reply's text
_MANY: Final = 16  # all messages of a row together keep about this many times the limit of one
_LEAST: Final = 256
_MARK: Final = b'{"role"'


def read_reply(exchange: RawExchange) -> Assembled:
    """The reply, assembled; of a body whose middle is missing, what its two ends still say."""
    body = b"".join(exchange.reply)
    if exchange.cut and not exchange.stream:
        return _salvage(body)
    return assemble(body, exchange.stream)


class _Body(msgspec.Struct):
    """Where the protocols keep what was said: chat, batch and messages in `messages`, others in `input` or `prompt`."""

    instructions: msgspec.Raw = msgspec.Raw()
    system: msgspec.Raw = msgspec.Raw()
    messages: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()


class _LongBody(msgspec.Struct):
    """The same, decoded at once: every further pass over 128 KB costs 30 us."""

    instructions: Any = None
    system: Any = None
    messages: Any = None
    input: Any = None
    prompt: Any = None


class _Message(msgspec.Struct):
    role: str
    content: Any


_body = msgspec.json.Decoder(_Body)
_array = msgspec.json.Decoder(list[msgspec.Raw])
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_long_body = msgspec.json.Decoder(_LongBody)
_encoder = msgspec.json.Encoder()


def read_messages(
    request: bytes, limit: int = MESSAGE_LIMIT, chat: msgspec.Raw | None = None
) -> tuple[bytes | None, bool]:
    """(JSON array of messages, whether any was cut); None when there is nothing to read.

    Messages keep the client's own bytes, those of a short request and the newest of a long chat. `chat` is the array of
    messages, where all that was said is in it and somebody has found it already, in valid UTF-8.
    """
    try:
        messages, missing = _read(request, limit, chat)
        if chat is None and messages is not None and not messages.isascii():
            messages.decode()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None, False
    return messages, missing


def _read(request: bytes, limit: int, chat: msgspec.Raw | None) -> tuple[bytes | None, bool]:
    if len(request) <= limit or chat is None:
        body = _body.decode(request)
        only = _starts(body.messages, b"[") and not (_present(body.instructions) or _present(body.system))
        chat = body.messages if only else None
    if chat is not None:
        messages = bytes(chat)
        if len(messages) <= limit and messages.startswith(b"["):
            return messages, False
        for split in (_by_marks, _one_by_one):
            with suppress(msgspec.MsgspecError):
                return _shortened(split(messages, limit), limit)
    said = _said(_long_body.decode(request))
    if not said:
        return None, False
    share = min(limit, max(_LEAST, _MANY * limit // len(said)))
    shortened, missing = zip(*(_shorten(message, share) for message in said), strict=True)
    return _encoder.encode(shortened), any(missing)


class _Chat(msgspec.Struct):
    """A long chat: the first message (b"" if it is the one that is cut), how many bytes lie between, the newest message
    that does not fit any more, and all after it, with commas.
    """

    first: bytes
    between: int
    cut: bytes
    newest: bytes


def _shortened(chat: _Chat, limit: int) -> tuple[bytes, bool]:
    """The newest messages, `limit` bytes of them, after the beginning of the first one; `omitted_bytes` says how much
    lies between. That is on record already, as the newest of its own exchanges.
    """
    between, cut, left = chat.between, chat.cut, limit - len(chat.newest)
    if chat.first and left <= _LEAST:
        between, cut = between + len(cut), b""
    older = (
        chat.first and _beginning(chat.first, _LEAST),
        b'{"omitted_bytes":%d}' % between if between else b"",
        cut and _beginning(cut, max(left, _LEAST)),
    )
    head = b",".join(filter(None, older))
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
        return _Chat(b"", 0, _message(messages[1:at]), newest)
    second = messages.find(_MARK, first + 1)
    return _Chat(_message(messages[1:second]), start - second, _message(messages[start:at]), newest)


def _message(piece: bytes) -> bytes:
    """One object, without the comma behind it. Raises MsgspecError for anything else."""
    message = piece.rstrip().removesuffix(b",")
    _fields.decode(message)
    return message


def _one_by_one(messages: bytes, limit: int) -> _Chat:
    """The same, for every array."""
    items = [bytes(item) for item in _array.decode(messages)]
    at, left = len(items), limit
    while at and len(items[at - 1]) <= left:
        at -= 1
        left -= len(items[at])
    newest = b",".join(items[at:])
    older = items[:at]
    return _Chat(b"".join(older[:-1][:1]), sum(map(len, older[1:-1])), b"".join(older[-1:]), newest)


def _beginning(message: bytes, limit: int) -> bytes:
    """A message whose texts keep `limit` bytes each; one that is an object is not decoded for it."""
    try:
        fields = _fields.decode(message)
    except msgspec.MsgspecError:
        return _encoder.encode(_shorten(msgspec.json.decode(message), limit)[0])
    for name, value in fields.items():
        if len(memoryview(value)) > limit + 2:
            whole = _starts(value, b'"')
            fields[name] = msgspec.Raw(
                _cut_raw(bytes(memoryview(value)[: limit + 1]))
                if whole
                else _encoder.encode(_shorten(msgspec.json.decode(value), limit)[0])
            )
    return _encoder.encode(fields)


def _cut_raw(start: bytes) -> bytes:
    """The beginning of a JSON string as a JSON string of its own: whole characters and whole escapes only."""
    whole = start.decode(errors="ignore")
    backslash = whole.rfind("\\", len(whole) - 12)
    if backslash >= 0:  # perhaps half an escape, or half a pair of them: let the last few go
        whole = whole[:backslash]
        whole = whole.rstrip("\\")
    return whole.encode() + b'"'


def _starts(raw: msgspec.Raw, prefix: bytes) -> bool:
    return bytes(memoryview(raw)[: len(prefix)]) == prefix


def _present(raw: msgspec.Raw) -> bool:
    return not _starts(raw, b"null") and bool(memoryview(raw))


def _said(body: _LongBody) -> list[Any]:
    """All messages of a request, one after the other; a plain text becomes the message of its role."""
    said: list[Any] = [_Message("system", part) for part in (body.instructions, body.system) if part is not None]
    for part in (body.messages, body.input):
        said += part if isinstance(part, list) else [] if part is None else [_Message("user", part)]
    return said if body.prompt is None else [*said, _Message("user", body.prompt)]


def _shorten(message: Any, limit: int) -> tuple[Any, bool]:
    """(a message whose strings keep `limit` bytes each at most, and little more together; is anything missing)."""
    left, missing = limit + _LEAST, False

    def walk(value: Any) -> Any:
        nonlocal left, missing
        if isinstance(value, str):
            value, short = cut(value, max(0, min(limit, left)))
            missing = missing or short
            left -= len(value) if value.isascii() else len(value.encode())
        elif isinstance(value, dict | list):
            most = (
                max(left, 0) // 2 + 1
            )  # what is not a string (token ids, names) counts too: two bytes at least for each
            missing = missing or len(value) > most
            if isinstance(value, list):
                return [walk(item) for item in value[:most]]
            return {cut(key, limit)[0]: walk(item) for key, item in islice(value.items(), most)}
        elif isinstance(value, _Message):
            return _Message(value.role, walk(value.content))
        else:
            left -= 2
        return value

    return walk(message), missing


def cut(text: str, limit: int) -> tuple[str, bool]:
    """(the first `limit` bytes of a text, whole characters only; whether anything is missing)."""
    if len(text) <= limit // 4:
        return text, False
    data = text[:limit].encode()
    short = data if len(data) <= limit else data[:limit].decode(errors="ignore").encode()
    return short.decode(), len(short) < len(data) or len(text) > limit


_ID: Final = re.compile(rb'"id"\s*:\s*"([^"\\]{1,128})"')
_TEXT: Final = re.compile(rb'"(?:content|text)"\s*:\s*"((?:[^"\\]|\\.)*+)')
_REASON: Final = re.compile(rb'"(?:finish_reason|stop_reason)"\s*:\s*"([^"\\]{1,64})"')
_USAGE: Final = re.compile(rb'"usage"\s*:\s*(\{[^{}]*+(?:\{[^{}]*+\}[^{}]*+)*+\})')


def _salvage(body: bytes) -> Assembled:
    """What a JSON body without its middle still says. Patterns, because it is no JSON any more."""
    result = Assembled(texts=[])
    if found := _ID.search(body):
        result.response_id = found[1].decode(errors="replace")
    if found := _TEXT.search(body):
        try:
            result.texts = [msgspec.json.decode(b'"' + found[1] + b'"')]
        except (msgspec.DecodeError, UnicodeDecodeError):
            result.texts = [found[1].decode(errors="replace")]
    if reasons := _REASON.findall(body):
        result.finish_reason = reasons[-1].decode(errors="replace")
    for usage in reversed(_USAGE.findall(body)):
        try:
            result.usage = msgspec.json.decode(usage, type=dict[str, Any])
            break
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
    return result
