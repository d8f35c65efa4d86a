"""Opening a request's envelope without reading the letter.

A body becomes `dict[str, msgspec.Raw]`: the top-level names are known, every value keeps its exact bytes until
somebody asks for it. What must hold for the whole body (size, UTF-8, depth, no name twice) is checked here, at C
speed. Knows JSON; knows nothing about which names matter, about presets or about engines.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from codecs import utf_8_decode
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from gateway.protocol.errors import InvalidRequest, OutOfRange, TooLarge

Fields = dict[str, msgspec.Raw]

MAX_BODY: Final = 16 * 1024 * 1024
MAX_DEPTH: Final = 64

_decoder = msgspec.json.Decoder(Fields)
_encoder = msgspec.json.Encoder()
_NAME: Final = re.compile(rb'("(?:[^"\\]|\\.)*+"):')
_PIECE: Final = 16 * 1024  # bytes
_EXPLAINED: Final = 256 * 1024  # bytes; to say what is wrong in a longer body would keep everybody else waiting
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))


def parse(body: bytes, max_body: int = MAX_BODY) -> Fields:
    """The top-level names of a JSON object and the bytes of their values, in the client's order.

    Raises TooLarge over `max_body` bytes, InvalidRequest for anything but one JSON object in UTF-8 with no name twice
    at the top level and at most 64 levels (the outer object is the first).
    """
    if len(body) > max_body:
        raise TooLarge(f"The body has {len(body)} bytes; at most {max_body} are allowed.")
    if not body:
        raise InvalidRequest("The body is empty; a JSON object was expected.", code="invalid_json")
    _check_utf8(body)
    try:
        fields = _decoder.decode(body)
    except RecursionError:
        raise _too_deep() from None
    except msgspec.ValidationError:
        raise InvalidRequest("The body must be a JSON object.", code="invalid_json") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _not_json(body, error) from None
    if _brackets_over(body, MAX_DEPTH) and deeper_than(body, MAX_DEPTH):
        raise _too_deep()
    _check_unique(body, fields)
    return fields


def encode(fields: Mapping[str, Any]) -> bytes:
    """Compact JSON; Raw values are copied as they are."""
    return _encoder.encode(fields)


def raw(value: Any) -> msgspec.Raw:
    """A value as it would stand in a body."""
    return msgspec.Raw(_encoder.encode(value))


def value(fields: Fields, name: str) -> Any:
    """The decoded value of one field; None when it is missing or null.

    Raises OutOfRange for a number no double holds.
    """
    raw = fields.get(name)
    return None if raw is None else decode(raw, name)


def decode(raw: msgspec.Raw, name: str) -> Any:
    """One value, decoded. Raises OutOfRange naming the field and the number that no double holds."""
    try:
        return msgspec.json.decode(raw)
    except RecursionError:
        raise _too_deep() from None
    except msgspec.DecodeError:
        text = bytes(memoryview(raw)[:40]).decode(errors="replace")
        raise OutOfRange(f"{name}: no double holds {text}.", param=name) from None


def show(value: object) -> str:
    """A decoded JSON value for a message, cut to 60 characters."""
    return json.dumps(value, ensure_ascii=False)[:60]


def deeper_than(body: bytes, depth: int) -> bool:
    """Whether valid JSON nests deeper than `depth`.

    Strings are cut out first, then each pass peels the innermost level off.
    """
    bare = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    brackets = b"".join(bare.split(b'"')[::2]).translate(None, _NOT_BRACKETS)
    for _ in range(depth):
        if not brackets:
            return False
        brackets = _peel(brackets)
    return bool(brackets)


def _brackets_over(body: bytes, most: int) -> bool:
    """Whether there are more opening brackets than `most`.

    `find` is memchr; `count` looks at every byte and costs 20 times that.
    """
    found = 0
    for bracket in (b"{", b"["):
        at = body.find(bracket)
        while at >= 0:
            found += 1
            if found > most:
                return True
            at = body.find(bracket, at + 1)
    return False


def _peel(brackets: bytes) -> bytes:
    # A space marks a level peeled in this pass, so that its parent waits for the next one.
    return brackets.replace(b"[]", b" ").replace(b"{}", b" ").replace(b" ", b"")


def _check_utf8(body: bytes) -> None:
    """Piece by piece: all at once would make a text of twice the size, and push as much out of the cache."""
    if body.isascii():
        return
    at, size, view = 0, len(body), memoryview(body)
    try:
        while at < size:
            at += utf_8_decode(view[at : at + _PIECE], "strict", at + _PIECE >= size)[1]
    except UnicodeDecodeError as error:
        at += error.start
        raise InvalidRequest(
            f"The body is not valid UTF-8: byte 0x{body[at]:02x} at position {at}.", code="invalid_utf8"
        ) from None


def _check_unique(body: bytes, fields: Fields) -> None:
    """Decoding keeps the last of two equal names, so a duplicate makes the compact form shorter."""
    compact = _encoder.encode(fields)
    if len(compact) == len(body):
        return
    squeeze = msgspec.json.format
    if len(squeeze(compact, indent=-1)) == len(squeeze(body, indent=-1)):
        return
    # Rare: a name written with escapes has another length too. A full parse of 15 MB would stop everybody for a second.
    twice = _twice(squeeze(body, indent=-1), fields)
    if twice is not None:
        raise InvalidRequest(f"The field {twice[:80]!r} appears twice.", code="duplicate_field", param=twice[:80])


def _twice(compact: bytes, fields: Fields) -> str | None:
    """The first top-level name with more than one value: where one value is skipped, something else must follow."""
    seen: set[str] = set()
    at = 0
    while name := _NAME.match(compact, at + 1):
        field = msgspec.json.decode(name[1], type=str)
        value = msgspec.json.format(bytes(fields[field]), indent=-1)
        at = name.end() + len(value)
        if field in seen or not compact.startswith(value, name.end()) or compact[at] not in b",}":
            return field
        seen.add(field)
    return None


def _pairs(body: bytes) -> list[tuple[str, Any]]:
    """The members of the outer object, as the standard library reads it: slower, and NaN and Infinity are numbers."""
    last: list[list[tuple[str, Any]]] = [[]]
    # The outer object is the last one to end. Integers of any length are floats here, for speed.
    json.loads(body.decode(), object_pairs_hook=lambda pairs: last.__setitem__(0, pairs), parse_int=float)
    return last[0]


def _not_json(body: bytes, error: Exception) -> InvalidRequest:
    """Why this is not JSON. The standard library takes NaN, Infinity and half surrogate pairs, so that these can be
    named.
    """
    reason = str(error).removeprefix("JSON is malformed: ")
    if len(body) > _EXPLAINED:
        return InvalidRequest(f"The body is not valid JSON: {reason}.", code="invalid_json")
    with contextlib.suppress(ValueError, RecursionError):
        for name, held in _pairs(body):
            if isinstance(held, float) and not math.isfinite(held):
                field = name[:80].encode(errors="replace").decode()  # half a pair could not be written in our answer
                return InvalidRequest(f"{field}: {show(held)} is not a JSON number.", code="out_of_range", param=field)
        halved = b"\\ud" in body.lower()
        reason = "a string holds half of a surrogate pair" if halved else "NaN and Infinity are not JSON numbers"
    return InvalidRequest(f"The body is not valid JSON: {reason}.", code="invalid_json")


def _too_deep() -> InvalidRequest:
    return InvalidRequest(f"The body nests deeper than {MAX_DEPTH} levels.", code="too_deep")
