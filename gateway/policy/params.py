"""The sampling parameters: what each may be, and how a preset's rules turn what was asked into what is used.

`effective = clamp(defaults | asked | pins)`, then `when_hot`. Domain: what a parameter can mean at all; outside it a
request is refused, always. Bound: what a preset allows; outside it the value is clamped and told, or refused if the
preset says so. Knows nothing about spellings, files or JSON.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

import msgspec

from gateway.protocol.envelope import show
from gateway.protocol.errors import OutOfRange

Number = int | float
Value = int | float | str | tuple[str, ...]

MAX_GENERATION: Final = 8192  # tokens; caps what a client asks for


class Param(msgspec.Struct, frozen=True):
    """One parameter's domain: a closed interval, open below if `open_low`.

    `off` lists the values that switch it off.
    """

    name: str
    low: Number
    high: Number
    neutral: Number | None  # what switches its effect off; sent when nobody asks for anything else
    integer: bool = False
    open_low: bool = False
    off: tuple[int, ...] = ()

    @property
    def domain(self) -> str:
        """For messages: `a number in (0, 1]`, `an integer >= 1`, `an integer in [1, 9], or -1 or 0 for off`."""
        if self.integer:
            span = f">= {self.low}" if self.high == math.inf else f"in [{self.low}, {self.high}]"
            return f"an integer {span}" + (", or -1 or 0 for off" if self.off else "")
        return f"a number in {'(' if self.open_low else '['}{self.low}, {self.high}]"

    def holds(self, value: object) -> bool:
        """Whether a decoded JSON value lies in the domain.

        Booleans are not numbers; 64.0 is not an integer; NaN is in no range.
        """
        if isinstance(value, bool) or not isinstance(value, int if self.integer else int | float):
            return False
        if value in self.off:
            return True
        return (value > self.low if self.open_low else value >= self.low) and value <= self.high

    def check(self, value: object, field: str) -> Number:
        """The value, if it lies in the domain. Raises OutOfRange naming the client's field, the range and the value."""
        if self.holds(value):
            return value  # type: ignore[return-value]
        raise OutOfRange(f"{field} must be {self.domain}; got {show(value)}.", param=field)

    def order(self, value: Number) -> float:
        """Sorting key: a parameter that is off restricts nothing, so it lies above every other value (top_k)."""
        return math.inf if value in self.off else value


_TABLE: Final = (
    Param("temperature", 0, 2, 1),
    Param("top_p", 0, 1, 1, open_low=True),
    Param("top_k", 1, 2**31 - 1, 0, integer=True, off=(-1, 0)),
    Param("min_p", 0, 1, 0),
    Param("repetition_penalty", 0, 2, 1, open_low=True),
    Param("presence_penalty", -2, 2, 0),
    Param("frequency_penalty", -2, 2, 0),
    Param("max_tokens", 1, math.inf, None, integer=True),
)
PARAMS: Final[Mapping[str, Param]] = MappingProxyType({param.name: param for param in _TABLE})
CHOICES: Final = Param("n", 1, 16, None, integer=True)
UNJUDGED: Final = ("seed", "stop")  # a preset may set them; a client's own value is the engine's business
DEFAULT_TEMPERATURE: Final = 0.7


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a preset says of one parameter.

    `pin` excludes the others; for seed and stop only `default` and `pin` apply.
    """

    default: Value | None = None
    min: Number | None = None
    max: Number | None = None
    pin: Value | None = None


class Hot(msgspec.Struct, frozen=True):
    """Extra parameters for an effective temperature above a threshold; only where the client did not send them."""

    above: float
    values: Mapping[str, Number]


class Adjustment(msgspec.Struct, frozen=True):
    """`asked` became `used` because of a bound.

    A pin, the generation cap, or because the engine's route has no such field.
    """

    name: str
    asked: Value
    used: Value | None
    by: Literal["bound", "pin", "cap", "route"]


class Effective(msgspec.Struct, frozen=True):
    """The parameters really used, in table order, what was changed on the way, and what the client had asked for."""

    values: Mapping[str, Value]
    adjustments: tuple[Adjustment, ...] = ()
    asked: Mapping[str, Value] = {}


class Guard(msgspec.Struct, frozen=True):
    """The rules of one preset (or of one arm of an experiment on it), as `resolve` needs them."""

    rules: Mapping[str, Rule]
    hot: Hot | None = None
    reject: bool = False


def resolve(guard: Guard, asked: Mapping[str, Value], context: int | None = None) -> Effective:
    """What is sent for what was asked.

    `asked` holds values inside their domain, None-free, under our names; `context` is the engine's max_model_len in
    tokens. Every sampler parameter is in the result, max_tokens, seed and stop only if somebody set them. Raises
    OutOfRange if the guard rejects.
    """
    values: dict[str, Value] = {}
    changed: list[Adjustment] = []
    for name, param in PARAMS.items():
        rule = guard.rules.get(name, _FREE)
        used = _judge(param, rule, asked.get(name), guard.reject, changed)
        if used is not None:
            values[name] = used
    _cap(values, asked, context, changed)
    for name in UNJUDGED:
        rule = guard.rules.get(name, _FREE)
        choice = rule.pin if rule.pin is not None else asked.get(name, rule.default)
        if rule.pin is not None and name in asked and asked[name] != rule.pin:
            changed.append(Adjustment(name, asked[name], rule.pin, "pin"))
        if choice is not None:
            values[name] = choice
    hot = guard.hot
    if hot is not None and values["temperature"] > hot.above:  # type: ignore[operator]
        pinned = {name for name, rule in guard.rules.items() if rule.pin is not None}
        free = {name: value for name, value in hot.values.items() if name not in asked and name not in pinned}
        values |= {name: clamp(PARAMS[name], guard.rules.get(name, _FREE), value) for name, value in free.items()}
    return Effective(values, tuple(changed), dict(asked))


_FREE: Final = Rule()


def _judge(param: Param, rule: Rule, asked: Any, reject: bool, changed: list[Adjustment]) -> Number | None:
    if rule.pin is not None:
        if asked is not None and asked != rule.pin:
            if reject:
                raise OutOfRange(
                    f"{param.name} is fixed at {rule.pin} by this preset; got {asked}.", param=param.name, code="pinned"
                )
            changed.append(Adjustment(param.name, asked, rule.pin, "pin"))
        return rule.pin  # type: ignore[return-value]
    if asked is None:
        return starting(param, rule)
    used = clamp(param, rule, asked)
    if used != asked:
        if reject:
            raise OutOfRange(
                f"{param.name} must be in {span(rule)} with this preset; got {asked}.",
                param=param.name,
                code="out_of_bounds",
            )
        changed.append(Adjustment(param.name, asked, used, "bound"))
    return used


def starting(param: Param, rule: Rule) -> Number | None:
    """The value when nobody asks: the preset's default, else the neutral one (temperature: 0.7), in bounds."""
    if rule.default is not None:
        return rule.default  # type: ignore[return-value]
    base = DEFAULT_TEMPERATURE if param.name == "temperature" else param.neutral
    return None if base is None else clamp(param, rule, base)


def clamp(param: Param, rule: Rule, value: Number) -> Number:
    """The nearest value inside the bounds."""
    if rule.max is not None and param.order(value) > param.order(rule.max):
        return rule.max
    if rule.min is not None and param.order(value) < param.order(rule.min):
        return rule.min
    return value


def span(rule: Rule) -> str:
    """The bounds for a message: `[0.1, 0.5]`, `[0.1, any]`."""
    low = "any" if rule.min is None else rule.min
    high = "any" if rule.max is None else rule.max
    return f"[{low}, {high}]"


def _cap(values: dict[str, Value], asked: Mapping[str, Value], context: int | None, changed: list[Adjustment]) -> None:
    """No reply is asked to be longer than MAX_GENERATION or the engine's context.

    Told only when the client had asked for it.
    """
    limit = values.get("max_tokens")
    if limit is None:
        return
    cap = min(MAX_GENERATION, context or MAX_GENERATION)
    if limit > cap:  # type: ignore[operator]
        values["max_tokens"] = cap
        changed[:] = [a for a in changed if a.name != "max_tokens"]
        if asked.get("max_tokens", cap) != cap:
            changed.append(Adjustment("max_tokens", asked["max_tokens"], cap, "cap"))
