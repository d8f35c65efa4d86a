"""presets.yaml: what it means, and every kind of mistake told with its line and key, all at once.

The JSON Schema for editors is made from the same model, so it is held to the same mistakes.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.config import BadConfig, load, schema
from gateway.policy.params import PARAMS
from tests.policy.made import WORDS, config_of, file_of, preset, problems_of

SHIPPED = (Path(__file__).parents[2] / "presets.yaml").read_text(encoding="utf-8")


def no_prompts(name: str) -> str:
    raise FileNotFoundError(2, "No such file or directory", name)


# --- the shipped file

# name, Chinese title, temperature default, min, max, the other rules
TUTORIAL = [
    ("balanced", "通用对话", 0.7, 0, 2, {}),
    ("customer-service", "客服问答", 0.3, 0.1, 0.5, {"top_p": (0.9, None), "max_tokens": (512, 2048)}),
    ("summarization", "文档摘要", 0.4, 0.3, 0.6, {"top_p": (0.9, None), "max_tokens": (1024, None)}),
    ("creative", "创意写作", 0.9, 0.7, 1.2, {"top_p": (0.9, None)}),
    ("coding", "编程助手", 0.3, 0.2, 0.6, {"top_p": (0.9, None), "max_tokens": (2048, None)}),
    ("role-play", "角色扮演", 1.0, 0.8, 1.3, {"top_p": (0.9, None)}),
]


def test_the_shipped_presets_are_the_tutorials() -> None:
    config = load(SHIPPED, no_prompts)
    assert config.default == "balanced"
    assert list(config.presets) == [row[0] for row in TUTORIAL]
    for name, title, default, low, high, others in TUTORIAL:
        found = config.presets[name]
        rule = found.arm.guard.rules["temperature"]
        assert (rule.default, rule.min, rule.max, rule.pin) == (default, low, high, None)
        rest = {key: (r.default, r.max) for key, r in found.arm.guard.rules.items() if key != "temperature"}
        assert rest == others
        hot = found.arm.guard.hot
        expected = {"repetition_penalty": 1.1} if name in ("creative", "role-play") else None
        assert (None if hot is None else dict(hot.values)) == expected
        assert hot is None or hot.above == 1.0
        assert found.file.title.zh == title
        assert "低温=严谨，高温=创意" in found.file.hint.zh
        assert "Low temperature = rigorous, high = creative" in found.file.hint.en
        assert found.arm.system_prompt is None
        assert len(found.file.starters.en) == len(found.file.starters.zh) > 0


def test_the_shipped_file_names_its_schema_and_satisfies_it() -> None:
    assert SHIPPED.startswith("# yaml-language-server: $schema=./docs/presets.schema.json\n")
    validator().validate(yaml.safe_load(SHIPPED))
    kept = json.loads((Path(__file__).parents[2] / "docs" / "presets.schema.json").read_text(encoding="utf-8"))
    assert kept == schema(), "docs/presets.schema.json is not what `tempera check --schema` prints"


# --- mistakes

VALID = """\
default: chat
presets:
  chat:
    title: {en: Chat, zh: 聊天}
    hint: {en: Hint, zh: 提示}
    starters: {en: [Hello], zh: [你好]}
    parameters:
      temperature: {default: 0.7, min: 0, max: 1.5}
      top_k: {max: 50}
      seed: 7
      stop: ["\\n\\n", "END"]
      max_tokens: {pin: 512}
    when_hot: {above: 1.0, repetition_penalty: 1.1}
    on_violation: reject
    system_prompt: prompts/chat.md
    upstream: main
    model: qwen
    log: off
    log_share: 0.5
  other:
    title: {en: Other, zh: 其他}
    hint: {en: Hint, zh: 提示}
    parameters: {stop: {default: [a, b]}, temperature: 0}
upstreams:
  main:
    base_url: http://127.0.0.1:8000
    dialect: vllm
    timeouts: {connect: 1, headers: 60}
experiments:
  warm:
    preset: other
    variants:
      a: {}
      b: {parameters: {temperature: 0.9}}
    state: running
open_fields: [chat_template]
"""
PROMPTS = {"prompts/chat.md": "Be kind.\n"}


def line_of(text: str, what: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), 1) if what in line)


def test_the_whole_vocabulary() -> None:
    config = load(VALID, PROMPTS.__getitem__)
    guard = config.presets["chat"].arm.guard
    assert (guard.reject, guard.rules["stop"].default, guard.rules["max_tokens"].pin) == (True, ("\n\n", "END"), 512)
    assert config.presets["other"].arm.guard.rules["stop"].default == ("a", "b")
    assert config.presets["other"].arm.guard.rules["temperature"].default == 0
    assert config.presets["chat"].arm.system_prompt == "Be kind."
    assert config.presets["chat"].file.log == "off"
    assert config.upstreams["main"].timeouts.headers == 60
    assert list(config.running) == ["other"]
    assert config.open_fields == {"chat_template"}
    validator().validate(yaml.load(VALID, Loader=yaml.BaseLoader) and as_plain(VALID))


def as_plain(text: str) -> Any:
    """The document as an editor sees it: YAML 1.2, so `off` is a word."""
    return yaml.safe_load(re.sub(r"log: off", 'log: "off"', text))


@functools.cache
def validator() -> jsonschema.Draft202012Validator:
    jsonschema.Draft202012Validator.check_schema(schema())
    return jsonschema.Draft202012Validator(schema())


# old text, new text, key, words of the message, whether the schema can know it too
T = "{default: 0.7, min: 0, max: 1.5}"
HOT = "{above: 1.0, repetition_penalty: 1.1}"
SHORT = {"chat.": "presets.chat.parameters.", "+": "presets.chat.", "arm.": "experiments.warm.variants.b.parameters."}
MISTAKES = [
    ("default: chat", "default: chatt", "default", "'chatt'.*chat, other", False),
    ("default: chat", "defualt: chat", "defualt", "unknown key.*'default'", True),
    ("default: chat", "default: [chat]", "default", "str", True),
    ("    on_violation: reject", "    on_violation: clmap", "+on_violation", "clmap", True),
    ("    on_violation: reject", "    on_violations: clamp", "+on_violations", "'on_violation'", True),
    ("    hint: {en: Hint, zh: 提示}\n    starters", "    starters", "presets.chat", "'hint' is missing", True),
    ("{en: Chat, zh: 聊天}", "{en: Chat}", "+title", "'zh' is missing", True),
    ("{en: Chat, zh: 聊天}", "{en: Chat, zh: 聊天, fr: x}", "+title.fr", "unknown key", True),
    ("{en: Chat, zh: 聊天}", "{en: '', zh: 聊天}", "+title.en", "length", True),
    ("{en: Chat, zh: 聊天}", "Chat", "+title", "mapping", True),
    ("{en: [Hello], zh: [你好]}", "{en: Hello}", "+starters.en", "array", True),
    ("temperature: {default: 0.7,", "temprature: {default: 0.7,", "chat.temprature", "'temperature'", True),
    (T, "{default: 0.7, minimum: 0}", "chat.temperature.minimum", "unknown key.*'min'", True),
    (T, "{default: 0.7, min: 1.5, max: 0.2}", "chat.temperature.min", r"1\.5 is above max 0\.2", False),
    (T, "{default: 1.6, min: 0, max: 1.5}", "chat.temperature.default", r"1\.6 is outside \[0, 1\.5\]", False),
    (T, "{pin: 0.5, default: 0.7}", "chat.temperature", "pin excludes default", False),
    (T, "{pin: 0.5, min: 0}", "chat.temperature", "pin excludes", False),
    (T, "{default: 0.7, max: 2.5}", "chat.temperature.max", r"\[0, 2\].*2\.5", True),
    (T, "{default: '0.7'}", "chat.temperature.default", r"\[0, 2\].*'0\.7'", True),
    (T, "true", "chat.temperature.default", r"\[0, 2\].*True", True),
    (T, "warm", "chat.temperature.default", r"\[0, 2\].*'warm'", True),
    (T, "[0.1, 0.5]", "chat.temperature.default", r"\[0, 2\]", True),
    (T, ".nan", "chat.temperature.default", r"\[0, 2\].*nan", False),
    (T, "null", "chat.temperature", "value", True),
    (T, "{min: true}", "chat.temperature.min", "bool", True),
    ("top_k: {max: 50}", "top_k: {max: 50.0}", "chat.top_k.max", r"integer.*50\.0", False),
    ("top_k: {max: 50}", "top_k: {max: -2}", "chat.top_k.max", "integer.*-1 or 0 for off", True),
    ("top_k: {max: 50}", "top_k: {default: 0, max: 50}", "chat.top_k.default", "outside", False),
    ("top_k: {max: 50}", "top_p: 0", "chat.top_p.default", r"\(0, 1\]", True),
    ("top_k: {max: 50}", "repetition_penalty: {max: 0}", "chat.repetition_penalty.max", r"\(0, 2\]", True),
    ("top_k: {max: 50}", "n: 2", "chat.n", "unknown parameter", True),
    ("seed: 7", "seed: seven", "chat.seed", "integer.*'seven'", True),
    ("seed: 7", "seed: true", "chat.seed", "integer", True),
    ("seed: 7", "seed: 7.5", "chat.seed", "integer", True),
    ("seed: 7", "seed: {min: 1}", "chat.seed", "no min or max", True),
    ('stop: ["\\n\\n", "END"]', "stop: [a, b, c, d, e]", "chat.stop", "at most 4", True),
    ('stop: ["\\n\\n", "END"]', "stop: [a, 5]", "chat.stop", "string", True),
    ('stop: ["\\n\\n", "END"]', "stop: ['']", "chat.stop", "string", True),
    ('stop: ["\\n\\n", "END"]', "stop: {pin: [a, b, c, d, e]}", "chat.stop", "at most 4", True),
    ("{pin: 512}", "{pin: 0}", "chat.max_tokens.pin", ">= 1", True),
    ("{pin: 512}", "{max: 8193}", "chat.max_tokens.max", "8192.*8193", True),
    (HOT, "{repetition_penalty: 1.1}", "+when_hot.above", "temperature", True),
    (HOT, "{above: 2.5, repetition_penalty: 1.1}", "+when_hot.above", r"\[0, 2\]", True),
    (HOT, "{above: 1.0, temperature: 0.5}", "+when_hot.temperature", "hot", True),
    (HOT, "{above: 1.0, top_k: 0}", "+when_hot.top_k", "bounds", False),
    (HOT, "{above: 1.0, min_p: 2}", "+when_hot.min_p", r"\[0, 1\]", True),
    (HOT, "[1.0]", "+when_hot", "object", True),
    ("prompts/chat.md", "prompts/no.md", "+system_prompt", "no.md.*No such file", False),
    ("upstream: main", "upstream: mian", "+upstream", "'mian'", False),
    ("log: off", "log: on", "+log", "'on'", True),
    ("log: off", "log: false", "+log", "bool", True),
    ("log_share: 0.5", "log_share: 1.5", "+log_share", "1", True),
    ("  other:", "  Other One:", "presets.Other One", "lower-case", False),
    ("http://127.0.0.1:8000", "127.0.0.1:8000", "upstreams.main.base_url", "http", True),
    ("dialect: vllm", "dialect: tgi", "upstreams.main.dialect", "tgi", True),
    ("{connect: 1, headers: 60}", "{connect: 0}", "upstreams.main.timeouts.connect", "0", True),
    ("{connect: 1, headers: 60}", "{first: 1}", "upstreams.main.timeouts.first", "unknown key", True),
    ("preset: other", "preset: ohter", "experiments.warm.preset", "'ohter'", False),
    ("temperature: 0.9", "temperature: 2.9", "arm.temperature.default", r"\[0, 2\]", True),
    ("temperature: 0.9", "tempo: 1", "arm.tempo", "unknown parameter", True),
    ("state: running", "state: runing", "experiments.warm.state", "runing", True),
    ("      a: {}", "      'a\\nb': {}", "experiments.warm.variants", "lower-case", False),
    ("open_fields: [chat_template]", "open_fields: chat_template", "open_fields", "array", True),
]  # fmt: skip


def spelled(key: str) -> str:
    start = next((start for start in SHORT if key.startswith(start)), "")
    return SHORT.get(start, "") + key.removeprefix(start)


@pytest.mark.parametrize(("old", "new", "key", "words", "_schema"), MISTAKES)
def test_a_mistake_is_told_with_its_line_and_key(old: str, new: str, key: str, words: str, _schema: bool) -> None:
    assert VALID.count(old) == 1
    text, key = VALID.replace(old, new), spelled(key)
    problems = problems_of(text, PROMPTS)
    found = [p for p in problems if p.key.startswith(key) and re.search(words, p.message)]
    assert found, "\n".join(map(str, problems))
    here = "  chat:" if key == "presets.chat" else new.splitlines()[0]
    assert line_of(text, here) in {p.line for p in found}
    assert len(problems) <= 2, "one mistake is not many: " + "; ".join(map(str, problems))


@pytest.mark.parametrize(("old", "new", "key", "words", "_schema"), [m for m in MISTAKES if m[4]])
def test_the_schema_knows_it_too(old: str, new: str, key: str, words: str, _schema: bool) -> None:
    assert list(validator().iter_errors(as_plain(VALID.replace(old, new))))


def test_all_at_once() -> None:
    """Mistakes in different places do not hide each other, whatever their kind."""
    text = VALID
    expected = set()
    for old, new, key in [
        ("{en: Chat, zh: 聊天}", "{en: Chat}", "presets.chat.title"),
        (T, "{default: 3, min: 2, max: 1}", "presets.chat.parameters.temperature.default"),
        ("top_k: {max: 50}", "top_q: 1", "presets.chat.parameters.top_q"),
        (HOT, "{above: 1.0, min_p: 2}", "presets.chat.when_hot.min_p"),
        ("    on_violation: reject", "    on_violation: x", "presets.chat.on_violation"),
        ("    hint: {en: Hint, zh: 提示}\n    parameters", "    parameters", "presets.other"),
        ("temperature: 0}", "temperature: -1}", "presets.other.parameters.temperature.default"),
        ("upstream: main", "upstream: x", "presets.chat.upstream"),
        ("dialect: vllm", "dialect: tgi", "upstreams.main.dialect"),
        ("state: running", "state: runing", "experiments.warm.state"),
        ("default: chat", "default: x", "default"),
        ("open_fields:", "open_feilds:", "open_feilds"),
    ]:  # fmt: skip
        assert text.count(old) == 1, old
        text = text.replace(old, new)
        expected.add(key)
    problems = problems_of(text + "default: y\n", PROMPTS)
    assert expected <= {p.key for p in problems}
    assert ("default", "appears twice (first on line 1)") in {(p.key, p.message) for p in problems}
    assert len({str(p) for p in problems}) == len(problems)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "mapping"),
        ("[]", "mapping"),
        ("presets: {}", "at least one"),
        ("presets: []", "presets"),
        ("default: x", "'presets' is missing"),
        ("presets: {balanced: null}", "mapping"),
        ("presets: {balanced: 5}", "mapping"),
        ("presets:\n  a: {\n", "YAML"),
    ],
)
def test_hardly_a_file(text: str, words: str) -> None:
    assert any(words in str(problem) for problem in problems_of(text))


def test_duplicate_keys_anywhere() -> None:
    text = VALID.replace("top_k: {max: 50}", "top_k: {max: 50, max: 60}\n      top_k: 5").replace("  other:", "  chat:")
    keys = [p.key for p in problems_of(text, PROMPTS) if "twice" in p.message]
    assert keys == ["presets.chat.parameters.top_k.max", "presets.chat.parameters.top_k", "presets.chat"]


@given(st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9000) | st.floats() | st.sampled_from(["clamp", "off", "a", ""]),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.sampled_from(
        ["presets", "default", "a", "title", "hint", "en", "zh", "parameters", "temperature", "top_k", "stop", "seed",
         "max_tokens", "min", "max", "pin", "when_hot", "above", "min_p", "upstreams", "experiments", "variants",
         "weight", "preset", "log", "upstream", "system_prompt", "on_violation", "open_fields"]), v, max_size=5),
    max_leaves=20,
))  # fmt: skip
def test_nothing_in_a_file_can_end_in_anything_but_problems(document: Any) -> None:
    files = [document, {"presets": {"a": document}, "default": "a"}]
    files += [file_of({"a": preset(parameters=document)}), {"presets": {"a": {**WORDS, "when_hot": document}}}]
    files += [{"presets": {"a": WORDS}, "default": "a", "experiments": {"a": document}, "upstreams": document}]
    for file in files:
        text = file if isinstance(file, str) else json.dumps(file)
        with contextlib.suppress(BadConfig):
            load(text, no_prompts)


# --- what a Config is


def test_the_revision_is_of_the_text_and_of_every_prompt() -> None:
    def revision(text: str, prompts: dict[str, str]) -> str:
        return load(text, prompts.__getitem__).revision

    base = revision(VALID, PROMPTS)
    assert re.fullmatch("[0-9a-f]{12}", base)
    assert revision(VALID, dict(PROMPTS)) == base
    assert revision(VALID, PROMPTS | {"unused.md": "x"}) == base
    others = {
        revision(VALID + "# a comment\n", PROMPTS),
        revision(VALID, {"prompts/chat.md": "Be unkind."}),
        revision(VALID.replace("0.7", "0.8"), PROMPTS),
    }
    assert len(others | {base}) == 4


def test_an_empty_prompt_is_a_mistake() -> None:
    assert [(p.key, p.line) for p in problems_of(VALID, {"prompts/chat.md": " \n"})] == [
        ("presets.chat.system_prompt", line_of(VALID, "system_prompt"))
    ]


def test_an_experiment_narrows_and_never_widens() -> None:
    def problems(change: dict[str, Any], base: dict[str, Any]) -> list[str]:
        entry = {"p": preset(parameters=base)}
        experiment = {"e": {"preset": "p", "variants": {"a": {}, "b": {"parameters": change}}}}
        return [p.key for p in problems_of(file_of(entry, experiments=experiment))]

    here = "experiments.e.variants.b.parameters.temperature"
    bounds = {"temperature": {"default": 0.5, "min": 0.2, "max": 0.8}}
    assert problems({"temperature": 0.9}, bounds)[0].startswith(here)
    assert problems({"temperature": {"max": 1.0}}, bounds)[0].startswith(here)
    assert problems({"temperature": {"pin": 0.1}}, bounds)[0].startswith(here)
    assert problems({"temperature": {"min": 0.6}}, bounds)[0].startswith(here), "the default it inherits is outside"
    assert problems({"temperature": 0.5}, {"temperature": {"pin": 0.5}})[0].startswith(here)

    made = config_of(
        {"p": {"parameters": bounds}},
        experiments={"e": {"preset": "p", "variants": {"a": {}, "b": {"parameters": {"temperature": {"max": 0.6}}}}}},
    )
    rule = made.trials["e"].arms["b"].guard.rules["temperature"]
    assert (rule.default, rule.min, rule.max) == (0.5, 0.2, 0.6)
    assert made.trials["e"].arms["a"].guard.rules["temperature"].max == 0.8


@pytest.mark.parametrize(
    ("rule", "hot"),
    [
        ({"default": 0.5, "min": 0.5, "max": 0.5}, 0.5),
        ({"min": 0.5, "max": 0.5}, 0.5),
        ({"default": 2, "max": 2}, 2),
        ({"pin": 0.1}, 0.1),
        ({}, 2),
    ],
)
def test_a_bound_belongs_to_what_it_bounds(rule: dict[str, Any], hot: float) -> None:
    config_of({"p": {"parameters": {"repetition_penalty": rule}, "when_hot": {"above": 2, "repetition_penalty": hot}}})


def test_two_experiments_on_one_preset_are_one_too_many() -> None:
    arms = {"preset": "p", "state": "running", "variants": {"a": {}, "b": {}}}
    found = problems_of(file_of({"p": preset()}, experiments={"e": arms, "f": arms}))
    assert [(p.key, "'e'" in p.message) for p in found] == [("experiments.f.preset", True)]
    config_of({"p": {}}, experiments={"e": arms, "f": arms | {"state": "draft"}})


@pytest.mark.parametrize("name", PARAMS)
def test_every_parameter_may_be_set_in_every_way(name: str) -> None:
    value = 5 if PARAMS[name].integer else 0.5
    for rule in (value, {"default": value}, {"min": value}, {"max": value}, {"pin": value}):
        config = config_of({"p": {"parameters": {name: rule}}})
        assert name in config.presets["p"].arm.guard.rules
        validator().validate(json.loads(config.text))
