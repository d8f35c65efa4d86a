"""Whom a request is for: body, header, model, key, default; and errors that name what there is."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.policy.choice import Engine, Facts, Model
from gateway.protocol.dialects import LLAMA_CPP, VLLM
from tests.policy.made import MODEL, config_of, facts_of, planned, refused

CONFIG = config_of({name: {} for name in ("default", "body", "header", "model", "key")})


@pytest.mark.parametrize("body", [None, "body"])
@pytest.mark.parametrize("header", [None, "header"])
@pytest.mark.parametrize("model", [None, "model", f"{MODEL}:model"])
@pytest.mark.parametrize("key", [None, "key"])
def test_the_first_one_that_names_a_preset_wins(
    body: str | None, header: str | None, model: str | None, key: str | None
) -> None:
    fields = {name: value for name, value in (("preset", body), ("model", model)) if value is not None}
    made = planned(fields, CONFIG, preset=header, key_preset=key)
    assert made.preset == next(n for n in (body, header, model and "model", key, "default") if n)
    assert made.model == MODEL


@pytest.mark.parametrize("model", [None, "", MODEL])
def test_the_engines_own_name_and_no_name_choose_no_preset(model: str | None) -> None:
    assert planned({"model": model}, CONFIG).preset == "default"
    assert planned({"model": model}, CONFIG, key_preset="key").preset == "key"
    assert planned({"model": model, "preset": None}, CONFIG).preset == "default"


@pytest.mark.parametrize(
    ("fields", "more", "code", "param"),
    [
        ({"preset": "nope"}, {}, "preset_not_found", "preset"),
        ({}, {"preset": "nope"}, "preset_not_found", "preset"),
        ({"model": f"{MODEL}:nope"}, {}, "preset_not_found", "preset"),
        ({"model": "nope"}, {}, "model_not_found", "model"),
        ({"model": "nope:body"}, {}, "model_not_found", "model"),
        ({"model": "http://127.0.0.1/x"}, {}, "model_not_found", "model"),
        ({"model": "nope", "preset": "body"}, {}, "model_not_found", "model"),  # a preset does not excuse a model
        ({"model": "Body"}, {}, "model_not_found", "model"),
        ({"model": "x" * 5000}, {}, "model_not_found", "model"),
    ],
)
def test_an_unknown_name_is_a_404_that_lists_the_names(
    fields: dict[str, Any], more: dict[str, Any], code: str, param: str
) -> None:
    error = refused(fields, CONFIG, **more)
    assert (error.status, error.code, error.param) == (404, code, param)
    known = list(CONFIG.presets) + ([MODEL] if param == "model" else [])
    assert all(name in error.message for name in known)
    assert len(error.message) < 500


@pytest.mark.parametrize("field", ["preset", "model"])
@pytest.mark.parametrize("value", [5, True, ["body"], {"a": 1}])
def test_a_name_is_a_string(field: str, value: Any) -> None:
    error = refused({field: value}, CONFIG)
    assert (error.status, error.param) == (400, field)
    assert field in error.message


def two_engines() -> Facts:
    return facts_of(
        big=Engine(VLLM, (Model("qwen", 32768), Model("lora", 32768))),
        small=Engine(LLAMA_CPP, (Model("smol:2", 2048), Model("lora", 2048))),
        cold=Engine(VLLM),
    )


UPSTREAMS = {name: {"base_url": f"http://{name}"} for name in ("big", "small", "cold")}
ROUTED = config_of(
    {
        "plain": {},
        "tiny": {"upstream": "small"},
        "adapted": {"model": "lora"},
        "adapted-tiny": {"upstream": "small", "model": "lora"},
        "frozen": {"upstream": "cold"},
        "lost": {"upstream": "small", "model": "gone"},
    },
    upstreams=UPSTREAMS,
)


@pytest.mark.parametrize(
    ("fields", "preset", "upstream", "model"),
    [
        ({}, "plain", "big", "qwen"),
        ({"model": "tiny"}, "tiny", "small", "smol:2"),
        ({"model": "adapted"}, "adapted", "big", "lora"),
        ({"model": "adapted-tiny"}, "adapted-tiny", "small", "lora"),
        ({"model": "smol:2"}, "plain", "small", "smol:2"),
        ({"model": "smol:2:tiny"}, "tiny", "small", "smol:2"),
        ({"model": "qwen:tiny"}, "tiny", "big", "qwen"),  # a model that is named is the model that is used
        ({"model": "lora", "preset": "tiny"}, "tiny", "big", "lora"),
        ({"model": "tiny", "preset": "adapted"}, "adapted", "big", "lora"),
    ],
)
def test_engine_and_model(fields: dict[str, Any], preset: str, upstream: str, model: str) -> None:
    made = planned(fields, ROUTED, two_engines())
    assert (made.preset, made.upstream, made.model) == (preset, upstream, model)


def test_an_engine_that_was_never_reached_is_503_not_404() -> None:
    for fields in ({}, {"model": "anything"}, {"model": "default"}, {"model": "anything:body"}):
        error = refused(fields, CONFIG, facts_of(default=Engine(VLLM)))
        assert (error.status, error.code) == (503, "upstream_unavailable")
        assert error.retry_after is not None
    assert refused({"model": "frozen"}, ROUTED, two_engines()).status == 503
    assert refused({"model": "gone"}, ROUTED, two_engines()).status == 404
    lost = refused({"model": "lost"}, ROUTED, two_engines())
    assert (lost.status, lost.code, "'gone'" in lost.message) == (404, "model_not_found", True)


def test_a_key_may_be_held_to_its_presets() -> None:
    some = frozenset({"body", "key"})
    assert planned({"model": "body"}, CONFIG, key_presets=some).preset == "body"
    assert planned({}, CONFIG, key_preset="key", key_presets=some).preset == "key"
    for fields in ({"model": "model"}, {"preset": "header"}, {}):
        error = refused(fields, CONFIG, key_presets=some)
        assert (error.status, error.code) == (403, "preset_not_allowed")
