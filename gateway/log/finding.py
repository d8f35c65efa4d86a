"""The shape of an experiment's result, as HTTP and `tempera experiments --json` give it. Knows no rules."""

from __future__ import annotations

import msgspec

from gateway.log.guards import Guardrail


class Arm(msgspec.Struct, kw_only=True):
    """One variant: `mean` is over units that voted, in [0, 1]; a unit is positive above one half."""

    variant: str
    weight: float
    units: int
    exchanges: int
    votes: int
    voters: int
    positives: int
    negatives: int
    mean: float | None


class Point(msgspec.Struct):
    """The interval as it was when `voters` units of the two arms had voted."""

    time: float
    voters: int
    difference: float
    low: float
    high: float


class Comparison(msgspec.Struct, kw_only=True):
    """A variant against the control. The numbers are None until every arm has enough votes of both kinds."""

    variant: str
    control: str
    guard_met: bool
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    e: float | None = None
    max_e: float | None = None
    p: float | None = None
    crossed_at: float | None = None
    exact_e: float | None = None  # by pairs: two arms of equal weight
    guardrails: list[Guardrail] = []
    history: list[Point] = []


class Ratio(msgspec.Struct):
    """The sample-ratio check on assigned units; `e` >= 1000 is an alarm."""

    e: float
    alarm: bool


class Needed(msgspec.Struct):
    """Voting units that every arm needs to show a difference of `detect`, and what is missing of them."""

    detect: float
    voters_per_arm: int
    voters_missing: int
    units_missing: int | None


class Result(msgspec.Struct, kw_only=True):
    name: str
    preset: str
    state: str
    allocation: str
    metric: str
    now: float
    started: float | None
    days: float
    moved: int
    arms: list[Arm]
    sample_ratio: Ratio | None  # None where weights change by design
    comparisons: list[Comparison]
    adaptive_e: float | None  # the universal e-process, adaptive runs only
    needed: Needed | None  # None for adaptive runs, to which the formula does not apply
    verdict: str
    reasons: list[str]

    @property
    def wants_votes(self) -> bool:
        """Whether more votes could bring a verdict: time alone is not what is missing."""
        return self.verdict == "not yet" and "too_early" not in self.reasons
