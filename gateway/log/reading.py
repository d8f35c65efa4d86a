"""Reading what was said: the messages of a request and the text of a reply, in any protocol, cut to what a log keeps.

Pure and total: bytes that cannot be read give nothing instead of an error. Knows JSON and the protocols' shapes; knows
nothing about rows.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from gateway.log.cutting import cut_chat, cut_value
from gateway.log.exchange import RawExchange
from gateway.protocol.assembled import Assembled, assemble

MESSAGE_LIMIT: Final = 16 * 1024  # bytes kept of one message, of a chat, and of the reply's text


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


_body = msgspec.json.Decoder(_Body)
_ROLES: Final = (  # of a field that is not a list of messages, in the order in which they are said
    ("instructions", b"system"), ("system", b"system"), ("messages", b"user"), ("input", b"user"), ("prompt", b"user"),
)  # fmt: skip
_CHATS: Final = ("messages", "input")


def read_messages(
    request: bytes, limit: int = MESSAGE_LIMIT, chat: msgspec.Raw | None = None
) -> tuple[bytes | None, bool]:
    """(JSON array of messages, whether any was cut); None when there is nothing to read.

    Messages keep the client's own bytes, those of a short request and the newest of a long chat. `chat` is the array of
    messages, where all that was said is in it and somebody has found it already, in valid UTF-8.
    """
    try:
        if chat is not None and len(request) > limit and _starts(chat, b"["):
            return cut_chat(bytes(chat), limit)
        messages, missing = _read(_body.decode(request), limit)
        if messages is not None and not messages.isascii():
            messages.decode()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None, False
    return messages, missing


def _read(body: _Body, limit: int) -> tuple[bytes | None, bool]:
    said, missing = list[bytes](), False
    for name, role in _ROLES:
        raw: msgspec.Raw = getattr(body, name)
        if _starts(raw, b"null") or not memoryview(raw):
            continue
        if name in _CHATS and _starts(raw, b"["):
            messages, short = cut_chat(bytes(raw), limit)
        else:
            content, short = cut_value(bytes(raw), limit)
            messages = b'[{"role":"%b","content":%b}]' % (role, content)
        missing = missing or short
        if messages[1:-1].strip():
            said.append(messages)
    if not said:
        return None, False
    return said[0] if len(said) == 1 else b"[%b]" % b",".join([messages[1:-1] for messages in said]), missing


def _starts(raw: msgspec.Raw, prefix: bytes) -> bool:
    return bytes(memoryview(raw)[: len(prefix)]) == prefix


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
