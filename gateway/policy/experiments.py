"""A/B tests on a preset: who is in, who gets which variant, and that this never changes by accident.

Assignment is a hash, so every process that reads the same presets.yaml agrees without shared state. Two independent
hashes are taken of a unit, one for exposure and one for the variant: raising the exposure lets more units in and
moves none that is already in. Only an adaptive experiment needs something from outside, an Allocation: the weights in
force for new units and the variants that known units keep.

Knows nothing about requests, clocks, databases or results; knows a parameter's name but not its bounds (config checks
those).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from itertools import accumulate
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

UnitKind = Literal["user", "unit", "conversation"]
Share = Annotated[float, Meta(ge=0, le=1)]
Tolerance = Annotated[float, Meta(gt=0)]


class Variant(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One arm.

    `parameters` is written as in a preset and replaces the preset's own entries; `system_prompt` likewise, None
    keeps it.
    """

    weight: Annotated[float, Meta(gt=0, le=1_000_000)] = 1.0
    parameters: dict[str, Any] = {}
    system_prompt: str | None = None


class Guardrails(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How much worse than the control an arm may be before its effect no longer counts.

    Rates are absolute differences (0.02 = two points); `tokens` and `latency` are ratios of means minus one (0.25 = a
    quarter more). `feedback_rate` counts in both directions: arms whose users vote unequally often cannot be compared
    by their votes.
    """

    feedback_rate: Tolerance = 0.05
    regenerate_rate: Tolerance = 0.05
    errors: Tolerance = 0.02
    tokens: Tolerance = 0.5
    latency: Tolerance = 0.25


class Experiment(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An experiment as presets.yaml declares it.

    The first variant is the control (A); the order of the others is theirs.
    """

    preset: str
    variants: dict[str, Variant]
    state: Literal["draft", "running", "stopped"] = "draft"
    exposure: Share = 1.0
    unit: Literal["any", "user", "conversation"] = "any"
    allocation: Literal["fixed", "adaptive"] = "fixed"
    metric: str = "thumb"  # the name of the feedback that decides
    min_days: Annotated[float, Meta(ge=0)] = 7.0  # before that nothing is shipped: weekdays differ from weekends
    detect: Annotated[float, Meta(gt=0, lt=1)] = 0.05  # the difference worth finding, in shares of thumbs up
    equivalence: Annotated[float, Meta(gt=0, lt=1)] = 0.03  # a difference inside +/- this is none
    guardrails: Guardrails = Guardrails()

    @property
    def control(self) -> str:
        return next(iter(self.variants))


class Unit(Struct, frozen=True):
    """What is randomised: `id` is 32 hex digits, a hash from which the client's identifier cannot be read."""

    id: str
    kind: UnitKind


class Assignment(Struct, frozen=True):
    experiment: str
    variant: str
    unit: str
    unit_kind: UnitKind


class Allocation(Struct, frozen=True):
    """What an adaptive experiment has learnt.

    Weights for new units, in the order of the variants, and who had which variant before.
    """

    weights: tuple[float, ...]
    known: Mapping[str, str] = {}


def problems(experiment: Experiment) -> Iterator[tuple[str, str]]:
    """(key.

    Message) for what the types alone cannot say; parameters are checked against the preset by whoever knows its
    bounds.
    """
    if len(experiment.variants) < 2:
        yield "variants", f"an experiment needs at least 2 variants, not {len(experiment.variants)}"
    if experiment.allocation == "adaptive" and len(experiment.variants) > 10:
        yield (
            "variants",
            f"adaptive allocation gives every arm 10%: at most 10 variants, not {len(experiment.variants)}",
        )
    for name, variant in experiment.variants.items():
        if variant.weight < 0.01 * sum(v.weight for v in experiment.variants.values()):
            yield (
                f"variants.{name}.weight",
                f"{variant.weight:g} is less than 1% of all weights: this arm would never fill",
            )


def hash_unit(kind: UnitKind, identifier: str, pepper: str = "") -> Unit:
    """The unit behind a client's identifier; `pepper` is a secret that all processes of an installation share."""
    return Unit(sha256(f"{pepper}\0{kind}\0{identifier}".encode()).hexdigest()[:32], kind)


def choose_unit(
    identifiers: Mapping[UnitKind, str | None],
    accepts: Literal["any", "user", "conversation"] = "any",
    pepper: str = "",
) -> Unit | None:
    """The first identifier that is there and accepted, in the order user, unit (X-Unit-Id), conversation.

    An experiment on users accepts `user` and `unit`; one on conversations only `conversation`. None: served the
    control, not analysed.
    """
    kinds: dict[str, tuple[UnitKind, ...]] = {
        "any": ("user", "unit", "conversation"),
        "user": ("user", "unit"),
        "conversation": ("conversation",),
    }
    for kind in kinds[accepts]:
        if identifier := identifiers.get(kind):
            return hash_unit(kind, identifier, pepper)
    return None


def bucket(experiment: str, salt: str, unit: str) -> float:
    """A number in [0, 1), uniform over units. Four bytes: eight could round up to 1.0."""
    return int.from_bytes(sha256(f"{experiment}\0{salt}\0{unit}".encode()).digest()[:4]) / 2**32


def assign(
    name: str, experiment: Experiment, unit: Unit | None, allocation: Allocation | None = None
) -> Assignment | None:
    """The variant this unit gets, or None: not running, no unit, or not exposed.

    None is served the control, and not analysed.
    """
    if experiment.state != "running" or unit is None or bucket(name, "exposure", unit.id) >= experiment.exposure:
        return None
    names = tuple(experiment.variants)
    if experiment.allocation == "fixed" or allocation is None:
        variant = names[_pick([v.weight for v in experiment.variants.values()], bucket(name, "variant", unit.id))]
    elif allocation.known.get(unit.id) in experiment.variants:
        variant = allocation.known[unit.id]
    else:
        variant = names[_pick(allocation.weights, bucket(name, "variant", unit.id))]
    return Assignment(name, variant, unit.id, unit.kind)


def _pick(weights: Sequence[float], at: float) -> int:
    """The index whose share of the cumulated weights holds `at`; the last one takes what rounding leaves over."""
    edges = list(accumulate(weights))
    for index, edge in enumerate(edges):
        if at * edges[-1] < edge:
            return index
    return len(edges) - 1
