"""What each engine is sent on each route: every sampler field that reaches sampling there, and no name it ignores.

The two tables are from live engines (vLLM 0.32, llama.cpp as xllamacpp 2026.10): field by field, what was seen to
change the parameters really used.
"""

from __future__ import annotations

from typing import Any, get_args

import pytest

from gateway.policy.params import PARAMS
from gateway.protocol.dialects import ASKED, DIALECTS, LLAMA_CPP, PATHS, SAMPLERS, VLLM, Dialect, Protocol

VALUES: dict[str, Any] = {
    "temperature": 0.1,
    "top_p": 0.2,
    "top_k": 3,
    "min_p": 0.4,
    "repetition_penalty": 1.5,
    "presence_penalty": -0.6,
    "frequency_penalty": 0.7,
    "max_tokens": 8,
    "seed": 9,
    "stop": ("a",),
}
LIMIT = {"chat": "max_tokens", "batch": "max_tokens", "completions": "max_tokens", "responses": "max_output_tokens"}
ANTHROPIC = {"temperature": 0.1, "top_p": 0.2, "top_k": 3, "max_tokens": 8, "stop_sequences": ("a",)}


def plain(protocol: str) -> dict[str, Any]:
    spelled = {name: value for name, value in VALUES.items() if name != "max_tokens"}
    return spelled | {LIMIT[protocol]: 8}


@pytest.mark.parametrize("protocol", LIMIT)
def test_vllm(protocol: Protocol) -> None:
    assert VLLM.spell(protocol, VALUES) == plain(protocol)


@pytest.mark.parametrize("protocol", LIMIT)
def test_llama_cpp_samples_in_vllms_order(protocol: Protocol) -> None:
    spelled = LLAMA_CPP.spell(protocol, VALUES, context=4096)
    window = spelled.pop("repeat_last_n")
    assert window == 4096  # -1 is a 400, and a window far beyond the context costs memory per request
    assert 0 < LLAMA_CPP.spell(protocol, VALUES)["repeat_last_n"] <= 1_000_000
    expected = plain(protocol)
    expected["repeat_penalty"] = expected.pop("repetition_penalty")
    assert spelled == expected | {
        "typical_p": 1,
        "samplers": ["penalties", "temperature", "min_p", "top_k", "top_p"],
    }


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=lambda dialect: dialect.name)
def test_messages_takes_only_anthropics_own_fields(dialect: Dialect) -> None:
    """Both engines drop every other field of /v1/messages without a word: naming them would be a false claim."""
    assert dialect.spell("messages", VALUES, context=4096) == ANTHROPIC
    lacking = {name for name in VALUES if dialect.lacks("messages", name)}
    assert lacking == {"min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed"}


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("protocol", LIMIT)
def test_every_sampler_field_has_a_name_on_the_other_routes(dialect: Dialect, protocol: Protocol) -> None:
    assert not [name for name in VALUES if dialect.lacks(protocol, name)]
    neutral = {name: PARAMS[name].neutral for name in SAMPLERS}
    assert neutral == {
        "temperature": 1,
        "top_p": 1,
        "top_k": 0,
        "min_p": 0,
        "repetition_penalty": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0,
    }
    spelled = dialect.spell(protocol, neutral)
    assert [spelled.get(name, spelled.get("repeat_penalty")) for name in SAMPLERS] == list(neutral.values())


def test_spelling_leaves_its_input_alone_and_gives_a_dict_of_its_own() -> None:
    values = dict(VALUES)
    for dialect in DIALECTS.values():
        for protocol in get_args(Protocol):
            dialect.spell(protocol, values, 512).clear()
            assert dialect.spell(protocol, values, 512)
    assert values == VALUES


def test_every_protocol_has_a_route_and_both_spellings_of_the_limit() -> None:
    assert set(PATHS.values()) == set(get_args(Protocol)) == set(ASKED)
    assert ASKED["chat"]["max_tokens"] == ("max_completion_tokens", "max_tokens")
    assert ASKED["responses"]["max_tokens"] == ("max_output_tokens",)
    assert ASKED["messages"]["stop"] == ("stop_sequences",)


def test_an_engine_field_that_would_undo_what_was_decided_is_fenced() -> None:
    assert {"n_predict", "mirostat", "dynatemp_range"} <= LLAMA_CPP.fenced
