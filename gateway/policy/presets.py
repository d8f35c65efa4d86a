"""A preset: a scenario's name, its words for people, and the rules for its sampling parameters.

`PresetFile` is what presets.yaml says (and what the editors' schema is made from); `Preset` is what the gateway uses:
rules checked against the parameter table, prompt text in place. Knows the parameter table; knows nothing about
requests or files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from gateway.policy.document import Document, Path, suggest
from gateway.policy.params import MAX_GENERATION, PARAMS, UNJUDGED, Guard, Hot, Number, Param, Rule

Text = Annotated[str, Meta(min_length=1, max_length=2000)]


class Words(Struct, frozen=True, forbid_unknown_fields=True):
    """The same thing said in English and in Chinese."""

    en: Text
    zh: Text


class Starters(Struct, frozen=True, forbid_unknown_fields=True):
    """First messages that the chat offers."""

    en: list[Text] = []
    zh: list[Text] = []


class PresetFile(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One entry under `presets:`.

    A parameter is a scalar (a default), `{default, min, max}` (bounds) or `{pin}` (fixed).
    """

    title: Words
    hint: Words
    icon: str = "message-circle"
    starters: Starters = Starters()
    parameters: dict[str, Any] = {}
    when_hot: dict[str, Any] | None = None
    on_violation: Literal["clamp", "reject"] = "clamp"
    system_prompt: str | None = None
    upstream: str | None = None
    model: str | None = None
    log: Literal["full", "parameters", "off"] = "full"
    log_share: Annotated[float, Meta(ge=0, le=1)] = 1.0


class Arm(Struct, frozen=True, eq=False):
    """What a preset, or one variant of an experiment on it, really applies.

    Equal only to itself, so that it can key a cache.
    """

    guard: Guard
    system_prompt: str | None = None


class Preset(Struct, frozen=True, kw_only=True):
    """A preset as it is in force."""

    name: str
    file: PresetFile
    arm: Arm


def build_guard(
    document: Document,
    path: Path,
    parameters: Mapping[str, Any],
    when_hot: Mapping[str, Any] | None,
    reject: bool = False,
) -> Guard:
    """The rules of one preset; problems go to the document."""
    rules = build_rules(document, (*path, "parameters"), parameters)
    hot = _build_hot(document, (*path, "when_hot"), when_hot, rules) if when_hot is not None else None
    return Guard(rules, hot, reject)


def build_rules(document: Document, path: Path, parameters: Mapping[str, Any]) -> dict[str, Rule]:
    """A rule per parameter named; unknown parameters and impossible rules are reported at their lines."""
    rules = {}
    for name, value in parameters.items():
        here = (*path, name)
        if name not in PARAMS and name not in UNJUDGED:
            document.report(here, f"unknown parameter{suggest(name, {*PARAMS, *UNJUDGED})}")
            continue
        if value is None:
            document.report(here, "a value is missing")
            continue
        rule = document.convert(value, Rule, here) if isinstance(value, dict) else Rule(default=_frozen(value))
        if rule is not None and _sound(document, here, name, rule):
            rules[name] = rule
    return rules


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def narrow(document: Document, path: Path, guard: Guard, changes: Mapping[str, Rule]) -> Guard:
    """A preset's guard with an experiment's changes.

    Which must stay inside the preset's own bounds and leave its pins alone.
    """
    rules = dict(guard.rules)
    for name, change in changes.items():
        base = rules.get(name, Rule())
        here = (*path, name)
        if base.pin is not None:
            document.report(here, f"the preset fixes {name} at {base.pin}")
        for key in ("default", "min", "max", "pin"):
            value = getattr(change, key)
            if value is not None and name in PARAMS and not _inside(PARAMS[name], base, value):
                document.report(here, f"{key} {value} is outside the preset's bounds")
        merged = {
            key: getattr(change, key) for key in ("default", "min", "max", "pin") if getattr(change, key) is not None
        }
        rules[name] = Rule(pin=change.pin) if change.pin is not None else msgspec.structs.replace(base, **merged)
        _sound(document, here, name, rules[name])
    return Guard(rules, guard.hot, guard.reject)


def _sound(document: Document, path: Path, name: str, rule: Rule) -> bool:
    """Whether one rule makes sense; reports everything that does not."""
    before = len(document.problems)
    if rule.pin is not None and (rule.default, rule.min, rule.max) != (None, None, None):
        document.report(path, "pin excludes default, min and max")
    if name in UNJUDGED:
        _sound_unjudged(document, path, name, rule)
        return len(document.problems) == before
    param = PARAMS[name]
    for key in ("default", "min", "max", "pin"):
        value = getattr(rule, key)
        if value is not None and not param.holds(value):
            document.report((*path, key), f"{name} must be {param.domain}; got {value!r}")
        elif value is not None and name == "max_tokens" and value > MAX_GENERATION:
            document.report((*path, key), f"at most {MAX_GENERATION} tokens are generated; got {value}")
    if len(document.problems) > before:
        return False
    if rule.min is not None and rule.max is not None and param.order(rule.min) > param.order(rule.max):
        document.report((*path, "min"), f"min {rule.min} is above max {rule.max}")
    elif rule.default is not None and not _inside(param, rule, rule.default):
        document.report((*path, "default"), f"default {rule.default} is outside [{rule.min}, {rule.max}]")
    return len(document.problems) == before


def _sound_unjudged(document: Document, path: Path, name: str, rule: Rule) -> None:
    if rule.min is not None or rule.max is not None:
        document.report(path, f"{name} has no min or max")
        return
    value = rule.default if rule.pin is None else rule.pin
    if name == "seed" and (isinstance(value, bool) or not isinstance(value, int)):
        document.report(path, f"seed must be an integer; got {value!r}")
    texts = value if isinstance(value, tuple) else (value,)
    if name == "stop" and not (len(texts) <= 4 and all(isinstance(text, str) and text for text in texts)):
        document.report(path, f"stop must be a string or at most 4 strings; got {value!r}")


_HOT: Final = PARAMS.keys() - {"temperature", "max_tokens"}


def _build_hot(document: Document, path: Path, entry: Mapping[str, Any], rules: Mapping[str, Rule]) -> Hot | None:
    above = entry.get("above")
    if not PARAMS["temperature"].holds(above):
        document.report((*path, "above"), f"a temperature in [0, 2] is needed; got {above!r}")
        return None
    values: dict[str, Number] = {}
    for name, value in entry.items():
        if name == "above":
            continue
        if name not in _HOT:
            document.report((*path, name), f"not a parameter for hot replies{suggest(name, _HOT)}")
        elif not PARAMS[name].holds(value):
            document.report((*path, name), f"{name} must be {PARAMS[name].domain}; got {value!r}")
        elif not _inside(PARAMS[name], rules.get(name, Rule()), value):
            document.report((*path, name), f"{value} is outside the preset's own bounds")
        else:
            values[name] = value
    return Hot(float(above), values)  # type: ignore[arg-type]


def _inside(param: Param, rule: Rule, value: Any) -> bool:
    if not param.holds(value):
        return False
    low = rule.min is None or param.order(value) >= param.order(rule.min)
    return low and (rule.max is None or param.order(value) <= param.order(rule.max))
