"""Event streams: any cutting gives the same events and the same bytes, and a finished stream can always be read.

An input is four chunk lengths that repeat, one byte of options, and the stream.
"""

from __future__ import annotations

import json
import re
from itertools import cycle

from gateway.protocol import assembled, sse

_HEAD = 5
_SINGLE = 100  # bytes that are fed one by one
_MANY = 512  # bytes that may come in pieces of any length; of a longer stream none is shorter than 16


def check(data: bytes) -> None:
    """Raises whatever is wrong."""
    lengths, options = data[:4], data[4]
    stream = data[_HEAD:]
    if options == 255:  # what costs too much with length shows
        stream, lengths = stream * 8, bytes(length | 0x80 for length in lengths)
    if len(stream) > _MANY:
        lengths = bytes(length | 0x10 for length in lengths)
    chunks = cut(stream, lengths)
    expected = reference(stream)
    for pieces in (chunks, [stream], _bytes(stream)):
        splitter = sse.Splitter()
        events = [(event.name, event.data) for piece in pieces for event in splitter.feed(piece)]
        assert events == expected, "the cutting changed the events"
    _check_gate(stream, chunks)
    _check_usage_taken_out(stream, chunks)
    for kind in (True, False):
        whole = assembled.assemble(stream, kind)
        if _sound(stream, kind):  # of a broken one the quick reading may take more than the thorough one
            assert whole == assembled._anything(stream, kind), "the quick reading and the thorough one differ"
        assert all(isinstance(text, str) for text in whole.texts)
        whole.text.encode()
        for name in (whole.finish_reason, whole.response_id, whole.error):
            assert name is None or name.encode() is not None
    sse.has_content(stream)
    sse.is_last(stream)


def _sound(stream: bytes, events: bool) -> bool:
    """Whether all of it is JSON, as far as it is said to be."""
    said = [data for _, data in reference(stream + b"\n\n") if data != sse.DONE] if events else [stream]
    try:
        return events == stream.startswith(b"data: ") and all(isinstance(json.loads(data), dict) for data in said)
    except (ValueError, RecursionError):
        return False


def _check_gate(stream: bytes, chunks: list[bytes]) -> None:
    """Without usage to take out, what goes through is the stream, late by no more than its last event."""
    gate, out, fed = sse.Gate(False), 0, 0
    for chunk in chunks:
        through = gate.feed(chunk)
        assert through == stream[out : out + len(through)], "not the engine's bytes"
        out, fed = out + len(through), fed + len(chunk)
        assert fed - out <= sse.MAX_HELD, "more is held than may be"
        assert not through or fed == out or through.endswith(_ENDS), "half an event went through"
    rest = gate.rest()
    assert rest == stream[out:]
    assert gate.rest() == b""


_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")


def _check_usage_taken_out(stream: bytes, chunks: list[bytes]) -> None:
    gate = sse.Gate(True)
    through = b"".join(map(gate.feed, chunks)) + gate.rest()
    if b'"usage"' not in stream:
        assert through == stream, "something else than usage was taken out"
        return
    once = sse.Gate(True)
    whole = once.feed(stream) + once.rest()
    assert reference(through + b"\n\n") == reference(whole + b"\n\n"), "the cutting changed what is taken out"
    left = iter(reference(stream + b"\n\n"))
    assert all(event in left for event in reference(through + b"\n\n")), "an event that the engine never sent"


def cut(stream: bytes, lengths: bytes) -> list[bytes]:
    """The stream in chunks of these lengths, again and again; 0 is 256."""
    chunks, at = [], 0
    for length in cycle(lengths):
        if at >= len(stream):
            return chunks
        chunks.append(stream[at : at + (length or 256)])
        at += length or 256
    return chunks


def _bytes(stream: bytes) -> list[bytes]:
    return [stream[i : i + 1] for i in range(min(len(stream), _SINGLE))] + [stream[_SINGLE:]]


def reference(stream: bytes) -> list[tuple[bytes, bytes]]:
    """The events, straight from the HTML standard's parsing rules, on the whole stream at once."""
    events: list[tuple[bytes, bytes]] = []
    name, data = b"", []
    for line in re.split(rb"\r\n|\n|\r", stream)[:-1]:
        if not line:
            if data:
                events.append((name, b"\n".join(data)))
            name, data = b"", []
            continue
        field, _, value = line.partition(b":")
        value = value[1:] if value.startswith(b" ") else value
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
    return events


_EVENTS: tuple[str, ...] = (
    'data: {"id":"c1","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}',
    'data: {"choices":[{"index":1,"delta":{"content":"温 x"},"finish_reason":"stop"}]}',
    'data: {"id":"c1","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}',
    'data: {"choices":[{"index":0,"text":"a","finish_reason":null}],"usage":{"completion_tokens":1}}',
    'data: {"error":{"message":"m","code":500,"type":"x"}}',
    'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"hi"}',
    'event: response.completed\ndata: {"type":"response.completed","response":{"id":"r","status":"completed",'
    '"output":[{"content":[{"type":"output_text","text":"hi"}]}],"usage":{"output_tokens":1}}}',
    'event: message_start\ndata: {"type":"message_start","message":{"id":"m","usage":{"input_tokens":1}}}',
    'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"type":"text_delta","text":"x"}}',
    'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":2}}',
    'event: message_stop\ndata: {"type":"message_stop"}',
    "data: [DONE]",
    ": keep-alive",
    "data: two\ndata: lines\nid: 3\nretry: 9",
    "data",
)


def seeds() -> list[bytes]:
    """Streams of the four protocols, with each of the three line ends, in chunks large and small."""
    found = []
    for i, ending in enumerate(("\n", "\r\n", "\r")):
        whole = "".join(event + "\n\n" for event in _EVENTS).replace("\n", ending).encode()
        found += [bytes((i + 1, 7, 100, 0, 0)) + whole, bytes((1, 1, 1, 1, 0)) + whole[:-1]]
        found += [b"\5\1\2\3\0" + f"{event}\n\n".replace("\n", ending).encode() for event in _EVENTS]
    return [*found, b"\1\1\1\1\xffdata: a\r\r\n\n\r\n\r\ndata: b\n\r\n"]


WORDS = sorted(
    {"data: ", "event: ", "\n\n", "\r\n\r\n", "\r\r", "\r\n", "\n\r", "[DONE]", ": ", "null", "\u2028", "\ufeff"}
    | {
        f'"{name}":'
        for name in (
            "choices",
            "usage",
            "delta",
            "content",
            "index",
            "text",
            "error",
            "type",
            "id",
            "response",
            "message",
        )
    }
    | {'"choices":[]', '"usage":{}', '"type":"response.', "1e999", "[[", "{}", '"message_stop"', "99999999999999999999"}
)
