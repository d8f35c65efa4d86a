"""The plan: the very bytes the engine reads, and what the client is told, from examples of the contract."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.config import load
from gateway.policy.decided import Plan
from gateway.protocol.dialects import ASKED, DIALECTS, LLAMA_CPP, SAMPLERS, VLLM, Dialect, Protocol
from tests.policy.made import MODEL, SAID, config_of, facts_of, header, one, planned, refused, sent
from tests.policy.test_config import SHIPPED
from tests.policy.test_params import values_of

SHIPPED_CONFIG = load(SHIPPED, {}.__getitem__)
PROTOCOLS: tuple[Protocol, ...] = ("chat", "batch", "completions", "responses", "messages")
LIMIT = {"responses": "max_output_tokens"}
NEUTRAL = {"temperature": 0.7, "top_p": 1, "top_k": 0, "min_p": 0, "repetition_penalty": 1} | {
    "presence_penalty": 0,
    "frequency_penalty": 0,
}


def test_the_contracts_example() -> None:
    made = planned({"model": "customer-service", "temperature": 1.4}, SHIPPED_CONFIG)
    assert (sent(made)["temperature"], sent(made)["model"]) == (0.5, MODEL)
    assert header(made, "x-tempera-preset") == "customer-service"
    assert header(made, "x-tempera-revision") == SHIPPED_CONFIG.revision
    params = header(made, "x-tempera-params") or ""
    assert params.startswith("temperature=0.5, top_p=0.9, ")
    assert "max_tokens=512" in params
    assert header(made, "x-tempera-adjusted") == "temperature=(1.4 0.5);by=bound"
    assert header(made, "x-tempera-variant") is None


def test_nothing_adjusted_nothing_told() -> None:
    assert header(planned({"model": "creative", "temperature": 0.8}, SHIPPED_CONFIG), "x-tempera-adjusted") is None


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_sampler_field_is_sent_explicitly(protocol: Protocol, dialect: Dialect) -> None:
    """So that neither generation_config.json nor the engine's own defaults leak in."""
    for fields in ({}, dict.fromkeys(SAMPLERS), {"max_tokens": None} if protocol != "messages" else {}):
        made = planned(fields, one({}), facts_of(dialect), protocol=protocol)
        body = sent(made)
        renamed = {"repetition_penalty": "repeat_penalty"} if dialect is LLAMA_CPP else {}
        expected = {renamed.get(n, n): v for n, v in NEUTRAL.items() if not dialect.lacks(protocol, n)}
        assert {name: body.get(name) for name in expected} == expected
        own = {"max_tokens"} if protocol == "messages" else set()
        assert body.keys() == {*expected, *dialect.constants.get(protocol, {}), *SAID[protocol], "model"} | own
        assert header(made, "x-tempera-adjusted") is None


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=lambda dialect: dialect.name)
def test_messages_claims_only_what_the_engine_takes_there(dialect: Dialect) -> None:
    config = one({"min_p": 0.05, "seed": 7, "stop": "END"}, when_hot={"above": 1.0, "repetition_penalty": 1.1})
    made = planned({"temperature": 1.5, "presence_penalty": 0.5}, config, facts_of(dialect), protocol="messages")
    assert header(made, "x-tempera-params") == "temperature=1.5, top_p=1, top_k=0, max_tokens=100"
    told = header(made, "x-tempera-adjusted") or ""
    assert set(told.split(", ")) == {
        "min_p=(0.05);by=route",
        "repetition_penalty=(1.1);by=route",
        "presence_penalty=(0.5);by=route",
    }
    assert sent(made)["stop_sequences"] == "END"
    assert not {"min_p", "repetition_penalty", "repeat_penalty", "presence_penalty", "stop"} & sent(made).keys()


@pytest.mark.parametrize(
    ("protocol", "fields", "used"),
    [
        ("chat", {"max_tokens": 64}, 64),
        ("chat", {"max_completion_tokens": 64}, 64),
        ("chat", {"max_tokens": 64, "max_completion_tokens": 32}, 32),  # the newer name wins, as in the engines
        ("chat", {"max_tokens": 64, "max_completion_tokens": None}, 64),
        ("chat", {"max_tokens": 5000}, 1000),
        ("batch", {"max_tokens": 64}, 64),
        ("completions", {"max_tokens": 64}, 64),
        ("responses", {"max_output_tokens": 64}, 64),
        ("responses", {"max_output_tokens": 5000}, 1000),
        ("messages", {"max_tokens": 64}, 64),
        ("chat", {}, 500),
        ("responses", {}, 500),
    ],
)
@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=lambda dialect: dialect.name)
def test_the_token_limit_is_one_parameter(
    protocol: Protocol, fields: dict[str, Any], used: int, dialect: Dialect
) -> None:
    config = one({"max_tokens": {"default": 500, "max": 1000}})
    body = sent(planned(fields, config, facts_of(dialect), protocol=protocol))
    names = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict")
    assert {name: body[name] for name in names if name in body} == {LIMIT.get(protocol, "max_tokens"): used}


def test_a_preset_without_a_limit_sends_none() -> None:
    assert not {"max_tokens", "max_completion_tokens"} & sent(planned({}, one({}), facts_of(context=4096))).keys()
    assert sent(planned({"max_tokens": 9000}, one({}), facts_of(context=4096)))["max_tokens"] == 4096
    assert sent(planned({}, one({"max_tokens": 6000}), facts_of(context=4096)))["max_tokens"] == 4096


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_values_outside_the_domain_name_the_field_as_the_client_wrote_it(protocol: Protocol) -> None:
    for name, fields in ASKED[protocol].items():
        if name in ("seed", "stop"):
            continue
        for field in fields:
            for value in ("0.7", True, -3, 2.5e30, [1]):
                error = refused({field: value}, one({}), protocol=protocol)
                assert (error.status, error.param) == (400, field)
                assert error.message.startswith(f"{field} must be ")
    assert refused({"temperature": 3}, one({}), protocol=protocol).told == (
        (b"x-tempera-preset", b"p"),
        (b"x-tempera-revision", one({}).revision.encode()),
    )


def test_both_spellings_are_judged_even_if_one_counts() -> None:
    assert refused({"max_completion_tokens": 5, "max_tokens": 0}, one({})).param == "max_tokens"


@pytest.mark.parametrize("number", [b"1e999", b"-1e999", b"9" * 5000])
def test_a_number_no_double_holds_is_told_with_field_range_and_value(number: bytes) -> None:
    for field, high in ((b"temperature", "2"), (b"n", "16")):
        error = refused(b'{"messages":[],"%b":%b}' % (field, number), one({}))
        assert (error.status, error.param) == (400, field.decode())
        assert high in error.message
        assert number[:30].decode() in error.message
        assert len(error.message) < 300


@pytest.mark.parametrize("value", ["yes", 1, 0, "true", [], 1e3])
def test_stream_is_true_or_false(value: Any) -> None:
    error = refused({"stream": value}, one({}))
    assert (error.status, error.param) == (400, "stream")
    assert "stream must be true or false" in error.message


RAW = (
    b'{"model":"p","messages":[ {"role":"user","content":"\\u4f60\\ud83d\\ude00 \xe5\xa5\xbd\xe2\x80\xa8"} ],'
    b'"seed":123456789012345678901234567890,"stop":["\\u0041","\\n"],"logit_bias":{"1":1.10},'
    b'"metadata":{"a":1,"a":2,"pi":3.14159265358979323846264338327950288},"temperature":0.50,"x":1E400,"n":2}'
)


def test_what_is_not_ours_keeps_its_bytes() -> None:
    made = planned(RAW, one({}))
    for piece in (
        b'[ {"role":"user","content":"\\u4f60\\ud83d\\ude00 \xe5\xa5\xbd\xe2\x80\xa8"} ]',
        b'"seed":123456789012345678901234567890',
        b'"stop":["\\u0041","\\n"]',
        b'"logit_bias":{"1":1.10}',
        b'"metadata":{"a":1,"a":2,"pi":3.14159265358979323846264338327950288}',
        b'"x":1E400',
        b'"n":2',
    ):
        assert piece in made.body
    assert b'"temperature":0.5' in made.body
    assert made.body.count(b'"temperature"') == made.body.count(b'"model"') == 1


@pytest.mark.parametrize("rule", [{"default": 3}, 3])
def test_a_clients_seed_keeps_its_bytes_even_where_the_preset_has_one(rule: Any) -> None:
    config = one({"seed": rule, "stop": "END"})
    made = planned(RAW, config)
    assert b'"seed":123456789012345678901234567890' in made.body
    assert b'"stop":["\\u0041","\\n"]' in made.body
    assert (sent(planned({}, config))["seed"], sent(planned({}, config))["stop"]) == (3, "END")
    assert (sent(planned({"seed": None}, config))["seed"], sent(planned({"seed": 0}, config))["seed"]) == (3, 0)
    for strange in ("7", 1.5, [1], {"a": 1}, True):  # the engine's to refuse
        assert sent(planned({"seed": strange}, config))["seed"] == strange


def test_a_pinned_seed_and_stop_are_the_presets() -> None:
    config = one({"seed": {"pin": 0}, "stop": {"pin": ["a", "b"]}})
    body = sent(planned({"seed": 7, "stop": "c"}, config))
    assert (body["seed"], body["stop"]) == (0, ["a", "b"])
    assert sent(planned({"stop_sequences": ["c"]}, config, protocol="messages"))["stop_sequences"] == ["a", "b"]
    assert header(planned({"seed": 7}, config), "x-tempera-adjusted") is None, "seed and stop are not listed"


def test_a_null_n_is_not_sent() -> None:
    """vLLM refuses it on /v1/completions."""
    assert "n" not in sent(planned({"n": None}, one({}), protocol="completions"))


@pytest.mark.parametrize(
    ("protocol", "options", "asked", "added"),
    [
        ("chat", None, {"include_usage": True}, True),
        ("chat", {}, {"include_usage": True}, True),
        ("chat", {"include_usage": False}, {"include_usage": True}, True),
        ("chat", {"include_usage": None}, {"include_usage": True}, True),
        ("chat", {"include_usage": True}, {"include_usage": True}, False),
        ("completions", None, {"include_usage": True}, True),
        ("chat", "strange", "strange", False),
        ("responses", None, None, False),
        ("messages", None, None, False),
        ("batch", None, None, False),
    ],
)
def test_usage_is_asked_for_in_streams(protocol: Protocol, options: Any, asked: Any, added: bool) -> None:
    made = planned(
        {"stream": True} | ({} if options is None else {"stream_options": options}), one({}), protocol=protocol
    )
    assert (sent(made).get("stream_options"), made.drop_usage, made.stream) == (asked, added, True)


def test_a_reply_that_is_no_stream_has_no_stream_options() -> None:
    """vLLM refuses them there."""
    for stream in (False, None):
        made = planned({"stream": stream}, one({}))
        assert ("stream_options" in sent(made), made.drop_usage, made.stream) == (False, False, False)


def test_usage_in_every_chunk_comes_only_to_who_would_have_had_it() -> None:
    """continuous_usage_stats does nothing alone: together with our include_usage it would."""
    alone = {"stream": True, "stream_options": {"continuous_usage_stats": True}}
    assert not sent(planned(alone, one({})))["stream_options"].get("continuous_usage_stats")
    both = {"stream": True, "stream_options": {"continuous_usage_stats": True, "include_usage": True}}
    assert sent(planned(both, one({})))["stream_options"] == both["stream_options"]


EXPERIMENT = {
    "e": {
        "preset": "p",
        "state": "running",
        "variants": {"cool": {}, "warm": {"parameters": {"temperature": {"default": 1.2}}}},
    }
}


def test_an_arm_is_assigned_applied_and_told() -> None:
    config = config_of({"p": {"parameters": {"temperature": {"default": 0.5}}}, "q": {}}, experiments=EXPERIMENT)
    seen = set()
    for number in range(50):
        made = planned({"model": "p", "user": f"u{number}"}, config)
        again = planned({"model": "p", "user": f"u{number}"}, config)
        assert (made.assignment, made.body) == (again.assignment, again.body)
        seen.add((header(made, "x-tempera-variant"), sent(made)["temperature"]))
    assert seen == {("e=cool", 0.5), ("e=warm", 1.2)}
    outside = planned({"model": "p"}, config)
    assert (outside.assignment, header(outside, "x-tempera-variant")) == (None, None)
    assert sent(outside)["temperature"] == 0.5
    assert planned({"model": "q", "user": "u"}, config).assignment is None


def test_the_unit_is_the_user_then_the_units_header_then_the_conversation() -> None:
    config = config_of({"p": {}}, experiments=EXPERIMENT)
    units = {"unit": "header", "conversation": "talk"}

    def kind(fields: dict[str, Any], units: Any) -> str:
        made = planned(fields, config, units=units)
        assert made.assignment is not None
        assert all(word not in made.assignment.unit for word in ("me", "header", "talk"))
        return made.assignment.unit_kind

    assert kind({"user": "me"}, units) == "user"
    assert kind({"safety_identifier": "me"}, units) == "user"
    assert kind({"user": None}, units) == "unit"
    assert kind({"user": 5}, units) == "unit"
    assert kind({}, {"conversation": "talk"}) == "conversation"


_BODIES = st.fixed_dictionaries(
    {"model": st.sampled_from([*SHIPPED_CONFIG.presets, MODEL, f"{MODEL}:coding"])},
    optional={name: values_of(name) for name in (*SAMPLERS, "max_tokens")}
    | {"stream": st.booleans(), "seed": st.integers(), "user": st.text(max_size=3)},
)


@given(_BODIES, st.sampled_from(PROTOCOLS), st.sampled_from([VLLM, LLAMA_CPP]), st.sampled_from([None, 2048]))
def test_a_plan_is_a_function_of_its_arguments(
    body: dict[str, Any], protocol: Protocol, dialect: Dialect, context: int | None
) -> None:
    """And what was used, asked again, is used again; the names are the engine's, the client's body is not touched."""
    facts = facts_of(dialect, context)
    written = json.dumps(SAID[protocol] | body).encode()
    made = planned(written, SHIPPED_CONFIG, facts, protocol=protocol)
    assert msgspec.json.encode(planned(written, SHIPPED_CONFIG, facts, protocol=protocol)) == msgspec.json.encode(made)
    assert sent(made)["model"] == MODEL
    assert "preset" not in sent(made)
    used = {k: v for k, v in made.effective.values.items() if k not in ("seed", "stop")}
    if "max_tokens" in used:
        used[LIMIT.get(protocol, "max_tokens")] = used.pop("max_tokens")
    rest = {k: v for k, v in body.items() if k not in {*SAMPLERS, "max_tokens"}}
    again = planned(SAID[protocol] | rest | used, SHIPPED_CONFIG, facts, protocol=protocol)
    assert _asks(again) == _asks(made)
    assert header(again, "x-tempera-params") == header(made, "x-tempera-params")
    assert {a.by for a in again.effective.adjustments} <= {"route"}, "only what the route lacks is told again"


def _asks(made: Plan) -> dict[str, Any]:
    return dict(sorted(sent(made).items()))


def test_what_was_asked_before_does_not_show() -> None:
    """1 and 1.0 are equal, but a client reads back what it wrote."""
    config = one({"seed": {"default": 1}})
    for first, second in ((1, 1.0), (1.0, 1)):
        fresh = one({"temperature": {"max": 1.5}})
        for value in (first, second):
            shown = header(planned({"temperature": value}, fresh), "x-tempera-params") or ""
            assert shown.startswith(f"temperature={value},")
            assert (sent(planned({"seed": value}, config))["seed"], type(value)) == (value, type(value))


def test_the_memory_of_answers_holds_no_long_texts() -> None:
    """Stop strings of a client's own may be as long as a body; a cache of thousands of them would fill the memory."""
    from gateway.policy import plan as module

    config = one({"stop": "END"})
    before = module._choose.cache_info().currsize
    for number in range(20):
        planned({"stop": f"{number}" * 10_000}, config)
    assert module._choose.cache_info().currsize <= before + 1
