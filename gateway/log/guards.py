"""Guardrails: what must not get worse while a metric gets better, one value per unit, against the control.

Harm is a difference that is beyond the tolerance and, by an interval that stays valid at every look, beyond chance.
Knows units; knows nothing about votes' values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from gateway import stats
from gateway.log.evidence import Evidence, Unit
from gateway.policy.experiments import Guardrails

_ENOUGH: Final = 20  # units in each arm before a guardrail says anything


class Guardrail(msgspec.Struct):
    """A guardrail: means per unit in both arms, `change` as the tolerance counts it, and whether it shows harm.

    The interval has no width where no unit differs from the others of its arm.
    """

    name: str
    control: float
    arm: float
    change: float
    low: float
    high: float
    tolerance: float
    harm: bool


def check_guardrails(found: Evidence, tolerances: Guardrails, control: str, variant: str) -> list[Guardrail]:
    """The guardrails of one variant; those that nothing is known about are left out."""
    voters = {vote.unit for vote in found.votes}
    measures: dict[str, Callable[[Unit], float | None]] = {
        "feedback_rate": lambda unit: float(unit.unit in voters),
        "regenerate_rate": lambda unit: unit.regenerated / unit.exchanges if found.regenerate else None,
        "errors": lambda unit: unit.errors / unit.exchanges,
        "tokens": lambda unit: unit.tokens,
        "latency": lambda unit: unit.latency_ms,
    }
    checked = []
    for name, measure in measures.items():
        a = _arm(measure(unit) for unit in found.units if unit.variant == control)
        b = _arm(measure(unit) for unit in found.units if unit.variant == variant)
        if min(a.n, b.n) >= _ENOUGH:
            checked.append(_check(name, a, b, getattr(tolerances, name)))
    return checked


def _arm(values: Iterable[float | None]) -> stats.Arm:
    known = [value for value in values if value is not None]
    return stats.Arm(len(known), sum(known), sum(value * value for value in known))


def _check(name: str, a: stats.Arm, b: stats.Arm, tolerance: float) -> Guardrail:
    effect = stats.anytime_effect(a, b)
    scale = a.mean if name in ("tokens", "latency") and a.mean > 0 else 1.0
    change = (b.mean - a.mean) / scale
    low, high = (change, change) if effect is None else (effect.low / scale, effect.high / scale)
    worse = low > 0 and change > tolerance
    less = name == "feedback_rate" and high < 0 and -change > tolerance
    return Guardrail(name, a.mean, b.mean, change, low, high, tolerance, worse or less)
