"""Reading what was said: the messages of a request and the text of a reply, in any protocol, cut to what a log keeps.

Pure and total: bytes that cannot be read give nothing instead of an error. Knows JSON and the protocols' shapes; knows
nothing about rows.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import Any, Final

import msgspec

from gateway.log.exchange import RawExchange
from gateway.protocol.assembled import Assembled, assemble

MESSAGE_LIMIT: Final = 16 * 1024  # bytes kept of one message, and of the reply's text
_MANY: Final = 16  # all messages of a row together keep about this many times the limit of one
_LEAST: Final = 256


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


class _RawBody(msgspec.Struct):
    """Chat as nearly everybody sends it: one pass, and no text is decoded that will not be kept."""

    messages: list[msgspec.Raw]
    instructions: None = None
    system: None = None
    input: None = None
    prompt: None = None


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
_raw_body = msgspec.json.Decoder(_RawBody)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_long_body = msgspec.json.Decoder(_LongBody)
_encoder = msgspec.json.Encoder()


def read_messages(request: bytes, limit: int = MESSAGE_LIMIT) -> tuple[str | None, bool]:
    """(JSON array of messages, whether any was cut); None when there is nothing to read.

    The messages of a short request keep the client's own bytes.
    """
    try:
        if len(request) <= limit:
            body = _body.decode(request)
            if _starts(body.messages, b"[") and not (_present(body.instructions) or _present(body.system)):
                return bytes(body.messages).decode(), False
        if (shortened := _newest_first(request, limit)) is not None:
            return shortened
        said = _said(_long_body.decode(request))
        if not said:
            return None, False
        share = min(limit, max(_LEAST, _MANY * limit // len(said)))
        messages, missing = zip(*(_shorten(message, share) for message in said), strict=True)
        return _encoder.encode(messages).decode(), any(missing)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None, False


def _newest_first(request: bytes, limit: int) -> tuple[str, bool] | None:
    """Of a long chat the newest messages, `limit` bytes of them, after the beginning of the first one; `omitted` counts
    what lies between. Those are on record already, as the newest of their own exchanges. None: not such a chat.
    """
    try:
        messages = _raw_body.decode(request).messages
    except msgspec.MsgspecError:
        return None
    kept: list[Any] = []
    left, missing = limit, False
    for message in reversed(messages):
        size = len(memoryview(message))
        if size > left:
            missing = True
            if left > _LEAST:
                kept.append(_beginning(message, left))
            break
        kept.append(message)
        left -= size
    omitted = len(messages) - len(kept)
    if omitted:
        kept += ([{"omitted": omitted - 1}] if omitted > 1 else []) + [_beginning(messages[0], _LEAST)]
    return _encoder.encode(kept[::-1]).decode(), missing


def _beginning(message: msgspec.Raw, limit: int) -> Any:
    """A message whose texts keep `limit` bytes each; one that is an object is not decoded for it."""
    try:
        fields = _fields.decode(message)
    except msgspec.MsgspecError:
        return _shorten(msgspec.json.decode(message), limit)[0]
    for name, value in fields.items():
        if len(memoryview(value)) > limit + 2:
            whole = _starts(value, b'"')
            fields[name] = msgspec.Raw(
                _cut_raw(bytes(memoryview(value)[: limit + 1]))
                if whole
                else _encoder.encode(_shorten(msgspec.json.decode(value), limit)[0])
            )
    return fields


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
