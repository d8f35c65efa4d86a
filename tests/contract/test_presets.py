"""Scenarios and guard rails, proved by what the fake engine received."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest

from tests.contract.targets import Target
from tests.fakes import FakeEngine

NEUTRAL = {
    "temperature": 0.7,
    "top_p": 1,
    "top_k": 0,
    "min_p": 0,
    "repetition_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
}


def test_hot_customer_service_reaches_the_engine_as_the_bound(fake: Target, engine: FakeEngine) -> None:
    reply = fake.chat(model="customer-service", temperature=1.4)
    [seen] = engine.generations  # one request, no retry
    assert (reply.status, seen.json["temperature"], seen.json["model"]) == (200, 0.5, "smollm2")
    assert (reply.params["temperature"], reply.params["top_p"], reply.params["max_tokens"]) == (0.5, 0.9, 512)
    assert reply.headers["x-tempera-adjusted"] == "temperature=(1.4 0.5);by=bound"
    assert reply.headers["x-tempera-preset"] == "customer-service"


@pytest.mark.parametrize("stream", [False, True])
def test_nothing_adjusted_nothing_told(fake: Target, stream: bool) -> None:
    reply = fake.chat(model="customer-service", temperature=0.2, stream=stream)
    assert reply.params["temperature"] == 0.2
    assert "x-tempera-adjusted" not in reply.headers


def test_rejecting_presets_refuse_what_clamping_ones_adjust(fake: Target, engine: FakeEngine) -> None:
    refused = fake.chat(model="strict", temperature=1.4)
    error = refused.error
    assert (refused.status, error["type"], error["param"]) == (400, "invalid_request_error", "temperature")
    assert all(word in error["message"] for word in ("temperature", "1.4", "0.1", "0.5"))
    assert refused.headers["x-tempera-preset"] == "strict"
    assert not engine.generations
    assert fake.chat(model="strict", temperature=0.4).status == 200


def test_pins(fake: Target, engine: FakeEngine) -> None:
    reply = fake.chat(model="pinned", temperature=0.9)
    assert (engine.generations[0].json["temperature"], engine.generations[0].json["top_p"]) == (0.4, 0.8)
    assert reply.headers["x-tempera-adjusted"] == "temperature=(0.9 0.4);by=pin"


@pytest.mark.parametrize(
    ("path", "body", "fields"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}, NEUTRAL.keys()),
        ("/v1/completions", {"prompt": "x"}, NEUTRAL.keys()),
        ("/v1/responses", {"input": "x"}, ("temperature", "top_p", "top_k", "repetition_penalty")),
        (
            "/v1/messages",
            {"messages": [{"role": "user", "content": "x"}], "max_tokens": 5},
            ("temperature", "top_p", "top_k"),
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_every_sampler_field_is_sent(
    fake: Target, engine: FakeEngine, path: str, body: dict[str, Any], fields: Any, stream: bool
) -> None:
    """On the engine's own model: the missing-temperature default and neutral values, so that nothing is inherited."""
    reply = fake.send(path, {"model": fake.model, "stream": stream, **body})
    got = engine.generations[0].json
    assert {name: got[name] for name in fields} == {name: NEUTRAL[name] for name in fields}
    assert reply.params["temperature"] == 0.7
    assert reply.headers["x-tempera-preset"] == "balanced"
    assert not {"preset", "samplers", "repeat_penalty"} & set(got)


def test_a_batch_of_conversations_has_the_same_rails(fake: Target, engine: FakeEngine) -> None:
    talks = [[{"role": "user", "content": word}] for word in ("a", "b")]
    reply = fake.send(
        "/v1/chat/completions/batch", {"model": "customer-service", "messages": talks, "temperature": 1.4}
    )
    assert (reply.status, len(reply.json["choices"]), reply.params["temperature"]) == (200, 2, 0.5)
    assert (engine.generations[0].json["temperature"], engine.generations[0].json["messages"]) == (0.5, talks)


def test_when_hot(fake: Target, engine: FakeEngine) -> None:
    fake.chat(model="creative", temperature=1.1)
    fake.chat(model="creative", temperature=1.0)
    fake.chat(model="creative", temperature=1.1, repetition_penalty=1.05)
    hot, warm, asked = (seen.json["repetition_penalty"] for seen in engine.generations)
    assert (hot, warm, asked) == (1.1, 1, 1.05)


@pytest.mark.parametrize("name", ["temperature", "top_p", "max_tokens", "n", "stream"])
def test_null_means_not_sent(fake: Target, engine: FakeEngine, name: str) -> None:
    fake.chat(model="customer-service")
    reply = fake.chat(model="customer-service", **{name: None})
    without, null = (seen.json for seen in engine.generations)
    assert reply.status == 200
    assert "x-tempera-adjusted" not in reply.headers
    assert null.get(name) == without.get(name)
    assert null["temperature"] == 0.3
    assert null["top_p"] == 0.9


def test_zero_is_a_value(fake: Target, engine: FakeEngine) -> None:
    assert fake.chat(model="balanced", temperature=0).params["temperature"] == 0
    assert engine.generations[0].json["temperature"] == 0
    assert fake.chat(model="creative", temperature=0).headers["x-tempera-adjusted"] == "temperature=(0 0.7);by=bound"


@pytest.mark.parametrize(
    ("preset", "asked", "sent", "by"),
    [
        ("balanced", {}, None, None),
        ("summarization", {}, 1024, None),
        ("customer-service", {}, 512, None),
        ("summarization", {"max_tokens": 100}, 100, None),
        ("summarization", {"max_completion_tokens": 100}, 100, None),
        ("customer-service", {"max_tokens": 4000}, 2048, "bound"),
        ("customer-service", {"max_completion_tokens": 4000}, 2048, "bound"),
        ("balanced", {"max_tokens": 9000}, 8192, "cap"),
    ],
)
def test_max_tokens_has_two_names_and_is_one(
    fake: Target, engine: FakeEngine, preset: str, asked: dict[str, int], sent: int | None, by: str | None
) -> None:
    reply = fake.chat(model=preset, **asked)
    got = engine.generations[0].json
    names = [name for name in ("max_tokens", "max_completion_tokens") if got.get(name) is not None]
    assert [got[name] for name in names] == ([] if sent is None else [sent])
    assert reply.params.get("max_tokens") == sent
    told = f"max_tokens=({next(iter(asked.values()))} {sent});by={by}" if by else None
    assert reply.headers.get("x-tempera-adjusted") == told


def test_responses_and_messages_have_their_own_names(fake: Target, engine: FakeEngine) -> None:
    fake.send("/v1/responses", {"model": "customer-service", "input": "x", "temperature": 2, "max_output_tokens": 4000})
    ask = [{"role": "user", "content": "x"}]
    fake.send("/v1/messages", {"model": "customer-service", "messages": ask, "temperature": 1, "max_tokens": 4000})
    response, message = (seen.json for seen in engine.generations)
    assert (response["temperature"], response["max_output_tokens"], "max_tokens" in response) == (0.5, 2048, False)
    assert (message["temperature"], message["max_tokens"]) == (0.5, 2048)


@pytest.mark.parametrize(
    ("model", "header", "body", "preset", "sent_model"),
    [
        (None, None, None, "balanced", "smollm2"),
        ("smollm2", None, None, "balanced", "smollm2"),
        ("second", None, None, "balanced", "second"),
        ("creative", None, None, "creative", "smollm2"),
        ("second:creative", None, None, "creative", "second"),
        ("org/name:7b", None, None, "balanced", "org/name:7b"),
        ("org/name:7b:coding", None, None, "coding", "org/name:7b"),
        ("creative", "coding", None, "coding", "smollm2"),
        ("second:creative", "coding", None, "coding", "second"),
        ("creative", "coding", "role-play", "role-play", "smollm2"),
        (None, "coding", "role-play", "role-play", "smollm2"),
        ("second", None, "role-play", "role-play", "second"),
        ("second", "coding", None, "coding", "second"),
    ],
)
def test_choosing_a_preset(
    fake: Target,
    engine: FakeEngine,
    model: str | None,
    header: str | None,
    body: str | None,
    preset: str,
    sent_model: str,
) -> None:
    fields = {"model": model} if model else {}
    fields |= {"preset": body} if body else {}
    reply = fake.chat({"X-Preset": header} if header else {}, **fields)
    got = engine.generations[0].json
    assert (reply.headers["x-tempera-preset"], got["model"], "preset" in got) == (preset, sent_model, False)
    assert engine.generations[0].header("x-preset") is None
    assert reply.json["model"] == sent_model


@pytest.mark.parametrize(
    ("fields", "header", "code", "names"),
    [
        ({"model": "nope"}, None, "model_not_found", ("creative", "smollm2")),
        ({"model": "smollm2:nope"}, None, None, ("creative",)),
        ({"model": "nope:creative"}, None, "model_not_found", ("smollm2",)),
        ({"model": "smollm2", "preset": "nope"}, None, "preset_not_found", ("creative", "customer-service")),
        ({"model": "smollm2"}, "nope", "preset_not_found", ("creative", "customer-service")),
        ({"model": "nope", "preset": "creative"}, None, "model_not_found", ("smollm2",)),
        ({"model": "http://127.0.0.1:1/v1"}, None, "model_not_found", ("smollm2",)),
    ],
)
def test_unknown_names(
    fake: Target, engine: FakeEngine, fields: Any, header: str | None, code: str | None, names: tuple[str, ...]
) -> None:
    reply = fake.chat({"X-Preset": header} if header else {}, **fields)
    error = reply.error
    assert reply.status == 404
    assert error["type"] == "invalid_request_error"
    assert error["code"] == code or (code is None and error["code"] in ("model_not_found", "preset_not_found"))
    assert all(name in error["message"] for name in names)
    assert not engine.generations


def test_a_model_the_engine_learns_later_is_found(fake: Target, engine: FakeEngine) -> None:
    before = engine.models
    engine.models = (*before, "fresh")
    try:
        end = time.monotonic() + 10  # the list is read again on a miss, at most once a second
        while (reply := fake.chat(model="fresh")).status == 404 and time.monotonic() < end:
            time.sleep(0.1)
        assert (reply.status, engine.generations[-1].json["model"]) == (200, "fresh")
    finally:
        engine.models = before


@pytest.mark.parametrize(
    ("sent", "echoed"),
    [
        ("abc-DEF_1.9", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("has space", False),
        ("semi;colon", False),
        ("", False),
        ("né", False),
    ],
)
@pytest.mark.parametrize("status", [200, 404])
def test_request_ids(fake: Target, sent: str, echoed: bool, status: int) -> None:
    reply = fake.chat({"X-Request-Id": sent}, model="balanced" if status == 200 else "nope")
    assert reply.status == status
    assert reply.headers["x-request-id"] == (sent if echoed else reply.exchange)


def test_exchange_ids_are_ours_new_and_in_order(fake: Target) -> None:
    replies = [fake.chat(model="balanced") for _ in range(3)]
    ids = [reply.exchange for reply in replies]
    assert len(set(ids)) == 3
    assert all(re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f-]{21}", i) for i in ids)
    assert [reply.headers["x-request-id"] for reply in replies] == ids
    assert len({reply.headers["x-tempera-revision"] for reply in replies}) == 1
    assert replies[0].headers["x-tempera-revision"] in fake.get("/v1/presets").body.decode()


def test_other_fields_are_the_engines_business(fake: Target, engine: FakeEngine) -> None:
    odd = {"seed": -5, "logit_bias": {"5": 3}, "some_extension": {"a": [1]}, "user": "u", "ignore_eos": True}
    assert fake.chat(model="creative", **odd).status == 200
    got = engine.generations[0].json
    assert {name: got[name] for name in odd} == odd


def test_wide_numbers_in_headers_are_strings(fake: Target) -> None:
    """RFC 9651 decimals have three fractional digits; what has more is a string."""
    reply = fake.chat(model="balanced", temperature=0.12345)
    item = next(i for i in reply.headers["x-tempera-params"].split(", ") if i.startswith("temperature="))
    assert item == 'temperature="0.12345"'
    assert json.loads(json.dumps(reply.params))


def test_thinking_may_be_switched(fake: Target) -> None:
    assert fake.chat(model="balanced", chat_template_kwargs={"enable_thinking": False}).status == 200
