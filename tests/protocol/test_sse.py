"""Event streams: any cutting gives the same events and the same bytes, whatever ends the lines."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.protocol import sse

# Written straight from the HTML standard's parsing rules, on the whole stream at once.


def reference(stream: bytes) -> list[tuple[bytes, bytes]]:
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


_TEXTS = st.one_of(
    st.sampled_from(
        ["", "x", " two", "[DONE]", '{"a":1}', ":", "data: no", "\u2028", "a\u2029b\x85\x0b\x0c\x1c", "温度😀"]
    ),
    st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=5),
)
_LINES = st.one_of(
    st.tuples(st.sampled_from(["data: ", "data:", "event: ", ": ", ":", "id: ", "retry: ", ""]), _TEXTS).map("".join),
    st.sampled_from(["data", "event", "", "", ""]),
)
_ENDS = st.sampled_from(["\n", "\r\n", "\r"])
_STREAMS = st.one_of(
    st.tuples(st.lists(_LINES, max_size=12), _ENDS).map(lambda p: "".join(line + p[1] for line in p[0])),
    st.lists(st.tuples(_LINES, _ENDS).map("".join), max_size=12).map("".join),  # every line ends as it likes
).map(str.encode)
_CUTS = st.lists(st.integers(0, 10_000), max_size=12)


def cut(stream: bytes, at: list[int]) -> list[bytes]:
    """The stream in pieces, some of them empty."""
    edges = sorted([0, *(point % (len(stream) + 1) for point in at), len(stream)])
    return [stream[a:b] for a, b in pairwise(edges)]


@given(_STREAMS, _CUTS)
@example(b"data: a\r\rdata: b\r\r", [8])
@example(b"data: a\r\n\r\ndata: b\r\n\r\n", [8, 9, 10])
@example(b"event: x\n\ndata: y\n\n", [])
def test_any_cutting_gives_the_same_events(stream: bytes, at: list[int]) -> None:
    splitter = sse.Splitter()
    events = [event for piece in cut(stream, at) for event in splitter.feed(piece)]
    assert [(event.name, event.data) for event in events] == reference(stream)


@given(_STREAMS)
def test_byte_by_byte(stream: bytes) -> None:
    splitter = sse.Splitter()
    events = [event for i in range(len(stream)) for event in splitter.feed(stream[i : i + 1])]
    assert [(event.name, event.data) for event in events] == reference(stream)


def test_an_event_is_given_out_with_its_last_byte() -> None:
    for end in (b"\n", b"\r\n", b"\r"):
        splitter = sse.Splitter()
        assert splitter.feed(b"data: 1" + end) == []
        assert splitter.feed(end) == [sse.Event(b"", b"1")], end


# --- the gate

USAGE = b'{"id":"c","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}'
EVENTS = (
    b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}',
    b'data: {"choices":[{"index":0,"delta":{"content":"\xe4\xbd\xa0\xe2\x80\xa8"}}],"usage":null}',
    b'data: {"choices":[{"index":0,"text":"the word \\"usage\\" itself"}],"usage":{"total_tokens":1}}',
    b'data: {"choices":[],"usage":null}',
    b'data: {"choices":[],"prompt_filter_results":["usage"]}',
    b": keep-alive",
    b"event: ping\ndata: {}",
    b"data: [DONE]",
    b'data: {"error":{"message":"\\"usage\\"","code":500}}',
    b"data: not json usage",
)
DROPPED = (
    b"data: " + USAGE,
    b": comment\ndata: " + USAGE,
    b'data: {"choices": [],\ndata: "usage": {"total_tokens": 1}}',
)


@given(
    st.lists(st.sampled_from(EVENTS + DROPPED), max_size=8),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
    st.sampled_from([b"", b"data: {", b'data: {"choices":[]', b"\n"]),
    _CUTS,
    st.booleans(),
)
def test_the_gate_passes_every_byte_but_the_usage_event(
    events: list[bytes], end: bytes, tail: bytes, at: list[int], drop: bool
) -> None:
    def written(these: list[bytes]) -> bytes:
        return b"".join(event.replace(b"\n", end) + end + end for event in these)

    stream = written(events) + tail.replace(b"\n", end)
    kept = [event for event in events if not (drop and event in DROPPED)]
    gate, out = sse.Gate(drop), b""
    whole = {written(kept[:count]) for count in range(len(kept) + 1)}
    for piece in cut(stream, at):
        out += gate.feed(piece)
        if end != b"\r":  # CR CR LF may turn out to be CR and CR LF
            assert out.rstrip(b"\r\n") in {w.rstrip(b"\r\n") for w in whole}, "half an event was let through"
    assert out + gate.rest() == written(kept) + tail.replace(b"\n", end)


@given(_STREAMS, _CUTS)
def test_without_a_usage_event_the_gate_changes_nothing(stream: bytes, at: list[int]) -> None:
    for drop in (False, True):
        gate = sse.Gate(drop)
        out = b"".join(gate.feed(piece) for piece in cut(stream, at))
        assert stream.startswith(out)
        assert out + gate.rest() == stream


def test_whole_events_pass_at_once() -> None:
    for end in (b"\n\n", b"\r\n\r\n", b"\r\r"):
        for drop in (False, True):
            gate = sse.Gate(drop)
            assert [gate.feed(event + end) for event in EVENTS] == [event + end for event in EVENTS]
            assert gate.rest() == b""


def test_an_event_that_never_ends_is_not_held_for_ever() -> None:
    gate, out, piece = sse.Gate(True), 0, b"x" * 100_000
    for fed in range(1, 31):
        out += len(gate.feed(piece))
        assert fed * len(piece) - out <= sse.MAX_HELD
    assert out + len(gate.rest()) == 30 * len(piece)


def test_an_error_event() -> None:
    body = json.dumps({"error": {"code": "upstream_reset"}}).encode()
    for named, name in ((True, b"error"), (False, b"")):
        assert sse.Splitter().feed(sse.error_event(body, named)) == [sse.Event(name, body)]


@pytest.mark.parametrize(
    ("data", "last"),
    [
        (b"data: [DONE]\n\n", True),
        (b"data: {}\n\ndata: [DONE]\r\n\r\n", True),
        (b'event: message_stop\ndata: {"type":"message_stop"}\n\n', True),
        (b'event: response.completed\ndata: {"type":"response.completed","response":{"x":1}}\n\n', True),
        (b'data: {"choices":[{"delta":{"content":"[DONE]"}}]}\n\n', False),
        (b'event: message_delta\ndata: {"type":"message_delta"}\n\n', False),
        (b"event: response.output_text.done\ndata: {}\n\n", False),
        (b"", False),
    ],
)
def test_the_last_event(data: bytes, last: bool) -> None:
    assert sse.is_last(data) is last


# --- the first token


@pytest.mark.parametrize(
    ("event", "content"),
    [
        ({"choices": [{"delta": {"role": "assistant", "content": ""}}]}, False),
        ({"choices": [{"delta": {"role": "assistant", "content": None}}]}, False),
        ({"choices": [{"delta": {}, "finish_reason": "stop"}]}, False),
        ({"choices": [{"delta": {"content": "H"}}]}, True),
        ({"choices": [{"delta": {"content": '"'}}]}, True),
        ({"choices": [{"delta": {"content": "\u2028"}}]}, True),
        ({"choices": [{"delta": {"reasoning": "H"}}]}, True),
        ({"choices": [{"delta": {"tool_calls": [{"function": {"name": "f", "arguments": ""}}]}}]}, False),
        ({"choices": [{"delta": {"tool_calls": [{"function": {"arguments": "{"}}]}}]}, True),
        ({"choices": [{"text": ""}]}, False),
        ({"choices": [{"text": "H"}]}, True),
        ({"choices": [], "usage": {"total_tokens": 3}}, False),
        ({"type": "response.created", "response": {"output": [], "text": {"format": {"type": "text"}}}}, False),
        ({"type": "response.content_part.added", "part": {"type": "output_text", "text": ""}}, False),
        ({"type": "response.output_text.delta", "delta": "H"}, True),
        ({"type": "message_start", "message": {"content": [], "usage": {"input_tokens": 3}}}, False),
        ({"type": "content_block_start", "content_block": {"type": "text", "text": ""}}, False),
        ({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "H"}}, True),
        ({"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": "{"}}, True),
    ],
)
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_the_first_event_with_content(event: Any, content: bool, separators: tuple[str, str]) -> None:
    data = json.dumps(event, separators=separators, ensure_ascii=False).encode()
    assert sse.has_content(b"data: " + data + b"\n\n") is content
