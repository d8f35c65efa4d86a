"""What never reaches an engine from a client (engines.md, section 6), and what must pass all the same."""

from __future__ import annotations

import re
from typing import Any

import pytest

from gateway.protocol.dialects import LLAMA_CPP, Protocol
from tests.policy.made import config_of, facts_of, planned, refused, sent

CONFIG = config_of()
FENCED = [
    "chat_template",
    "chat_template_kwargs",
    "mm_processor_kwargs",
    "media_io_kwargs",
    "prompt_embeds",
    "kv_transfer_params",
    "ec_transfer_params",
    "vllm_xargs",
    "priority",
    "request_id",
    "session_id",
    "api_base",
    "base_url",
    "api_key",
]


@pytest.mark.parametrize("protocol", ["chat", "batch", "completions", "responses", "messages"])
@pytest.mark.parametrize("field", FENCED)
def test_fields_that_act_on_the_engine(field: str, protocol: Protocol) -> None:
    for value in ("x", 0, False, "", [], {}, {"a": {"b": 1}}):
        if (field, value) == ("chat_template_kwargs", {}):
            continue
        error = refused({field: value}, CONFIG, protocol=protocol)
        assert (error.status, error.param) == (400, field)
        assert field in error.message
    assert sent(planned({field: None}, CONFIG, protocol=protocol))[field] is None, "null is: not sent"


@pytest.mark.parametrize("field", FENCED)
def test_the_operator_may_open_one(field: str) -> None:
    opened = config_of(open_fields=[field])
    assert sent(planned({field: {"a": 1}}, opened))[field] == {"a": 1}
    other = next(name for name in FENCED if name != field)
    assert refused({other: {"a": 1}}, opened).param == other


def test_a_template_may_be_told_to_think_and_nothing_else() -> None:
    for value in ({"enable_thinking": True}, {"enable_thinking": False}, {}):
        assert sent(planned({"chat_template_kwargs": value}, CONFIG))["chat_template_kwargs"] == value
    for value in ({"enable_thinking": True, "x": 1}, {"x": 1}, [["enable_thinking", True]]):
        assert refused({"chat_template_kwargs": value}, CONFIG).param == "chat_template_kwargs"


@pytest.mark.parametrize(
    ("field", "most"),
    [
        ("stop", ["a"] * 4),
        ("stop_token_ids", [1] * 128),
        ("allowed_token_ids", [1] * 1024),
        ("logit_bias", {str(i): 1 for i in range(1024)}),
        ("top_logprobs", 20),
        ("logprobs", 20),
        ("n", 16),
    ],
)
def test_sizes(field: str, most: Any) -> None:
    more = (
        most + 1
        if isinstance(most, int)
        else most | {"x": 1}
        if isinstance(most, dict)
        else [*most, most[0]]
    )  # fmt: skip
    assert sent(planned({field: most}, CONFIG))[field] == most
    error = refused({field: more}, CONFIG)
    assert (error.status, error.code, error.param) == (400, "out_of_range", field)
    limit = most if isinstance(most, int) else len(most)
    assert {str(limit), str(limit + 1)} <= set(re.findall("[0-9]+", error.message))


def test_stop_sequences_too() -> None:
    assert refused({"stop_sequences": ["a"] * 5}, CONFIG, protocol="messages").param == "stop_sequences"


@pytest.mark.parametrize(
    ("field", "instead"),
    [("best_of", "n")] + [(f"guided_{kind}", "structured_outputs") for kind in ("json", "regex", "choice", "grammar")],
)
def test_fields_that_would_be_ignored_are_told(field: str, instead: str) -> None:
    """The engine answers 200 and does nothing: the reply would look constrained and not be."""
    error = refused({field: 2}, CONFIG)
    assert (error.status, error.param) == (400, field)
    assert instead in error.message
    assert sent(planned({field: None}, CONFIG))[field] is None
    assert sent(planned({"best_of": 1}, CONFIG))["best_of"] == 1


def test_llama_cpp_has_fields_that_reach_past_the_preset() -> None:
    """Seen on a live engine: n_predict beats max_tokens, a dynamic temperature and mirostat beat the temperature."""
    small = facts_of(LLAMA_CPP)
    for field in ("n_predict", "dynatemp_range", "mirostat"):
        assert refused({field: 2}, CONFIG, small).param == field
    for protocol in ("chat", "completions", "responses"):
        body = sent(planned({"repeat_last_n": 2**31 - 1, "samplers": [], "typical_p": 0.1, "repeat_penalty": 2},
                            CONFIG, small, protocol=protocol))  # fmt: skip
        assert body["repeat_last_n"] <= 1_000_000, "each request would get 9 GB"
        assert (len(body["samplers"]), body["typical_p"], body["repeat_penalty"]) == (5, 1, 1)


@pytest.mark.parametrize("protocol", ["chat", "completions", "responses", "messages"])
def test_no_other_spelling_of_the_limit_escapes_it(protocol: Protocol) -> None:
    """llama.cpp reads all three names on /v1/responses; vLLM ignores the foreign ones."""
    limits = ("max_tokens", "max_completion_tokens", "max_output_tokens")
    config = config_of({"p": {"parameters": {"max_tokens": {"default": 64, "max": 128}}}})
    for name in limits:
        body = sent(planned({name: 5000}, config, facts_of(LLAMA_CPP), protocol=protocol))
        assert [body[other] <= 128 for other in limits if other in body] == [True]


HTTP = "http://169.254.169.254/latest"


def user(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "See"}, *parts]}]}


REMOTE: list[tuple[Protocol, dict[str, Any]]] = [
    ("chat", user({"type": "image_url", "image_url": {"url": HTTP}})),
    ("chat", user({"type": "image_url", "image_url": HTTP})),
    ("chat", user({"image_url": HTTP})),
    ("chat", user({"type": "video_url", "video_url": {"url": "https://x/y.mp4"}})),
    ("chat", user({"type": "audio_url", "audio_url": {"url": "ftp://x/y"}})),
    ("chat", user({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}})),
    ("chat", user({"type": "image_url", "image_url": {"url": " HTTP://x"}})),
    ("chat", user({"type": "image_url", "image_url": {"url": ""}})),
    ("batch", {"messages": [[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": HTTP}}]}]]}),
    ("responses", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": HTTP}]}]}),
    ("responses", {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": HTTP}]}]}),
    ("responses", {"input": [{"type": "input_image", "image_url": HTTP}]}),
    ("responses", {"input": [{"type": "computer_call_output", "output": {"image_url": HTTP}}]}),
    ("messages", user({"type": "image", "source": {"type": "url", "url": HTTP}})),
    ("messages", user({"type": "document", "source": {"type": "url", "url": HTTP}})),
    ("messages", user({"type": "tool_result", "content": [{"type": "image", "source": {"type": "url", "url": HTTP}}]})),
    ("messages", {"system": [{"type": "image", "source": {"type": "url", "url": HTTP}}]}),
]


@pytest.mark.parametrize(("protocol", "fields"), REMOTE)
def test_media_by_address(protocol: Protocol, fields: dict[str, Any]) -> None:
    error = refused(fields, CONFIG, protocol=protocol)
    assert (error.status, error.code) == (400, "media_url_not_allowed")
    assert sent(planned(fields, config_of(open_fields=["media_urls"]), protocol=protocol))


def test_media_by_address_in_escapes() -> None:
    part = b'{"type":"image\\u005furl","image_\\u0075rl":{"\\u0075rl":"http://x"}}'
    body = b'{"messages":[{"role":"user","content":[' + part + b"]}]}"
    assert refused(body, CONFIG).code == "media_url_not_allowed"


LOCAL: list[tuple[Protocol, dict[str, Any]]] = [
    ("chat", user({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}})),
    ("chat", user({"type": "image_url", "image_url": {"url": "DATA:image/png;base64,AAAA", "detail": "low"}})),
    ("chat", user({"type": "text", "text": f"see {HTTP}, image_url"})),
    ("chat", {"messages": [{"role": "user", "content": f"[image_url]({HTTP})"}]}),
    ("chat", {"metadata": {"callback_url": HTTP, "list": [{"a_url": HTTP}]}}),
    (
        "chat",
        {
            "messages": [
                {"role": "user", "content": "x"},
                {"role": "assistant", "content": None, "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"page_url":"http://x"}'}}]},
            ],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {
                "type": "object", "properties": {"page_url": {"type": "string", "url": "x"}}}}}],
        },
    ),
    ("responses", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:a;base64,A"}]}]}),
    # an agent's history: the tool's arguments are the tool's business
    ("messages", {"messages": [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {"page_url": HTTP}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "ok"}]}]}),
    ("messages", user({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}})),
]  # fmt: skip


@pytest.mark.parametrize(("protocol", "fields"), LOCAL)
def test_everything_else_passes(protocol: Protocol, fields: dict[str, Any]) -> None:
    body = sent(planned(fields, CONFIG, protocol=protocol))
    assert {name: body[name] for name in fields} == fields


def test_what_is_not_named_passes_untouched() -> None:
    extras = {
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "tool_choice": "auto",
        "logit_bias": {"50256": -100},
        "user": "温",
        "ignore_eos": True,
        "min_tokens": 3,
        "structured_outputs": {"json": {"type": "object"}},
        "response_format": {"type": "json_object"},
        "guided_decoding_backend": "x",
        "add_generation_prompt": True,
        "documents": [{"title": "a", "text": "b"}],
        "made_up": {"a": [1, {"b": None}]},
        "seed": 2**63 - 1,
        "stop": "one",
        "logprobs": True,
    }
    body = sent(planned(extras, CONFIG))
    assert {name: body[name] for name in extras} == extras
