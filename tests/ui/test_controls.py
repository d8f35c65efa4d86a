"""Scenarios, widgets and what is asked for, from presets as the gateway writes them."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from ui import controls
from ui.words import WORDS, known

NEUTRAL = {"top_p": 1, "top_k": 0, "min_p": 0, "repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}


def preset(name: str = "p", **changes: Any) -> dict[str, Any]:
    """A preset with the shipped defaults; `changes` are rules by parameter, or fields of the preset."""
    rules = {name: {"default": value, "min": None, "max": None, "pin": None} for name, value in NEUTRAL.items()}
    rules["temperature"] = {"default": 0.3, "min": 0.1, "max": 0.5, "pin": None}
    rules["max_tokens"] = {"default": None, "min": None, "max": None, "pin": None}
    rules |= {key: rules[key] | value for key, value in changes.items() if key in rules}
    body = {
        "name": name,
        "title": {"en": "Title", "zh": "标题"},
        "hint": {"en": "Hint", "zh": "提示"},
        "icon": "feather",
        "starters": {"en": ["Go. "], "zh": ["开始。"]},
        "parameters": rules,
        "when_hot": {},
    }
    return body | {key: value for key, value in changes.items() if key not in rules}


def test_a_preset_is_a_scenario_in_both_languages() -> None:
    (english,) = controls.profiles([preset()], "en")
    (chinese,) = controls.profiles([preset()], "zh")
    assert (english.name, english.display_name, chinese.display_name) == ("p", "Title", "标题")
    assert "∈ [0.1, 0.5]" in english.markdown_description
    assert [starter.message for starter in chinese.starters] == ["开始。"]
    assert english.default


def test_a_preset_that_says_little_is_a_scenario_all_the_same() -> None:
    (profile,) = controls.profiles([preset(starters=None, icon=None, hint=None, title={"zh": "只有中文"})], "en")
    assert (profile.display_name, profile.starters) == ("只有中文", [])


@pytest.mark.parametrize(("name", "drawn"), [("feather", "<path"), ("no-such-icon", ">T</text>"), (None, ">T</text>")])
def test_icons_are_drawn_or_are_the_first_letter(name: str | None, drawn: str) -> None:
    kind, data = controls.icon(preset(icon=name)).split(",")
    assert kind == "data:image/svg+xml;base64"
    assert drawn in base64.b64decode(data).decode()


def test_icons_are_as_warm_as_their_temperature() -> None:
    cold, hot = (controls.icon(preset(temperature={"default": value})) for value in (0, 1.9))
    assert "rgb(37,99,235)" in base64.b64decode(cold.split(",")[1]).decode()
    assert "rgb(220,38,38)" in base64.b64decode(hot.split(",")[1]).decode()


def test_sliders_have_the_bounds_and_what_was_kept() -> None:
    basic, advanced = controls.widgets(preset(), {"temperature__p": 0.2, "top_p__other": 0.5}, "en")
    temperature, *_ = basic.inputs
    assert (temperature.min, temperature.max, temperature.initial, temperature.label) == (
        0.1,
        0.5,
        0.2,
        "Temperature (0.1–0.5)",
    )
    assert advanced.inputs[0].initial == 1


def test_what_is_pinned_is_shown_but_locked_and_never_asked_for() -> None:
    pinned = preset(temperature={"pin": 0.4}, top_k={"pin": 500})
    basic, advanced = controls.widgets(pinned, {"temperature__p": 0.2}, "zh")
    assert (basic.inputs[0].disabled, basic.inputs[0].initial, basic.inputs[0].label) == (True, 0.4, "温度（已固定）")
    assert advanced.inputs[1].max == 500
    assert controls.asked(pinned, {"temperature__p": 0.2, "top_k__p": 7}) == {}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {}),
        ({"temperature__p": 0.3, "top_p__p": 1, "max_tokens__p": 0}, {}),
        ({"temperature__p": 0.4, "max_tokens__p": 64.0}, {"temperature": 0.4, "max_tokens": 64}),
        ({"temperature__other": 0.4, "seed__p": "7", "temps__p": "1 2 3"}, {}),
        ({"temperature__p": None}, {}),
    ],
)
def test_only_what_differs_from_the_preset_is_asked_for(settings: dict[str, Any], expected: dict[str, Any]) -> None:
    assert controls.asked(preset(), settings) == expected


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"default": 0.3, "min": 0.1, "max": 0.5}, [0.1, 0.3, 0.5]),
        ({"default": 0.1, "min": 0.1, "max": 0.5}, [0.1, 0.3, 0.5]),
        ({"default": None, "min": None, "max": None}, [0.0, 1.0, 2.0]),
    ],
)
def test_default_temperatures(rule: dict[str, Any], expected: list[float]) -> None:
    assert controls.default_temperatures(preset(temperature=rule)) == expected


def test_what_is_hot_is_told() -> None:
    basic, _ = controls.widgets(preset(when_hot={"above": 1.0, "repetition_penalty": 1.1}), {}, "en")
    assert basic.inputs[0].tooltip == "Above 1.0, unless you set them: repetition_penalty 1.1"


def test_every_text_has_both_languages_with_the_same_blanks() -> None:
    for key, (english, chinese) in WORDS.items():
        assert english, key
        assert chinese, key
        blanks = [sorted(part.split("}")[0] for part in text.split("{")[1:]) for text in (english, chinese)]
        assert blanks[0] == blanks[1], key


@pytest.mark.parametrize(
    ("tag", "language"), [("zh-CN", "zh"), ("zh", "zh"), ("ZH-hk", "zh"), ("fr", "en"), (None, "en")]
)
def test_known(tag: str | None, language: str) -> None:
    assert known(tag) == language
