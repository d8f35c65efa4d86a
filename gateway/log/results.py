"""What an experiment has shown so far, and whether that is enough to act on.

One value per unit: the mean of its votes, brought from [-1, 1] to [0, 1], so that an effect is a difference in shares
of thumbs up. The sample ratio is checked before anything else; when it is broken no effect is stated. Whatever is
stated stays valid however often it is looked at. Pure but for `examine`; the mathematics is in gateway.stats.
"""

from __future__ import annotations

import math
from typing import Final

from sqlalchemy import Engine

from gateway import stats
from gateway.log import evidence
from gateway.log.evidence import Evidence, Remembered
from gateway.log.finding import Arm, Comparison, Needed, Point, Ratio, Result
from gateway.log.guards import check_guardrails
from gateway.log.verdict import decide
from gateway.policy.experiments import Experiment

_DAY: Final = 86400.0
_LOOKS: Final = 1000  # at most so many looks at the data in order of time when the highest evidence is sought
_POINTS: Final = 200  # points of the chart


class _Votes:
    """The votes of one arm, one value per unit, kept up to date vote by vote."""

    def __init__(self) -> None:
        self._units: dict[str, tuple[float, int]] = {}
        self._total = self._squares = 0.0
        self.votes = self.positives = 0

    def add(self, unit: str, value: float) -> None:
        total, number = self._units.get(unit, (0.0, 0))
        if number:
            self._count(total / number, -1)
        total, number = total + (value + 1) / 2, number + 1
        self._units[unit] = total, number
        self._count(total / number, 1)
        self.votes += 1

    def _count(self, mean: float, sign: int) -> None:
        self._total += sign * mean
        self._squares += sign * mean * mean
        self.positives += sign * (mean > 0.5)

    @property
    def arm(self) -> stats.Arm:
        return stats.Arm(len(self._units), self._total, self._squares)

    @property
    def counts(self) -> tuple[int, int]:
        """(positive units, the others)."""
        return self.positives, len(self._units) - self.positives

    def outcomes(self) -> list[int]:
        """1 or 0 per unit, in the order of their first votes."""
        return [int(total / number > 0.5) for total, number in self._units.values()]


class _Race:
    """A variant against the control through time: the evidence so far, the highest it ever was, and the chart."""

    def __init__(self, alpha: float, before: Remembered | None) -> None:
        self._alpha = alpha
        self.best = before.max_log_e if before else 0.0
        self.crossed_at = before.crossed_at if before else None
        self.effect: stats.Effect | None = None
        self.history: list[Point] = []

    def look(self, a: stats.Arm, b: stats.Arm, time: float, *, draw: bool) -> None:
        self.effect = effect = stats.anytime_effect(a, b, alpha=self._alpha)
        if effect is None:
            return
        self.weigh(effect.log_e, time)
        if draw:
            self.history.append(Point(time, a.n + b.n, effect.difference, effect.low, effect.high))

    def weigh(self, log_e: float, time: float) -> None:
        self.best = max(self.best, log_e)
        if log_e >= -math.log(self._alpha) and (self.crossed_at is None or time < self.crossed_at):
            self.crossed_at = time

    @property
    def remembered(self) -> Remembered:
        return Remembered(self.best, self.crossed_at)


def judge(name: str, experiment: Experiment, found: Evidence, now: float) -> tuple[Result, dict[str, Remembered]]:
    """The result as of now, and what is to be remembered of it."""
    control, *others = experiment.variants
    adaptive = experiment.allocation == "adaptive"
    votes = {variant: _Votes() for variant in experiment.variants}
    alpha = stats.ALPHA if adaptive else stats.ALPHA / len(others)
    races = {v: _Race(alpha, found.remembered.get(v)) for v in ([control] if adaptive else others)}
    _replay(found, votes, races, control if adaptive else None)
    arms = [_arm(variant, experiment, found, votes[variant]) for variant in experiment.variants]
    ratio = None if adaptive else _ratio(arms)
    broken = ratio is not None and ratio.alarm
    comparisons = [] if broken else [_compare(v, experiment, found, votes, races.get(v)) for v in others]
    started = min((unit.first for unit in found.units), default=None)
    result = Result(
        name=name,
        preset=experiment.preset,
        state=experiment.state,
        allocation=experiment.allocation,
        metric=experiment.metric,
        now=now,
        started=started,
        days=0.0 if started is None else max(0.0, now - started) / _DAY,
        moved=found.moved,
        arms=arms,
        sample_ratio=ratio,
        comparisons=comparisons,
        adaptive_e=_e(races[control].best) if adaptive else None,
        needed=None if adaptive else _needed(experiment, arms),
        verdict="not yet",
        reasons=[],
    )
    result.verdict, result.reasons = decide(experiment, result)
    return result, {variant: race.remembered for variant, race in races.items()}


def tally(experiment: Experiment, found: Evidence) -> list[tuple[int, int]]:
    """(positive units, the others) of each variant, in order."""
    votes = {variant: _Votes() for variant in experiment.variants}
    variant_of = {unit.unit: unit.variant for unit in found.units}
    for vote in found.votes:
        if (variant := variant_of.get(vote.unit)) in votes:
            votes[variant].add(vote.unit, vote.value)
    return [arm.counts for arm in votes.values()]


def _replay(found: Evidence, votes: dict[str, _Votes], races: dict[str, _Race], pooled: str | None) -> None:
    """The votes in order of time, with looks on the way; `pooled` names the one race of an adaptive run."""
    variant_of = {unit.unit: unit.variant for unit in found.units}
    stride = max(1, len(found.votes) // _LOOKS)
    sparse = stride * max(1, min(len(found.votes), _LOOKS) // _POINTS)
    for number, vote in enumerate(found.votes, 1):
        variant = variant_of.get(vote.unit)
        if variant in votes:
            votes[variant].add(vote.unit, vote.value)
        last = number == len(found.votes)
        if number % stride and not last:
            continue
        counts = [arm.counts for arm in votes.values()]
        if pooled is not None:
            races[pooled].weigh(stats.universal_log_e(counts), vote.time)
        elif stats.guard_met(counts):
            control = next(iter(votes.values())).arm
            for name, race in races.items():
                race.look(control, votes[name].arm, vote.time, draw=last or number % sparse == 0)


def _arm(variant: str, experiment: Experiment, found: Evidence, votes: _Votes) -> Arm:
    units = [unit for unit in found.units if unit.variant == variant]
    positives, negatives = votes.counts
    whole = sum(v.weight for v in experiment.variants.values())
    return Arm(
        variant=variant,
        weight=experiment.variants[variant].weight / whole,
        units=len(units),
        exchanges=sum(unit.exchanges for unit in units),
        votes=votes.votes,
        voters=votes.arm.n,
        positives=positives,
        negatives=negatives,
        mean=votes.arm.mean if votes.arm.n else None,
    )


def _ratio(arms: list[Arm]) -> Ratio:
    log_e = stats.sample_ratio_log_e([arm.units for arm in arms], [arm.weight for arm in arms])
    return Ratio(_e(log_e), log_e >= math.log(stats.RATIO_ALARM))


def _compare(
    variant: str, experiment: Experiment, found: Evidence, votes: dict[str, _Votes], race: _Race | None
) -> Comparison:
    """A variant against the control; without a race (adaptive runs) no interval."""
    control = experiment.control
    met = race is not None and stats.guard_met(arm.counts for arm in votes.values())
    result = Comparison(
        variant=variant,
        control=control,
        guard_met=met,
        guardrails=check_guardrails(found, experiment.guardrails, control, variant),
    )
    weights = {v.weight for v in experiment.variants.values()}
    if race is not None and len(votes) == 2 and len(weights) == 1:
        pairs = zip(votes[control].outcomes(), votes[variant].outcomes(), strict=False)
        result.exact_e = _e(stats.paired_log_e(pairs)[1])
    if race is not None and met and race.effect is not None:
        effect = race.effect
        result.difference, result.low, result.high = effect.difference, effect.low, effect.high
        result.e, result.max_e, result.p = _e(effect.log_e), _e(race.best), min(1.0, math.exp(-race.best))
        result.crossed_at, result.history = race.crossed_at, race.history
    return result


def _e(log_e: float) -> float:
    return math.exp(min(log_e, 700.0))


def _needed(experiment: Experiment, arms: list[Arm]) -> Needed:
    mean = arms[0].mean
    rate = 0.5 if mean is None else min(0.95, max(0.05, mean))
    per_arm = stats.units_per_arm(rate, experiment.detect)
    missing = max(0, per_arm - min(arm.voters for arm in arms))
    units, voters = sum(arm.units for arm in arms), sum(arm.voters for arm in arms)
    assigned = math.ceil(missing * len(arms) * units / voters) if voters else None
    return Needed(experiment.detect, per_arm, missing, assigned)


def examine(engine: Engine, name: str, experiment: Experiment, now: float) -> Result:
    """Reads, judges and remembers. Blocks. Raises store.Away."""
    result, found = judge(name, experiment, evidence.read(engine, name, experiment.metric), now)
    evidence.remember(engine, name, found)
    return result
