"""What to do about an experiment, in plain words, from numbers that are already there.

Pure. Knows the rules of the decision; knows no formulas.
"""

from __future__ import annotations

from gateway import stats
from gateway.log.finding import Comparison, Result
from gateway.policy.experiments import Experiment


def decide(experiment: Experiment, result: Result) -> tuple[str, list[str]]:
    """(verdict, reasons): ship X, keep X, no difference, not yet, or invalid: sample ratio.

    A variant that hurts a guardrail cannot be shipped whatever its votes say: while they say nothing yet, that is told,
    and it ends the experiment where no other variant is left.
    """
    verdict, reasons = _by_votes(experiment, result)
    hurt = {c.variant: _harms("hurt", c) for c in result.comparisons if _harms("hurt", c)}
    if verdict == "not yet" and hurt:
        told = [harm for harms in hurt.values() for harm in harms]
        if len(hurt) == len(result.comparisons):
            return f"keep {experiment.control}", told
        return verdict, reasons + told
    return verdict, reasons


def _harms(kind: str, found: Comparison) -> list[str]:
    return [f"{kind}: {rail.name} ({found.variant})" for rail in found.guardrails if rail.harm]


def _by_votes(experiment: Experiment, result: Result) -> tuple[str, list[str]]:
    control = experiment.control
    if result.sample_ratio is not None and result.sample_ratio.alarm:
        return "invalid: sample ratio", ["ratio"]
    if experiment.allocation == "adaptive":
        found = _adaptive_winners(result, control)
        if found is None:
            return "not yet", ["undecided"]
        better = found
    else:
        if not all(c.guard_met and c.low is not None for c in result.comparisons):
            return "not yet", ["few_votes"]
        better = [c for c in result.comparisons if (c.low or 0.0) > 0]
        if all((c.high or 0.0) < 0 for c in result.comparisons):
            return f"keep {control}", ["worse"]
        inside = all(max(-(c.low or 0.0), c.high or 0.0) < experiment.equivalence for c in result.comparisons)
        if not better:
            early = result.days < experiment.min_days
            return ("no difference", ["equivalent"]) if inside and not early else ("not yet", ["undecided"])
    clean = [c for c in better if not _harms("guardrail", c)]
    if not clean:
        harms = [harm for c in better for harm in _harms("guardrail", c)]
        return f"keep {control}", harms or ["worse"]
    if result.days < experiment.min_days:
        return "not yet", ["too_early"]
    return f"ship {max(clean, key=lambda c: c.difference or 0.0).variant}", ["better"]


def _adaptive_winners(result: Result, control: str) -> list[Comparison] | None:
    """The variant with the best mean, none if that is the control; None: it is not certain yet that the arms differ."""
    if (result.adaptive_e or 0.0) < 1 / stats.ALPHA:
        return None
    best = max(result.arms, key=lambda arm: arm.mean or 0.0).variant
    return [c for c in result.comparisons if c.variant == best and best != control]
