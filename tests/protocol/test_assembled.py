"""Understanding a finished reply: the four protocols, both engines, streamed or not, whole or broken."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.protocol import assembled
from gateway.protocol.assembled import assemble
from tests import vllm_shapes as shapes

TEXTS = ("你好 \u2028 world", "second, “quoted” {}[]")
BODY: dict[str, Any] = {"model": "m", "stream_options": {"include_usage": True}}
ENDINGS = {  # how each protocol says that the text was over, and that its limit was met
    "/v1/chat/completions": ("stop", "length"),
    "/v1/completions": ("stop", "length"),
    "/v1/responses": ("completed", "max_output_tokens"),
    "/v1/messages": ("end_turn", "max_tokens"),
}
IDS = {"/v1/completions": "cmpl-7", "/v1/responses": "resp_7"}


def choices(path: str, limit: int | None = None) -> list[shapes.Choice]:
    """Two choices where the protocol has several."""
    count = 2 if path in ("/v1/chat/completions", "/v1/completions") else 1
    return [shapes.told(text, {}, limit) for text in TEXTS[:count]]


@pytest.mark.parametrize("limit", [None, 2])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ENDINGS)
def test_every_protocol(path: str, stream: bool, limit: int | None) -> None:
    said = choices(path, limit)
    whole, events, _ = shapes.GENERATION[path]
    body = b"".join(events(BODY, "7", said, 3)) if stream else shapes.dumps(whole(BODY, "7", said, 3))
    found = assemble(body, stream)
    assert found.texts == [choice.text for choice in said]
    assert found.text == "\n\n".join(choice.text for choice in said)
    assert found.finish_reason == ENDINGS[path][limit is not None]
    assert found.response_id == IDS.get(path, "chatcmpl-7")
    spent = sum(len(choice.tokens) for choice in said)
    assert found.usage is not None
    assert (3, spent) in (
        (found.usage.get("prompt_tokens"), found.usage.get("completion_tokens")),
        (found.usage.get("input_tokens"), found.usage.get("output_tokens")),
    )
    assert (found.error, found.done) == (None, stream)


@pytest.mark.parametrize("path", ENDINGS)
def test_a_stream_that_broke_off_keeps_what_it_said(path: str) -> None:
    said = choices(path)[:1]
    whole = b"".join(shapes.GENERATION[path][1](BODY, "7", said, 3))
    for length in range(0, len(whole) - 30, 7):
        found = assemble(whole[:length], stream=True)
        assert said[0].text.startswith(found.text)
        assert (found.done, found.error) == (False, None)
    assert found.text


LLAMA = (
    (  # completions: the usage comes unasked, on the last event, and the id is chat's
        b'data: {"id":"chatcmpl-1","choices":[{"index":0,"text":"a","finish_reason":null}]}\n\n'
        b'data: {"id":"chatcmpl-1","choices":[{"index":0,"text":"","finish_reason":"length"}],'
        b'"usage":{"completion_tokens":1,"prompt_tokens":2},"timings":{"n":1}}\n\ndata: [DONE]\n\n',
        ("a", "length", {"completion_tokens": 1, "prompt_tokens": 2}, "chatcmpl-1", True),
    ),
    (  # chat: the first content is null
        b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"role":"assistant","content":null}}]}\n\n'
        b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\n'
        b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"timings":{}}\n\n',
        ("Hi", "stop", None, "chatcmpl-1", False),
    ),
    (  # messages: the cached part of the prompt is counted apart
        b'event: message_start\ndata: {"type":"message_start","message":{"id":"chatcmpl-1","type":"message",'
        b'"content":[],"usage":{"input_tokens":1,"cache_read_input_tokens":30,"output_tokens":0}}}\n\n'
        b'event: content_block_delta\ndata: {"type":"content_block_delta",'
        b'"delta":{"type":"text_delta","text":"Hi"}}\n\n'
        b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},'
        b'"usage":{"output_tokens":4}}\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n',
        (
            "Hi",
            "end_turn",
            {"input_tokens": 1, "cache_read_input_tokens": 30, "output_tokens": 4},
            "chatcmpl-1",
            True,
        ),
    ),
)


@pytest.mark.parametrize(("stream", "expected"), LLAMA)
def test_the_small_engine(stream: bytes, expected: tuple[Any, ...]) -> None:
    found = assemble(stream, stream=True)
    assert (found.text, found.finish_reason, found.usage, found.response_id, found.done) == expected


@pytest.mark.parametrize(
    ("body", "stream", "code"),
    [
        (b'{"error":{"message":"no","type":"BadRequestError","param":null,"code":400}}', False, "400"),
        (b'{"error":{"message":"no","type":"invalid_request_error","code":null}}', False, "invalid_request_error"),
        (b'{"type":"error","error":{"type":"NotFoundError","message":"no"}}', False, "NotFoundError"),
        (b'data: {"choices":[]}\n\ndata: {"error":{"code":"upstream_reset"}}\n\n', True, "upstream_reset"),
        (b'event: error\ndata: {"type":"error","error":{"type":"internal_error"}}\n\n', True, "internal_error"),
        (b'data: {"type":"response.failed","response":{"error":{"code":"server_error"}}}\n\n', True, "server_error"),
        (b'data: {"error":{"code":500}}\n\ndata: [DONE]\n\n', True, "500"),
    ],
)  # fmt: skip
def test_errors(body: bytes, stream: bool, code: str) -> None:
    assert assemble(body, stream).error == code


def test_thinking_is_not_the_text() -> None:
    output = [
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hmm"}]},
        {"type": "message", "content": [{"type": "output_text", "text": "Hi"}]},
    ]
    assert assemble(shapes.dumps({"object": "response", "id": "r", "output": output}), stream=False).text == "Hi"
    blocks = [{"type": "thinking", "thinking": "hmm"}, {"type": "text", "text": "Hi"}]
    assert assemble(shapes.dumps({"type": "message", "content": blocks}), stream=False).text == "Hi"


def test_a_tool_call_has_no_text() -> None:
    call = shapes.tool_call({"name": "f"}, "x", 0)
    for path in ("/v1/chat/completions", "/v1/messages"):
        whole, events, _ = shapes.GENERATION[path]
        plain = assemble(shapes.dumps(whole(BODY, "7", [call], 3)), stream=False)
        streamed = assemble(b"".join(events(BODY, "7", [call], 3)), stream=True)
        assert plain.text == streamed.text == ""
        assert plain.finish_reason == streamed.finish_reason
        assert "tool" in (plain.finish_reason or "")


# Replies of engines gone wrong: the known names in every place, holding anything.
_KEYS = st.sampled_from(
    ["type", "choices", "delta", "message", "response", "content", "text", "index", "usage", "error", "code", "id"]
) | st.sampled_from(["output", "object", "finish_reason", "status", "incomplete_details", "stop_reason", "data"])
_LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 3), st.floats(allow_nan=False), st.sampled_from(
        ["message", "response", "response.completed", "response.output_text.delta", "content_block_delta", "x", ""]
    )
)  # fmt: skip
_JSON = st.recursive(_LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(_KEYS, v, max_size=4), max_leaves=12)


@given(st.lists(st.dictionaries(_KEYS, _JSON, max_size=5), max_size=3), st.booleans())
def test_nothing_makes_it_raise(documents: list[Any], stream: bool) -> None:
    bodies = [shapes.dumps(document) for document in documents]
    found = assemble(b"".join(b"data: " + b + b"\n\n" for b in bodies) if stream else b"".join(bodies[:1]), stream)
    assert all(isinstance(text, str) for text in found.texts)
    assert isinstance(found.usage, dict | None)
    assert isinstance(found.finish_reason, str | None)
    assert isinstance(found.response_id, str | None)


@given(st.binary(max_size=60), st.booleans())
def test_no_bytes_make_it_raise(body: bytes, stream: bool) -> None:
    assemble(body, stream)
    assemble(b"data: " + b"[" * 5000 + b"\n\n", stream)


_CHOICE = st.fixed_dictionaries(
    {},
    optional={
        "index": st.integers(0, 2),
        "delta": st.fixed_dictionaries({}, optional={"content": st.none() | st.text(max_size=9), "role": st.just("a")}),
        "text": st.text(max_size=9),
        "finish_reason": st.sampled_from([None, "stop", "length"]),
        "logprobs": st.none(),
    },
)
_CHUNK = st.fixed_dictionaries(
    {"choices": st.lists(_CHOICE, max_size=2)},
    optional={
        "id": st.sampled_from(["chatcmpl-1", ""]),
        "usage": st.none() | st.just({"total_tokens": 3}) | st.just({"prompt_tokens": 1}),
        "error": st.just({"code": "upstream_reset"}),
    },
)


@given(st.lists(_CHUNK, max_size=5), st.booleans(), st.booleans())
@example([{"choices": [{"delta": {"content": "\n\ndata: x"}}]}], False, True)
def test_the_quick_reading_of_a_chat_is_the_thorough_one(chunks: list[Any], done: bool, ascii_: bool) -> None:
    events = [f"data: {json.dumps(chunk, ensure_ascii=ascii_)}\n\n" for chunk in chunks]
    stream = "".join(events + ["data: [DONE]\n\n"] * done).encode()
    thorough = assembled._anything(stream, stream=True)
    assert assemble(stream, stream=True) == thorough
    for chunk in chunks:
        for choice in chunk["choices"]:
            choice["message"] = choice.pop("delta", {})
        body = json.dumps(chunk, ensure_ascii=ascii_).encode()
        assert assemble(body, stream=False) == assembled._anything(body, stream=False)


def test_a_chat_as_engines_send_it_is_read_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(body: bytes, stream: bool) -> None:
        raise AssertionError("read thoroughly")

    monkeypatch.setattr(assembled, "_anything", slow)
    chunk = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
    usage = b'data: {"id":"c","choices":[],"usage":{"total_tokens":3}}\n\n'
    found = assemble(chunk * 2 + usage + b"data: [DONE]\n\n", stream=True)
    assert found == assembled.Assembled(["aa"], None, {"total_tokens": 3}, "c", None, done=True)
