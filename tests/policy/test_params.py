"""Whatever a preset allows and whatever a client asks, what is used is inside both, and every change is told."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from gateway.policy.params import (
    CHOICES,
    MAX_GENERATION,
    PARAMS,
    Adjustment,
    Effective,
    Guard,
    Hot,
    Param,
    Rule,
    resolve,
)
from gateway.protocol.errors import OutOfRange

SAMPLERS = [name for name in PARAMS if name != "max_tokens"]
DOMAINS: dict[str, tuple[float, float]] = {  # the contract's table, once more and by hand
    "temperature": (0, 2),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "repetition_penalty": (0, 2),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
}
OPEN_BELOW = {"top_p", "repetition_penalty"}


def values_of(name: str) -> st.SearchStrategy[Any]:
    """Values in a parameter's domain."""
    if name == "top_k":
        return st.one_of(st.integers(1, 200), st.sampled_from([-1, 0, 1, 2**31 - 1]))
    if name == "max_tokens":
        return st.one_of(st.integers(1, 9000), st.just(2**63 - 1))
    low, high = DOMAINS[name]
    return st.one_of(
        st.floats(low, high, exclude_min=name in OPEN_BELOW),
        st.integers(int(low) + (name in OPEN_BELOW), int(high)),
        st.integers(1, 20).map(lambda n: n * high / 20),
    )


def order(name: str, value: float) -> float:
    """Off is above everything else: it restricts nothing."""
    return math.inf if name == "top_k" and value in (-1, 0) else value


def allowed(name: str, rule: Rule, value: Any) -> bool:
    if rule.pin is not None:
        return bool(value == rule.pin)
    low = rule.min is None or order(name, value) >= order(name, rule.min)
    return low and (rule.max is None or order(name, value) <= order(name, rule.max))


@st.composite
def rules_of(draw: st.DrawFn, name: str) -> Rule:
    if draw(st.integers(0, 4)) == 0:
        return Rule(pin=draw(values_of(name)))
    picked = sorted(draw(st.lists(values_of(name), min_size=3, max_size=3)), key=lambda v: order(name, v))
    low, default, high = (value if draw(st.booleans()) else None for value in picked)
    return Rule(default=default, min=low, max=high)


@st.composite
def guards(draw: st.DrawFn) -> Guard:
    names = draw(st.sets(st.sampled_from(list(PARAMS))))
    rules = {name: draw(rules_of(name)) for name in sorted(names)}
    hot = None
    if draw(st.booleans()):
        extra = draw(st.sets(st.sampled_from([n for n in SAMPLERS if n != "temperature"]), min_size=1))
        hot = Hot(draw(st.sampled_from([0.0, 0.5, 1.0])), {name: draw(values_of(name)) for name in sorted(extra)})
    return Guard(rules, hot, draw(st.booleans()))


_ASKED = st.fixed_dictionaries({}, optional={name: values_of(name) for name in PARAMS})
_CONTEXTS = st.sampled_from([None, 512, 4096, 131_072])


def tried(guard: Guard, asked: Mapping[str, Any], context: int | None) -> Effective:
    """What is used; a refusal is no example, but only a guard that rejects may refuse."""
    found = None
    with contextlib.suppress(*([OutOfRange] if guard.reject else [])):
        found = resolve(guard, asked, context)
    assume(found is not None)
    assert found is not None
    return found


@given(guards(), _ASKED, _CONTEXTS)
@example(
    Guard({"repetition_penalty": Rule(min=1.0, max=1.05)}, Hot(1.0, {"repetition_penalty": 1.1})),
    {"temperature": 1.5},
    None,
)
def test_what_is_used_is_inside_domain_and_bounds(guard: Guard, asked: dict[str, Any], context: int | None) -> None:
    used = tried(guard, asked, context).values
    assert set(SAMPLERS) <= used.keys(), "every sampler field is sent"
    for name, value in used.items():
        assert PARAMS[name].holds(value), f"{name} {value}"
        if name != "max_tokens":
            assert allowed(name, guard.rules.get(name, Rule()), value), f"{name} {value}"
    if "max_tokens" in used:
        cap = min(MAX_GENERATION, context or MAX_GENERATION)
        assert used["max_tokens"] <= cap
        assert used["max_tokens"] == cap or allowed(
            "max_tokens", guard.rules.get("max_tokens", Rule()), used["max_tokens"]
        )


@given(guards(), _ASKED, _CONTEXTS)
def test_resolving_what_was_used_changes_nothing(guard: Guard, asked: dict[str, Any], context: int | None) -> None:
    rule = guard.rules.get("max_tokens", Rule())
    lowest = max(bound for bound in (rule.min, rule.pin, 1) if isinstance(bound, int))
    assume(lowest <= min(MAX_GENERATION, context or MAX_GENERATION))  # else the engine cannot do what the preset says
    first = tried(guard, asked, context)
    again = resolve(guard, first.values, context)
    assert again.values == first.values
    assert again.adjustments == ()


@given(guards(), _ASKED, _CONTEXTS)
def test_every_change_is_told_once_and_nothing_else_is(
    guard: Guard, asked: dict[str, Any], context: int | None
) -> None:
    found = tried(guard, asked, context)
    assert found.asked == asked
    told = {a.name: a for a in found.adjustments}
    assert len(told) == len(found.adjustments)
    assert told.keys() == {name for name, value in asked.items() if found.values[name] != value}
    for name, adjustment in told.items():
        assert (adjustment.asked, adjustment.used) == (asked[name], found.values[name])
        rule = guard.rules.get(name, Rule())
        assert adjustment.by in {"pin", "cap"} if rule.pin is not None else adjustment.by in {"bound", "cap"}
    if guard.reject:
        assert {a.by for a in found.adjustments} <= {"cap"}


@given(guards(), _ASKED, _CONTEXTS)
def test_inputs_are_not_touched_and_the_answer_is_their_own(
    guard: Guard, asked: dict[str, Any], context: int | None
) -> None:
    before = copy.deepcopy((guard, asked))
    first = tried(guard, asked, context)
    assert (guard, asked) == before
    asked.clear()
    assert resolve(guard, dict(first.asked), context) == first


def test_with_nothing_said_everything_is_neutral_and_the_temperature_is_the_tutorials() -> None:
    assert resolve(Guard({}), {}).values == {
        "temperature": 0.7,
        "top_p": 1,
        "top_k": 0,
        "min_p": 0,
        "repetition_penalty": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0,
    }


BOUNDED = {"temperature": Rule(default=0.3, min=0.1, max=0.5), "top_p": Rule(default=0.9)}


@pytest.mark.parametrize(
    ("rules", "asked", "name", "used", "by"),
    [
        (BOUNDED, {}, "temperature", 0.3, None),
        (BOUNDED, {"temperature": 0.4}, "temperature", 0.4, None),
        (BOUNDED, {"temperature": 0.5}, "temperature", 0.5, None),
        (BOUNDED, {"temperature": 1.4}, "temperature", 0.5, "bound"),
        (BOUNDED, {"temperature": 0}, "temperature", 0.1, "bound"),  # 0 is a value, not "unset"
        (BOUNDED, {"top_p": 0.2}, "top_p", 0.2, None),
        ({}, {"temperature": 0}, "temperature", 0, None),
        ({"temperature": Rule(default=0)}, {}, "temperature", 0, None),
        ({"temperature": Rule(pin=0)}, {"temperature": 1}, "temperature", 0, "pin"),
        ({"temperature": Rule(max=0)}, {}, "temperature", 0, None),
        ({"temperature": Rule(min=0.9)}, {}, "temperature", 0.9, None),  # the neutral start is moved inside, untold
        ({"presence_penalty": Rule(max=0)}, {"presence_penalty": 1}, "presence_penalty", 0, "bound"),
        ({"top_p": Rule(pin=0.9)}, {"top_p": 0.9}, "top_p", 0.9, None),
        ({"seed": Rule(pin=0)}, {"seed": 7}, "seed", 0, "pin"),
        ({"seed": Rule(default=0)}, {}, "seed", 0, None),
        ({"seed": Rule(default=3)}, {"seed": 7}, "seed", 7, None),
        ({"stop": Rule(pin=("a",))}, {"stop": ("b",)}, "stop", ("a",), "pin"),
        # top_k: -1 and 0 are off, and off lies above every bound
        ({}, {"top_k": -1}, "top_k", -1, None),
        ({}, {"top_k": 0}, "top_k", 0, None),
        ({"top_k": Rule(max=50)}, {"top_k": 0}, "top_k", 50, "bound"),
        ({"top_k": Rule(max=50)}, {"top_k": -1}, "top_k", 50, "bound"),
        ({"top_k": Rule(max=50)}, {}, "top_k", 50, None),
        ({"top_k": Rule(min=10)}, {"top_k": 0}, "top_k", 0, None),
        ({"top_k": Rule(min=10)}, {"top_k": 5}, "top_k", 10, "bound"),
        ({"top_k": Rule(min=10, max=0)}, {"top_k": 5000}, "top_k", 5000, None),
        ({"top_k": Rule(pin=0)}, {"top_k": 40}, "top_k", 0, "pin"),
        # max_tokens
        ({}, {"max_tokens": 100}, "max_tokens", 100, None),
        ({}, {"max_tokens": 8193}, "max_tokens", 8192, "cap"),
        ({"max_tokens": Rule(max=2048)}, {"max_tokens": 9000}, "max_tokens", 2048, "bound"),
    ],
)
def test_one_parameter(rules: dict[str, Rule], asked: dict[str, Any], name: str, used: Any, by: str | None) -> None:
    found = resolve(Guard(rules), asked)
    assert (found.values[name], type(found.values[name])) == (used, type(used))
    assert found.adjustments == (() if by is None else (Adjustment(name, asked[name], used, by),))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rule", "asked", "context", "used", "by"),
    [
        (Rule(), None, 2048, None, None),  # a preset without a default sends none
        (Rule(max=4096), None, 2048, None, None),
        (Rule(default=4096), None, 2048, 2048, None),
        (Rule(pin=4096), None, 2048, 2048, None),
        (Rule(default=1024), None, None, 1024, None),
        (Rule(), 5000, 2048, 2048, "cap"),
        (Rule(), 5000, 131_072, 5000, None),
        (Rule(), 50_000, 131_072, 8192, "cap"),
        (Rule(max=4096), 5000, 2048, 2048, "cap"),
        (Rule(max=1024), 5000, 2048, 1024, "bound"),
        (Rule(min=100), 5, 2048, 100, "bound"),
        (Rule(min=4096), 2048, 2048, 2048, None),
    ],
)
def test_the_context_caps_the_reply(
    rule: Rule, asked: int | None, context: int | None, used: int | None, by: str | None
) -> None:
    found = resolve(Guard({"max_tokens": rule}), {} if asked is None else {"max_tokens": asked}, context)
    assert found.values.get("max_tokens") == used
    assert [(a.asked, a.used, a.by) for a in found.adjustments] == ([] if by is None else [(asked, used, by)])


HOT = Guard({"temperature": Rule(default=0.9, min=0.7, max=1.2)}, Hot(1.0, {"repetition_penalty": 1.1, "top_k": 40}))


@pytest.mark.parametrize(
    ("asked", "repetition", "top_k"),
    [
        ({}, 1, 0),
        ({"temperature": 1.0}, 1, 0),  # above, not at
        ({"temperature": 1.01}, 1.1, 40),
        ({"temperature": 2}, 1.1, 40),  # the effective temperature counts: 1.2 here
        ({"temperature": 1.1, "repetition_penalty": 1.0}, 1.0, 40),
        ({"temperature": 1.1, "top_k": 0}, 1.1, 0),
    ],
)
def test_hot(asked: dict[str, Any], repetition: float, top_k: int) -> None:
    found = resolve(HOT, asked)
    assert (found.values["repetition_penalty"], found.values["top_k"]) == (repetition, top_k)
    assert {a.name for a in found.adjustments} <= {"temperature"}


def test_hot_looks_at_the_temperature_that_is_used_not_asked() -> None:
    cold = Guard({"temperature": Rule(max=0.5)}, Hot(1.0, {"repetition_penalty": 1.1}))
    assert resolve(cold, {"temperature": 2}).values["repetition_penalty"] == 1
    pinned = Guard({"temperature": Rule(pin=1.3), "min_p": Rule(pin=0)}, Hot(1.0, {"min_p": 0.1, "top_k": 9}))
    assert resolve(pinned, {"temperature": 0}).values["top_k"] == 9
    assert resolve(pinned, {}).values["min_p"] == 0, "a pin is a pin"


@pytest.mark.parametrize(
    ("rule", "asked", "words"),
    [
        (Rule(min=0.1, max=0.5), 1.4, ("temperature", "0.1", "0.5", "1.4")),
        (Rule(max=0.5), 0.6, ("temperature", "0.5", "0.6")),
        (Rule(pin=0.2), 0.3, ("temperature", "0.2", "0.3")),
    ],
)
def test_a_preset_may_refuse_what_it_would_have_to_change(rule: Rule, asked: float, words: tuple[str, ...]) -> None:
    guard = Guard({"temperature": rule}, reject=True)
    with pytest.raises(OutOfRange) as caught:
        resolve(guard, {"temperature": asked})
    assert (caught.value.status, caught.value.param) == (400, "temperature")
    assert all(word in caught.value.message for word in words)
    resolve(guard, {})


@pytest.mark.parametrize("name", DOMAINS)
def test_domains_of_numbers(name: str) -> None:
    low, high = DOMAINS[name]
    param = PARAMS[name]
    inside = [high, (low + high) / 2, math.nextafter(low, 9), 1] + ([] if name in OPEN_BELOW else [low, 0])
    outside = [math.nextafter(high, 9), high + 1, math.nextafter(low, -9), low - 1, math.nan, math.inf, -math.inf]
    outside += [True, False, "0.7", None, [0.7], {}, 10**400, -(10**400)] + ([low] if name in OPEN_BELOW else [])
    assert [value for value in inside if not param.holds(value)] == []
    assert [value for value in outside if param.holds(value)] == []


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("top_k", [-1, 0, 1, 200], [-2, 64.0, 0.0, -1.0, True, False, "5", math.nan, 10**30]),
        ("max_tokens", [1, 8192, 100_000, 2**63 - 1, 10**30], [0, -1, 64.0, True, "5", math.inf]),
    ],
)
def test_domains_of_integers(name: str, inside: list[Any], outside: list[Any]) -> None:
    assert [value for value in inside if not PARAMS[name].holds(value)] == []
    assert [value for value in outside if PARAMS[name].holds(value)] == []


def test_domains_in_words() -> None:
    assert {param.name: param.domain for param in (*PARAMS.values(), CHOICES)} == {
        "temperature": "a number in [0, 2]",
        "top_p": "a number in (0, 1]",
        "top_k": "an integer in [1, 2147483647], or -1 or 0 for off",
        "min_p": "a number in [0, 1]",
        "repetition_penalty": "a number in (0, 2]",
        "presence_penalty": "a number in [-2, 2]",
        "frequency_penalty": "a number in [-2, 2]",
        "max_tokens": "an integer >= 1",
        "n": "an integer in [1, 16]",
    }
    assert [value for value in (0, 1, 16, 17, 1.0, True) if CHOICES.holds(value)] == [1, 16]


@pytest.mark.parametrize("param", PARAMS.values(), ids=lambda param: param.name)
@pytest.mark.parametrize("value", [True, "0.7", math.nan, math.inf, 1e300, -3, 10**30, [], {"a": "温"}])
def test_a_refusal_names_field_range_and_value(param: Param, value: Any) -> None:
    if param.holds(value):
        pytest.skip("in the domain")
    with pytest.raises(OutOfRange) as caught:
        param.check(value, "max_completion_tokens")
    message = caught.value.message
    assert message.startswith("max_completion_tokens must be ")
    assert caught.value.param == "max_completion_tokens"
    shown = {True: "true", "0.7": '"0.7"', math.inf: "Infinity", 1e300: "1e+300"}
    expected = shown.get(value, str(value)) if not isinstance(value, list | dict) and value == value else "NaN"
    assert isinstance(value, list | dict) or expected.lower() in message.lower()
    assert str(param.low) in message
    assert param.high == math.inf or str(param.high) in message, "what is too high must be told how high is right"
