"""Configs, requests and plans for the tests of this room, in a few words each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from gateway.policy.choice import Engine, Facts, Model, Request
from gateway.policy.config import BadConfig, Config, load
from gateway.policy.decided import Plan
from gateway.policy.document import Problem
from gateway.policy.plan import plan
from gateway.protocol import envelope
from gateway.protocol.dialects import PATHS, VLLM, Dialect, Protocol
from gateway.protocol.errors import GatewayError

WORDS: Any = {"title": {"en": "T", "zh": "题"}, "hint": {"en": "H", "zh": "示"}}
MODEL = "qwen2.5-7b-instruct"
SAID: dict[Protocol, dict[str, Any]] = {  # the least that each protocol takes
    "chat": {"messages": [{"role": "user", "content": "Hi"}]},
    "batch": {"messages": [[{"role": "user", "content": "Hi"}], [{"role": "user", "content": "Ho"}]]},
    "completions": {"prompt": "Hi"},
    "responses": {"input": "Hi"},
    "messages": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 100},
}


def preset(**entry: Any) -> dict[str, Any]:
    """An entry of the file; keywords are its keys."""
    return {**WORDS, **entry}


def file_of(presets: Mapping[str, Any], **more: Any) -> str:
    """presets.yaml as JSON, which is YAML too."""
    first = next(iter(presets))
    return json.dumps({"default": first, "presets": presets, **more}, ensure_ascii=False)


def config_of(
    presets: Mapping[str, Any] | None = None, prompts: Mapping[str, str] | None = None, **more: Any
) -> Config:
    """A Config in force. `presets` are names and entries without their words."""
    entries = {name: preset(**entry) for name, entry in (presets or {"p": {}}).items()}
    return load(file_of(entries, **more), (prompts or {}).__getitem__)


def one(parameters: Mapping[str, Any], **entry: Any) -> Config:
    """A Config with one preset, `p`."""
    return config_of({"p": {"parameters": parameters, **entry}})


def problems_of(text: str, prompts: Mapping[str, str] | None = None) -> list[Problem]:
    """What is wrong with a presets file; at least one thing must be."""

    def read(name: str) -> str:
        if name not in (prompts or {}):
            raise FileNotFoundError(2, "No such file or directory", name)
        return (prompts or {})[name]

    with pytest.raises(BadConfig) as caught:
        load(text, read)
    assert caught.value.problems
    assert caught.value.problems == sorted(caught.value.problems)
    return caught.value.problems


def facts_of(dialect: Dialect = VLLM, context: int | None = None, **engines: Engine) -> Facts:
    """One engine, `default`, with one model; or the engines given."""
    return Facts(engines or {"default": Engine(dialect, (Model(MODEL, context),))})


def request_of(body: bytes | Mapping[str, Any], protocol: Protocol = "chat", **more: Any) -> Request:
    """A request with that body; a mapping is completed to the least that its protocol takes."""
    if not isinstance(body, bytes):
        body = json.dumps({**SAID[protocol], **body}, ensure_ascii=False).encode()
    path = next(path for path, spoken in PATHS.items() if spoken == protocol)
    return Request(protocol=protocol, path=path, fields=envelope.parse(body), **more)


def planned(
    body: bytes | Mapping[str, Any],
    config: Config,
    facts: Facts | None = None,
    protocol: Protocol = "chat",
    **more: Any,
) -> Plan:
    return plan(request_of(body, protocol, **more), config, facts or facts_of())


def refused(body: bytes | Mapping[str, Any], config: Config, facts: Facts | None = None, **more: Any) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        planned(body, config, facts, **more)
    return caught.value


def sent(made: Plan) -> dict[str, Any]:
    """The body that the engine will read."""
    body: dict[str, Any] = msgspec.json.decode(made.body)
    return body


def header(made: Plan, name: str) -> str | None:
    """A reply header; it must be there at most once."""
    found = [value.decode("ascii") for key, value in made.headers if key == name.encode()]
    assert len(found) <= 1
    return found[0] if found else None
