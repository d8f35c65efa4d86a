"""The client over loopback: what is sent, what is read back, which failure is which error, when it asks again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway.evaluation.client import Client
from gateway.evaluation.wire import (
    Adjustment,
    Malformed,
    Refused,
    Unavailable,
    Unreachable,
    parse_adjusted,
    parse_params,
)

Answer = tuple[int, dict[str, str], Any]
COMPLETION = {
    "model": "engine-model",
    "choices": [
        {"index": 1, "message": {"content": "二"}, "finish_reason": "length"},
        {
            "index": 0,
            "message": {"content": "一"},
            "finish_reason": "stop",
            "logprobs": {
                "content": [
                    {
                        "token": "\ufffd",
                        "bytes": [228],
                        "logprob": -2.0,
                        "top_logprobs": [  # vLLM: the sampled token first, unsorted
                            {"token": "\ufffd", "bytes": [228], "logprob": -2.0},
                            {"token": "\ufffd", "bytes": [229], "logprob": -0.5},
                        ],
                    }
                ]
            },
        },
    ],
    "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
}


@asynccontextmanager
async def server(*answers: Answer) -> AsyncIterator[tuple[str, list[tuple[str, Any]]]]:
    """Answers each request with the next of `answers` (the last one for ever); yields its URL and what was asked."""
    asked: list[tuple[str, Any]] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next((int(line[15:]) for line in head.lower().splitlines() if line.startswith("content-length:")), 0)
        body = await reader.readexactly(length)
        asked.append((head, json.loads(body) if body else None))
        status, headers, reply = answers[min(len(asked), len(answers)) - 1]
        content = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        lines = [f"{key}: {value}" for key, value in {**headers, "content-length": str(len(content))}.items()]
        writer.write(
            ("\r\n".join([f"HTTP/1.1 {status} X", *lines, "connection: close"]) + "\r\n\r\n").encode() + content
        )
        await writer.drain()
        writer.close()

    listener = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with listener:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", asked


async def test_a_chat_says_what_it_was_asked_and_reads_back_everything() -> None:
    headers = {
        "X-Tempera-Exchange": "0190-x",
        "X-Tempera-Preset": "customer-service",
        "X-Tempera-Params": 'temperature=0.5, top_p="0.12345"',
        "X-Tempera-Adjusted": "temperature=(1.4 0.5);by=bound",
    }
    async with (
        server((200, headers, COMPLETION)) as (url, asked),
        Client(f"{url}/v1/", model="m", api_key="k") as client,
    ):
        reply = await client.chat([{"role": "user", "content": "你好"}], unit="u1", temperature=1.4, top_k=None)
    head, body = asked[0]
    assert head.startswith("POST /v1/chat/completions ")
    assert "authorization: bearer k" in head.lower()
    assert "x-unit-id: u1" in head.lower()
    assert body == {"model": "m", "messages": [{"role": "user", "content": "你好"}], "temperature": 1.4}
    assert reply.texts == ["一", "二"]
    assert [choice.finish_reason for choice in reply.choices] == ["stop", "length"]
    assert (reply.exchange, reply.preset, reply.usage.completion_tokens) == ("0190-x", "customer-service", 3)
    assert reply.params == {"temperature": 0.5, "top_p": 0.12345}
    assert reply.adjusted == {"temperature": Adjustment(1.4, 0.5, "bound")}
    (position,) = reply.choices[0].positions
    assert (position.sampled.key, [rival.key for rival in position.top]) == ("e4", ["e5", "e4"])


async def test_models_and_presets() -> None:
    models = {"data": [{"id": "a", "owned_by": "vllm"}, {"id": "b", "meta": {"n_params": 134515008}}]}
    presets = {"object": "list", "data": [{"name": "creative"}]}
    async with server((200, {}, models), (200, {}, presets)) as (url, _), Client(url) as client:
        assert [(model.id, model.parameters) for model in await client.models()] == [("a", None), ("b", 134515008)]
        assert await client.presets() == [{"name": "creative"}]


BUSY: Answer = (429, {"retry-after": "2"}, {"error": {"message": "slow down"}})
GONE: Answer = (503, {}, {"error": {"message": "draining", "code": "shutting_down"}})


@pytest.mark.parametrize(
    ("answers", "waits", "error"),
    [
        ([BUSY, GONE, (200, {}, COMPLETION)], [2.0, 1.0], None),
        ([GONE], [0.5, 1.0, 2.0, 4.0, 8.0], Unavailable),
        ([(503, {"x-should-retry": "false"}, {})], [], Unavailable),
        ([(429, {"retry-after": "3600"}, {})], [], Unavailable),
        ([(500, {}, b"oops")], [], Unavailable),
        ([(400, {}, {"error": {"message": "temperature: 0..2", "param": "temperature", "code": 400}})], [], Refused),
        ([(404, {}, {"detail": "Not Found"})], [], Refused),
        ([(200, {}, b"<html>")], [], Malformed),
        ([(200, {}, {"choices": "none"})], [], Malformed),
    ],
)
async def test_which_failure_is_which(answers: list[Answer], waits: list[float], error: type[Exception] | None) -> None:
    waited: list[float] = []

    async def pause(seconds: float) -> None:
        waited.append(seconds)

    async with server(*answers) as (url, asked), Client(url, pause=pause) as client:
        if error is None:
            assert (await client.chat([])).texts == ["一", "二"]
        else:
            with pytest.raises(error):
                await client.chat([])
    assert waited == waits
    assert len(asked) == len(waits) + 1


async def test_a_refusal_carries_what_the_server_said() -> None:
    said = {"error": {"message": "no such preset: x", "param": "preset", "code": "preset_not_found"}}
    async with server((404, {}, said)) as (url, _), Client(url) as client:
        with pytest.raises(Refused, match="404 no such preset: x") as raised:
            await client.chat([])
    assert (raised.value.status, raised.value.code, raised.value.param) == (404, "preset_not_found", "preset")


async def test_nothing_there() -> None:
    async with server((200, {}, {})) as (url, _):
        pass
    async with Client(url) as client:
        with pytest.raises(Unreachable, match=url):
            await client.models()


@pytest.mark.parametrize("url", ["localhost:8001", "ftp://host", "http://"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(ValueError, match="base_url"):
        Client(url)


@pytest.mark.parametrize(
    ("parse", "header", "value"),
    [
        (parse_params, "", {}),
        (parse_params, 'a=1, b=-0.5,c="x, \\"y\\""', {"a": 1.0, "b": -0.5, "c": 'x, "y"'}),
        (parse_params, "flag, off=?0", {"flag": True, "off": False}),
        (parse_adjusted, "guided_json=(\"x\");by=ignored", {"guided_json": Adjustment("x", None, "ignored")}),
        (parse_adjusted, "n=(20 16);by=bound, top_p=(2.0 1.0);by=pin", {
            "n": Adjustment(20.0, 16.0, "bound"), "top_p": Adjustment(2.0, 1.0, "pin"),
        }),
    ],
)  # fmt: skip
def test_header_dictionaries(parse: Callable[[str], object], header: str, value: object) -> None:
    assert parse(header) == value


@pytest.mark.parametrize("header", ["=1", "a=(1", "a=1 b=2", "a=1,,b"])
def test_a_header_that_is_no_dictionary(header: str) -> None:
    with pytest.raises(Malformed):
        parse_params(header)
