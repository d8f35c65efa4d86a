"""What an application developer does: the official client, unchanged, against each engine."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import openai
import pytest

from tests.contract.targets import Target
from tests.fakes import FakeEngine

HARD_TEXT = 'Mix: 你好，世界。\u2028next\u2029 👩‍👩‍👧 🇨🇳 "quotes" \\ \t tab'
ASK: Any = [{"role": "user", "content": HARD_TEXT}]
TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def check_headers(headers: Any, preset: str) -> None:
    assert headers["x-tempera-preset"] == preset
    assert re.fullmatch(r"[0-9a-f]{12}", headers["x-tempera-revision"])
    assert headers["x-request-id"] == headers["x-tempera-exchange"]  # none was sent
    assert "temperature=" in headers["x-tempera-params"]


def test_models_are_the_engines_and_the_presets(target: Target) -> None:
    client = target.client()
    names = [model.id for model in client.models.list()]
    assert target.model in names
    assert set(target.presets) <= set(names)
    assert len(names) == len(set(names))
    assert [client.models.retrieve(name).id for name in names if "/" not in name] == [n for n in names if "/" not in n]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")


@pytest.mark.parametrize("model", ["customer-service", "creative", "engine"])
def test_chat(target: Target, model: str) -> None:
    name = target.model if model == "engine" else model
    raw = target.client().chat.completions.with_raw_response.create(model=name, messages=ASK, max_tokens=8)
    check_headers(raw.headers, "balanced" if model == "engine" else model)
    reply = raw.parse()
    assert reply.choices[0].message.content
    assert reply.choices[0].finish_reason in ("stop", "length")
    assert reply.model == target.model
    assert reply.usage is not None
    assert reply.usage.completion_tokens > 0


def test_chat_stream(target: Target) -> None:
    options: Any = {"stream": True, "stream_options": {"include_usage": True}, "temperature": 0, "max_tokens": 12}
    with target.client().chat.completions.with_streaming_response.create(
        model="balanced", messages=ASK, **options
    ) as raw:
        check_headers(raw.headers, "balanced")
        assert raw.headers["content-type"].startswith("text/event-stream")
        chunks = list(raw.parse())
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] in (
        ["stop"],
        ["length"],
    )
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0
    plain = target.client().chat.completions.create(model="balanced", messages=ASK, temperature=0, max_tokens=12)
    assert text == plain.choices[0].message.content


def test_stream_without_usage_has_none(target: Target) -> None:
    """The gateway's own accounting leaves no trace."""
    chunks = list(target.client().chat.completions.create(model="balanced", messages=ASK, max_tokens=4, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_completions(target: Target) -> None:
    client = target.client()
    reply = client.completions.create(model="balanced", prompt="Once upon a time", max_tokens=8, temperature=0)
    chunks = client.completions.create(
        model="balanced", prompt="Once upon a time", max_tokens=8, temperature=0, stream=True
    )
    assert reply.choices[0].text
    assert "".join(c.choices[0].text for c in chunks if c.choices) == reply.choices[0].text


def test_responses(target: Target) -> None:
    client = target.client()
    raw = client.responses.with_raw_response.create(
        model="balanced", input=HARD_TEXT, temperature=0, max_output_tokens=16
    )
    check_headers(raw.headers, "balanced")
    text = raw.parse().output_text
    events = list(
        client.responses.create(model="balanced", input=HARD_TEXT, temperature=0, max_output_tokens=16, stream=True)
    )
    assert events[0].type == "response.created"
    assert events[-1].type in ("response.completed", "response.incomplete")
    assert text
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == text


def test_messages(target: Target) -> None:
    body = {"model": "creative", "max_tokens": 8, "messages": ASK, "temperature": 1.9}
    reply = target.send("/v1/messages", body)
    assert reply.status == 200
    assert reply.json["type"] == "message"
    assert reply.json["content"][0]["text"]
    assert reply.params["temperature"] == 1.2
    assert reply.headers["x-tempera-preset"] == "creative"
    stream = target.send("/v1/messages", body | {"stream": True})
    names = [line[7:] for line in stream.body.decode().split("\n") if line.startswith("event: ")]
    assert {"content_block_start", "content_block_delta"} < set(names)  # llama.cpp forgets message_start now and then
    assert names[-1] == "message_stop"
    counted = target.send("/v1/messages/count_tokens", {"model": target.model, "messages": ASK})
    assert counted.json["input_tokens"] > 0


def test_several_choices(target: Target) -> None:
    reply = target.client().chat.completions.create(model="creative", messages=ASK, n=3, max_tokens=8)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    chunks: Any = target.client().chat.completions.create(
        model="creative", messages=ASK, n=2, max_tokens=8, stream=True
    )
    assert {choice.index for chunk in chunks for choice in chunk.choices} == {0, 1}


def test_logprobs(target: Target) -> None:
    asked: Any = {"model": "balanced", "messages": ASK, "logprobs": True, "top_logprobs": 5, "max_tokens": 4}
    reply: Any = target.client().chat.completions.create(**asked)
    entries = reply.choices[0].logprobs.content
    assert entries
    assert all(len(entry.top_logprobs) == 5 and entry.logprob <= 0 for entry in entries)


def test_tools_pass_through(target: Target) -> None:
    reply = target.client().chat.completions.create(model="balanced", messages=ASK, tools=[TOOL], max_tokens=16)
    assert reply.choices[0].finish_reason in ("stop", "length", "tool_calls")


def test_a_tool_call_comes_back_whole(fake: Target, engine: FakeEngine) -> None:
    client = fake.client()
    reply: Any = client.chat.completions.create(model="coding", messages=ASK, tools=[TOOL]).choices[0]
    assert json.loads(reply.message.tool_calls[0].function.arguments) == {"echo": f"user: {HARD_TEXT}"}
    with client.chat.completions.stream(model="coding", messages=ASK, tools=[TOOL]) as stream:
        streamed: Any = stream.get_final_completion().choices[0]
    assert streamed.message.tool_calls[0].function.arguments == reply.message.tool_calls[0].function.arguments
    assert all(seen.json["tools"] == [TOOL] for seen in engine.generations)


def test_structured_output_passes(fake: Target, engine: FakeEngine) -> None:
    schema: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}, "strict": True}}
    fake.client().chat.completions.create(model="coding", messages=ASK, response_format=schema)
    assert engine.generations[0].json["response_format"] == schema


def test_stored_responses(fake: Target) -> None:
    client = fake.client()
    made = client.responses.create(model="balanced", input="Hi")
    assert client.responses.retrieve(made.id).output_text == made.output_text
    assert client.responses.cancel(made.id).status == "cancelled"
    with pytest.raises(openai.NotFoundError, match="not found"):
        client.responses.retrieve("resp_unknown")


def test_embeddings_and_tokens(fake: Target) -> None:
    vectors = fake.client().embeddings.create(model=fake.model, input=["a", "你"]).data
    assert len(vectors) == 2
    assert vectors[0].embedding != vectors[1].embedding
    counted = fake.send("/tokenize", {"model": fake.model, "prompt": HARD_TEXT}).json
    assert fake.send("/detokenize", {"model": fake.model, "tokens": counted["tokens"]}).json == {"prompt": HARD_TEXT}


def test_the_engines_text_is_the_clients_text(fake: Target, engine: FakeEngine) -> None:
    engine.text = HARD_TEXT * 50
    client = fake.client()
    stream = client.chat.completions.create(model="balanced", messages=ASK, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == engine.text
    assert client.chat.completions.create(model="balanced", messages=ASK).choices[0].message.content == engine.text
    assert client.responses.create(model="balanced", input="x").output_text == engine.text


async def test_many_at_once_do_not_mix(fake: Target, engine: FakeEngine) -> None:
    engine.text, engine.pace = lambda body, _: " ".join([body["messages"][0]["content"]] * 20), 0.002
    async with openai.AsyncOpenAI(base_url=f"{fake.url}/v1", api_key="x", max_retries=0) as client:

        async def ask(word: str, stream: bool) -> str:
            messages: Any = [{"role": "user", "content": word}]
            reply: Any = await client.chat.completions.create(model="creative", messages=messages, stream=stream)
            if not stream:
                return str(reply.choices[0].message.content)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in reply])

        words = [f"w{i}" for i in range(40)]
        said = await asyncio.gather(*(ask(word, i % 2 == 0) for i, word in enumerate(words)))
    assert said == [" ".join([word] * 20) for word in words]


def test_generate(target: Target) -> None:
    reply = target.send("/generate", {"prompt": "Say hello.", "temperature": 0.5, "max_tokens": 8})
    assert reply.status == 200
    assert set(reply.json) == {"response"}
    assert reply.json["response"]
    assert reply.params["temperature"] == 0.5
    assert reply.params["max_tokens"] == 8


def test_generate_applies_the_chat_template_and_presets(fake: Target, engine: FakeEngine) -> None:
    fake.send("/generate", {"prompt": HARD_TEXT})
    fake.send("/generate", {"prompt": "x", "temperature": 1.4, "preset": "customer-service"})
    first, second = engine.generations
    assert first.path == second.path == "/v1/chat/completions"
    assert first.json["messages"] == [{"role": "user", "content": HARD_TEXT}]
    assert (first.json["temperature"], first.json.get("max_tokens") or first.json.get("max_completion_tokens")) == (
        0.7,
        512,
    )
    assert second.json["temperature"] == 0.5
    for body in ({"prompt": "x", "temperature": 3}, {"prompt": 5}, {}, {"prompt": "x", "max_tokens": 0}):
        refused = fake.send("/generate", body)
        assert refused.status == 400
        assert refused.error["type"] == "invalid_request_error"
    assert fake.send("/generate", {"prompt": "x", "preset": "nope"}).status == 404
    assert len(engine.generations) == 2


def test_what_a_person_looks_at(target: Target) -> None:
    assert [target.get(path).status for path in ("/healthz", "/health", "/readyz", "/metrics", "/docs")] == [200] * 5
    listed = target.get("/v1/presets").body.decode()
    assert all(name in listed for name in target.presets)
    assert "客服问答" in listed
    assert "Customer service" in listed
    one = target.get("/v1/presets/customer-service").body.decode()
    assert "客服问答" in one
    assert "0.5" in one
    assert target.get("/v1/presets/nope").error["code"] == "preset_not_found"
