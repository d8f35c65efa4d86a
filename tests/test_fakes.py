"""The fake engine itself: its shapes against the official client, its records, its sampler, its faults."""

from __future__ import annotations

import asyncio
import http.client
import json
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.fakes import FakeEngine, Fault
from tests.vllm_shapes import distribution, pieces

TEXT = '你好，世界。\u2028Line two 👩‍👩‍👧 "quoted" \\ end'
ASK: Any = [{"role": "user", "content": "Say it."}]
CHAT = "/v1/chat/completions"


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    with FakeEngine.in_thread(models=("alpha", "beta"), text=TEXT) as engine:
        yield engine


def client_of(engine: FakeEngine) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{engine.url}/v1", api_key=engine.api_key or "none", max_retries=0, timeout=5)


def post(engine: FakeEngine, path: str, body: Any, method: str = "POST") -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=5)
    connection.request(method, path, body if isinstance(body, bytes) else json.dumps(body))
    reply = connection.getresponse()
    try:
        return reply.status, dict(reply.getheaders()), reply.read()
    finally:
        connection.close()


def events_of(stream: bytes) -> list[Any]:
    lines = [line.removeprefix(b"data: ") for line in stream.split(b"\n") if line.startswith(b"data: ")]
    return [line.decode() if line == b"[DONE]" else json.loads(line) for line in lines]


def test_chat_and_its_stream_say_the_same(engine: FakeEngine) -> None:
    client = client_of(engine)
    whole = client.chat.completions.create(model="beta", messages=ASK, logprobs=True, top_logprobs=3)
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason, whole.model) == (TEXT, "stop", "beta")
    assert whole.usage is not None
    assert whole.usage.completion_tokens == len(pieces(TEXT))
    entries = whole.choices[0].logprobs.content
    assert entries
    assert "".join(e.token for e in entries) == TEXT
    assert {len(e.top_logprobs) for e in entries} == {3}
    options: Any = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(model="beta", messages=ASK, **options))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == TEXT
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage.model_copy(update={"prompt_tokens_details": None})


def test_stream_bytes_are_vllms(engine: FakeEngine) -> None:
    status, headers, raw = post(engine, CHAT, {"messages": ASK, "stream": True})
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert TEXT.encode() not in raw
    assert "\u2028".encode() in raw
    events = events_of(raw)
    assert events[-1] == "[DONE]"
    assert "usage" not in events[-2]
    assert raw == post(engine, CHAT, {"messages": ASK, "stream": True})[2]
    plain = [post(engine, CHAT, {"messages": ASK})[2] for _ in range(2)]
    assert plain[0] == plain[1]
    assert TEXT.split()[0].encode() in plain[0]


async def test_the_async_client_in_the_same_loop() -> None:
    async with FakeEngine(text=TEXT) as engine:
        client = openai.AsyncOpenAI(base_url=f"{engine.url}/v1", api_key="none", max_retries=0)
        whole = await client.chat.completions.create(model="smollm2", messages=ASK)
        stream = await client.chat.completions.create(model="smollm2", messages=ASK, stream=True)
        streamed = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        completed = await client.completions.create(model="smollm2", prompt="x", max_tokens=99)
        answered = await client.responses.create(model="smollm2", input="x")
        await client.close()
    assert TEXT == whole.choices[0].message.content == streamed == completed.choices[0].text == answered.output_text


def test_completions(engine: FakeEngine) -> None:
    client = client_of(engine)
    cut = client.completions.create(model="alpha", prompt="Once", n=2, max_tokens=3, logprobs=2)
    assert [c.text for c in cut.choices] == ["".join(pieces(TEXT)[:3])] * 2
    assert {c.finish_reason for c in cut.choices} == {"length"}
    assert [c.index for c in cut.choices] == [0, 1]
    assert cut.choices[0].logprobs is not None
    assert cut.choices[0].logprobs.text_offset == [0, 1, 2]
    assert len(cut.choices[0].logprobs.top_logprobs[0]) == 2
    many: Any = client.completions.create(model="alpha", prompt=["a", "b"], max_tokens=99, stream=True)
    texts = Counter[int]()
    for chunk in many:
        texts[chunk.choices[0].index] += len(chunk.choices[0].text)
    assert texts == {0: len(TEXT), 1: len(TEXT)}
    assert client.completions.create(model="alpha", prompt="x", max_tokens=99, stop="世").choices[0].text == "你好，"


def test_responses(engine: FakeEngine) -> None:
    client = client_of(engine)
    whole = client.responses.create(model="alpha", input="Say it.", temperature=0.5)
    assert (whole.output_text, whole.status, whole.temperature) == (TEXT, "completed", 0.5)
    assert client.responses.retrieve(whole.id).output_text == TEXT
    assert client.responses.cancel(whole.id).status == "cancelled"
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_none")
    events = list(client.responses.create(model="alpha", input="Say it.", stream=True))
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == TEXT
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert events[-1].response.output_text == TEXT
    short = client.responses.create(model="alpha", input="Say it.", max_output_tokens=2)
    assert short.status == "incomplete"
    assert short.incomplete_details.reason == "max_output_tokens"


def test_messages(engine: FakeEngine) -> None:
    body = {"model": "alpha", "max_tokens": 99, "messages": ASK, "system": "Be kind."}
    whole = json.loads(post(engine, "/v1/messages", body)[2])
    assert (whole["content"], whole["stop_reason"]) == ([{"type": "text", "text": TEXT}], "end_turn")
    raw = post(engine, "/v1/messages", body | {"stream": True})[2]
    events = events_of(raw)
    assert [e["type"] for e in events[:2]] == ["message_start", "content_block_start"]
    assert [e["type"] for e in events[-3:]] == ["content_block_stop", "message_delta", "message_stop"]
    assert "".join(e["delta"]["text"] for e in events if e["type"] == "content_block_delta") == TEXT
    assert raw.startswith(b"event: message_start\ndata: {")
    assert raw.count(b"event: ") == len(events)
    tool = {"name": "look", "input_schema": {"type": "object"}}
    called = json.loads(post(engine, "/v1/messages", body | {"tools": [tool]})[2])
    assert called["content"][0]["name"] == "look"
    assert called["stop_reason"] == "tool_use"
    status, _, refused = post(engine, "/v1/messages", body | {"model": "gamma"})
    assert status == 404
    assert json.loads(refused)["type"] == "error"


def test_tools_are_called(engine: FakeEngine) -> None:
    client = client_of(engine)
    tools: Any = [{"type": "function", "function": {"name": "天气", "parameters": {"type": "object"}}}]
    whole = client.chat.completions.create(model="alpha", messages=ASK, tools=tools).choices[0]
    call: Any = (whole.message.tool_calls or [])[0]
    assert whole.finish_reason == "tool_calls"
    assert json.loads(call.function.arguments) == {"echo": "user: Say it."}
    with client.chat.completions.stream(model="alpha", messages=ASK, tools=tools) as stream:
        final: Any = stream.get_final_completion().choices[0]
    assert final.message.tool_calls[0].id == call.id
    assert final.message.tool_calls[0].function.arguments == call.function.arguments


def test_routes_without_sampling(engine: FakeEngine) -> None:
    client = client_of(engine)
    assert [(m.id, m.max_model_len) for m in client.models.list()] == [("alpha", 4096), ("beta", 4096)]
    one, two = client.embeddings.create(model="alpha", input=["a", "b"]).data
    assert len(one.embedding) == 4
    assert one.embedding != two.embedding
    counted = json.loads(post(engine, "/tokenize", {"prompt": TEXT})[2])
    assert json.loads(post(engine, "/detokenize", {"tokens": counted["tokens"]})[2]) == {"prompt": TEXT}
    assert json.loads(post(engine, "/v1/messages/count_tokens", {"messages": ASK})[2])["input_tokens"] > 0
    assert post(engine, "/health", b"", "GET")[::2] == (200, b"")
    assert b"vllm:num_requests_running 0.0" in post(engine, "/metrics", b"", "GET")[2]


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"temperature": 2.5}, 400, "temperature"),
        ({"temperature": -1}, 400, "temperature"),
        ({"temperature": math.nan}, 400, "temperature"),
        ({"temperature": [1]}, 400, None),
        ({"top_p": 0}, 400, "top_p"),
        ({"top_k": -2}, 400, "top_k"),
        ({"n": 2, "temperature": 0}, 400, None),
        ({"max_tokens": 5000}, 400, "max_tokens"),
        ({"model": "gamma"}, 404, "model"),
        ({"temperature": "0.5"}, 200, None),  # vLLM's own leniency
        ({"temperature": True}, 200, None),
        ({"temperature": None}, 200, None),
    ],
)
def test_refusals_are_vllms(engine: FakeEngine, body: Any, status: int, param: str | None) -> None:
    got, _, raw = post(engine, CHAT, {"messages": ASK} | body)
    assert got == status, raw
    if status != 200:
        error = json.loads(raw)["error"]
        assert (error["code"], error["param"]) == (status, param)
        assert set(error) == {"message", "type", "param", "code"}


def test_errors_of_the_framework_have_a_detail(engine: FakeEngine) -> None:
    said = [post(engine, CHAT, b"{"), post(engine, "/nowhere", {}), post(engine, CHAT, b"", "GET")]
    assert [status for status, _, _ in said] == [400, 404, 405]
    assert all(set(json.loads(raw)) == {"detail"} for _, _, raw in said)
    engine.api_key = "right"
    assert post(engine, CHAT, {"messages": ASK})[::2] == (401, b'{"error":"Unauthorized"}')
    assert client_of(engine).chat.completions.create(model="alpha", messages=ASK).choices


def test_text_follows_prompt_seed_and_temperature(engine: FakeEngine) -> None:
    engine.text = None

    def said(**options: Any) -> list[str | None]:
        reply = client_of(engine).chat.completions.create(**{"model": "alpha", "messages": ASK, **options})
        return [choice.message.content for choice in reply.choices]

    variants = [
        said(),
        said(seed=1),
        said(seed=2),
        said(temperature=0.3),
        said(messages=[{"role": "user", "content": "?"}]),
    ]
    assert len({texts[0] for texts in variants}) == 5
    assert said(n=3)[0] == said()[0]
    assert len(set(said(n=3))) == 3
    engine.text = lambda body, i: f"{body['temperature']} {i}"
    assert said(n=2, temperature=1.25) == ["1.25 0", "1.25 1"]


def test_everything_that_arrives_is_recorded(engine: FakeEngine) -> None:
    raw = b'{"messages": [],   "x": 123456789012345678901234567890, "s": "\xe4\xbd\xa0\xe2\x80\xa8"}'
    post(engine, CHAT + "?a=1", raw)
    post(engine, "/v1/models", b"", "GET")
    seen, listed = engine.requests
    assert (seen.method, seen.path, seen.query, seen.body) == ("POST", CHAT, "a=1", raw)
    assert seen.json["x"] == 123456789012345678901234567890
    assert seen.header("Host") == f"127.0.0.1:{engine.port}"
    assert seen.complete
    assert seen.closed.wait(2)
    assert seen.closed_at is not None
    assert seen.connection != listed.connection
    assert engine.generations == [seen]
    client = client_of(engine)
    for _ in range(2):
        client.chat.completions.create(model="alpha", messages=ASK)
    assert engine.requests[-1].connection == engine.requests[-2].connection
    assert not engine.requests[-1].closed.is_set()
    engine.forget()
    with pytest.raises(TimeoutError, match="0 of 1"):
        engine.wait(1, timeout=0.01)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_is_noticed(stream: bool) -> None:
    async with FakeEngine(text="word " * 1000, pace=0.05) as engine:
        client = openai.AsyncOpenAI(base_url=f"{engine.url}/v1", api_key="none", max_retries=0)

        async def ask() -> None:
            reply: Any = await client.chat.completions.create(model="smollm2", messages=ASK, stream=stream)
            async for _ in reply:
                pass

        task = asyncio.create_task(ask())
        [seen] = await engine.arrival()
        assert engine.running == 1
        assert not await seen.left(0.1)
        task.cancel()
        assert await seen.left()
        assert not seen.complete
        assert engine.running == 0
        await client.close()


async def test_a_slow_reader_holds_the_engine_back() -> None:
    async with FakeEngine(text="word " * 100_000, max_model_len=10**6) as engine:
        _reader, writer = await asyncio.open_connection("127.0.0.1", engine.port, limit=1024)
        body = json.dumps({"messages": ASK, "stream": True}).encode()
        writer.write(b"POST %b HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body))
        [seen] = await engine.arrival()
        sent = -1
        while sent != seen.sent:  # until it no longer grows
            sent = seen.sent
            await asyncio.sleep(0.2)
        assert 0 < sent < 15_000_000
        assert not seen.complete
        writer.transport.abort()
        assert await seen.left()


def test_down_and_up_again_on_the_same_port(engine: FakeEngine) -> None:
    client = client_of(engine)
    client.models.list()
    with engine.down(), pytest.raises(openai.APIConnectionError):
        client.models.list()
    assert client.models.list().data


# --- sampling

VOCAB = {word: 3.0 - 0.45 * k for k, word in enumerate("abcdefghijklmnopqrstuvwxyz")}


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ({"temperature": 0}, "a"),
        ({"top_k": 3}, "abc"),
        ({"top_k": -1, "top_p": 0.5}, "ab"),
        ({"min_p": 0.5}, "ab"),
        ({"temperature": 0.5, "min_p": 0.5}, "a"),  # min_p after temperature
        ({"temperature": 2.0, "min_p": 0.5}, "abcd"),
        ({"repetition_penalty": 2.0, "top_k": 1}, "b"),
        ({"presence_penalty": 1.0, "top_k": 1}, "b"),
    ],
)
def test_sampling_follows_vllms_order(body: Any, kept: str) -> None:
    ranked = distribution(VOCAB, body, drawn=["a"] if any("penalty" in name for name in body) else [])
    assert "".join(word for word, _ in ranked) == kept
    assert math.isclose(sum(p for _, p in ranked), 1.0)


def surprise(engine: FakeEngine, n: int = 1500, **options: Any) -> tuple[float, set[str]]:
    """The mean raw log-probability of `n` sampled tokens, and which tokens came."""
    reply = client_of(engine).chat.completions.create(
        model="smollm2", messages=ASK, max_tokens=n, logprobs=True, top_logprobs=20, **options
    )
    entries: Any = reply.choices[0].logprobs.content
    assert len(entries) == n
    assert all(len(e.top_logprobs) == 20 for e in entries)
    assert {e.top_logprobs[0].token for e in entries} == {"a"}
    return sum(e.logprob for e in entries) / n, {e.token for e in entries}


def expected(temperature: float) -> tuple[float, float]:
    """Mean and variance of the raw log-probability of a token drawn at this temperature."""
    raw = dict(distribution(VOCAB, {}, []))
    drawn = dict(distribution(VOCAB, {"temperature": temperature}, []))
    mean = sum(p * math.log(raw[word]) for word, p in drawn.items())
    return mean, sum(p * (math.log(raw[word]) - mean) ** 2 for word, p in drawn.items())


@pytest.mark.parametrize(
    ("sampler", "asked", "really"),
    [
        ("honest", 0.7, 0.7),
        ("honest", 1.5, 1.5),
        ("ignores_temperature", 0.5, 1.0),
        ("halves_temperature", 1.0, 0.5),
        ("biased", 1.0, None),
        ("top_k_5", 1.3, None),
    ],
)
def test_the_sampler_and_its_lies(sampler: Any, asked: float, really: float | None) -> None:
    with FakeEngine.in_thread(vocab=VOCAB, sampler=sampler, max_model_len=10**6) as engine:
        mean, came = surprise(engine, temperature=asked)
    z = {t: (mean - expected(t)[0]) / math.sqrt(expected(t)[1] / 1500) for t in (asked, really) if t}
    assert (abs(z[asked]) < 4) == (really == asked)
    assert really is None or abs(z[really]) < 4
    assert (len(came) == 5) == (sampler == "top_k_5")


def test_a_seed_repeats_and_the_end_token_ends() -> None:
    with FakeEngine.in_thread(vocab=lambda drawn: {"x": 0.0, "<eos>": 9.0 if len(drawn) > 4 else -50.0}) as engine:
        [choice] = (
            client_of(engine).completions.create(model="smollm2", prompt="p", max_tokens=64, temperature=0).choices
        )
        assert (choice.text, choice.finish_reason) == ("xxxxx", "stop")
        engine.vocab = VOCAB
        texts = [post(engine, "/v1/completions", {"prompt": "p", "seed": seed, "n": 2})[2] for seed in (1, 1, 2)]
        assert texts[0] == texts[1] != texts[2]
        assert len({c["text"] for c in json.loads(texts[0])["choices"]}) == 2


# --- faults


def ask(engine: FakeEngine, stream: bool = True) -> tuple[int, dict[str, str], bytes]:
    return post(engine, CHAT, {"messages": ASK, "stream": stream})


def test_a_fault_of_the_script_strikes_once(engine: FakeEngine) -> None:
    engine.script.append(
        Fault(status=503, body={"error": "busy"}, headers=(("retry-after", "7"), ("content-type", "text/x")))
    )
    post(engine, "/v1/models", b"", "GET")  # not a POST: leaves the script alone
    status, headers, raw = ask(engine)
    assert (status, headers["retry-after"], headers["content-type"], raw) == (503, "7", "text/x", b'{"error":"busy"}')
    assert ask(engine)[0] == 200


def test_a_fault_keeps_to_its_path(engine: FakeEngine) -> None:
    engine.fault = Fault(path="/v1/models", status=500, body=b"boom")
    assert post(engine, "/v1/models", b"", "GET")[::2] == (500, b"boom")
    assert ask(engine)[0] == 200


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("fault", "raised"),
    [
        (Fault(die=True), http.client.RemoteDisconnected),
        (Fault(garbage=b"\x00\xffSSH-2.0\r\n\r\n"), http.client.BadStatusLine),
        (Fault(reset_after=2), ConnectionResetError),
        (Fault(reset_after=0), ConnectionResetError),
        (Fault(cut_after=2), http.client.IncompleteRead),
        (Fault(delay=30), TimeoutError),
        (Fault(stall_after=1), TimeoutError),
    ],
)
def test_connections_that_fail(engine: FakeEngine, fault: Fault, raised: type[Exception], stream: bool) -> None:
    engine.fault = fault
    connection = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=0.3)
    connection.request("POST", CHAT, json.dumps({"messages": ASK, "stream": stream}))
    with pytest.raises(raised):
        connection.getresponse().read()
    connection.close()
    assert engine.requests[0].closed.wait(2)
    assert not engine.requests[0].complete
    engine.fault = None
    assert ask(engine)[0] == 200


def test_broken_chunk_framing(engine: FakeEngine) -> None:
    engine.fault = Fault(bad_chunk_after=2)
    with pytest.raises(http.client.IncompleteRead) as failed:
        ask(engine)
    assert len(events_of(failed.value.partial)) == 2


def test_streams_that_are_odd_but_whole(engine: FakeEngine) -> None:
    plain = ask(engine)[2]
    engine.fault = Fault(slices=3)
    assert ask(engine)[2] == plain
    engine.fault = Fault(comments=True)
    assert ask(engine)[2].replace(b": keep-alive\n\n", b"") == plain != ask(engine)[2]
    engine.fault = Fault(error_after=3)
    *before, error, done = events_of(ask(engine)[2])
    assert len(before) == 3
    assert error["error"]["code"] == 500
    assert done == "[DONE]"


def test_bombs(engine: FakeEngine) -> None:
    engine.fault = Fault(bomb=3_000_000)
    raw = ask(engine, stream=False)[2]
    assert len(raw) > 3_000_000
    assert json.loads(raw)["choices"][0]["message"]["content"] == TEXT
    longest = max(ask(engine)[2].split(b"\n"), key=len)
    assert len(longest) >= 3_000_000
