"""The mathematics of experiments: intervals and e-values that stay valid however often they are looked at.

Knows counts, sums and random numbers that it is handed. Does NOT know what a vote is, where counts come from, or how a
decision is worded. Formula sources are named in each docstring; `rng` is never called here: whoever needs chance brings
the draws. Imports `math` alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

ALPHA = 0.05
TUNED_AT = 2000  # total units at which the anytime-valid interval is narrowest
ENOUGH = 20  # positives, and negatives, in every arm before the interval's normal approximation may be shown
RATIO_ALARM = 1000.0  # e-value of the sample-ratio check at which the assignment counts as broken


class Arm(NamedTuple):
    """One value per unit, summed: how many units, the sum of their values, the sum of the squares."""

    n: int
    total: float
    squares: float

    @property
    def mean(self) -> float:
        return self.total / self.n

    @property
    def variance(self) -> float:
        """The sample variance (divisor n - 1); never negative, whatever the rounding."""
        return max(0.0, (self.squares - self.total**2 / self.n) / (self.n - 1))


class Effect(NamedTuple):
    """mean_B - mean_A with its interval and the evidence against "no difference"."""

    difference: float
    low: float
    high: float
    log_e: float


def anytime_effect(a: Arm, b: Arm, *, alpha: float = ALPHA, tuned_at: int = TUNED_AT) -> Effect | None:
    """The difference B - A with a confidence interval valid at every look at once; None while it cannot be estimated.

    Asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas (Annals of Statistics 2024,
    "Time-uniform central limit theory and asymptotic confidence sequences"), with rho tuned to be narrowest near
    `tuned_at` units in total. `alpha` in (0, 1). None when an arm has fewer than two units or nothing varies.
    Asymptotic: show nothing before `guard_met`.
    """
    _between("alpha", alpha, 0.0, 1.0)
    if min(a.n, b.n) < 2:
        return None
    squared_error = a.variance / a.n + b.variance / b.n
    if squared_error <= 0.0:
        return None
    n, difference = a.n + b.n, b.mean - a.mean
    rho2 = _rho2(alpha, tuned_at)
    spread = n * rho2 + 1
    half = math.sqrt(n * squared_error * 2 * spread / (n * n * rho2) * math.log(math.sqrt(spread) / alpha))
    log_e = rho2 * n * difference**2 / squared_error / (2 * spread) - 0.5 * math.log(spread)
    return Effect(difference, difference - half, difference + half, log_e)


def _rho2(alpha: float, tuned_at: int) -> float:
    log = -2 * math.log(alpha)
    return (log + math.log(log + 1)) / tuned_at


def guard_met(arms: Iterable[tuple[int, int]], *, enough: int = ENOUGH) -> bool:
    """Whether every arm, given as (positives, negatives), has enough of both for a normal approximation."""
    return all(min(arm) >= enough for arm in arms)


def paired_log_e(pairs: Iterable[tuple[int, int]]) -> tuple[float, float]:
    """(ln E, the highest ln E so far) of the exact sequential 2x2 test; reject "A = B" when E >= 1/alpha, at any time.

    `pairs` holds the outcomes, 0 or 1, of the k-th unit of A and the k-th of B, in order of arrival. The safe test of
    Turner, Ly and Gruenwald (2024, "Generic E-variables for exact sequential k-sample tests"): before each pair both
    rates are predicted from the past with a beta(0.18, 0.18) prior, and the alternative's likelihood is divided by that
    of their mean.
    """
    log_e = best = 0.0
    ones_a = ones_b = 0
    for k, (y_a, y_b) in enumerate(pairs):
        if y_a not in (0, 1) or y_b not in (0, 1):
            raise ValueError(f"pairs: outcomes must be 0 or 1, got {(y_a, y_b)!r} at pair {k}")
        theta_a, theta_b = (ones_a + 0.18) / (k + 0.36), (ones_b + 0.18) / (k + 0.36)
        theta_0 = (theta_a + theta_b) / 2
        log_e += math.log(_bernoulli(theta_a, y_a) / _bernoulli(theta_0, y_a))
        log_e += math.log(_bernoulli(theta_b, y_b) / _bernoulli(theta_0, y_b))
        best = max(best, log_e)
        ones_a += y_a
        ones_b += y_b
    return log_e, best


def _bernoulli(theta: float, y: int) -> float:
    return theta if y else 1.0 - theta


def universal_log_e(arms: Sequence[tuple[int, int]]) -> float:
    """ln E against "all arms are equal", for any number of arms and any allocation rule, however adaptive.

    `arms` holds (successes, failures). Universal inference (Wasserman, Ramdas and Balakrishnan, PNAS 2020) with a
    Jeffreys beta(1/2, 1/2) mixture for each arm over the pooled maximum likelihood.
    """
    for s, f in arms:
        if s < 0 or f < 0:
            raise ValueError(f"arms: counts must be >= 0, got {(s, f)!r}")
    mixture = sum(_betaln(0.5 + s, 0.5 + f) - _betaln(0.5, 0.5) for s, f in arms)
    successes, failures = sum(s for s, _ in arms), sum(f for _, f in arms)
    n = successes + failures
    pooled = sum(count * math.log(count / n) for count in (successes, failures) if count)
    return mixture - pooled


def _betaln(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def sample_ratio_log_e(counts: Sequence[int], weights: Sequence[float], *, concentration: float = 100.0) -> float:
    """ln E that *assigned* units do not follow the weights declared; alarm at E >= RATIO_ALARM, at any time.

    Sequential multinomial test of Lindon and Malek (NeurIPS 2022, "Anytime-valid inference for multinomial count
    data"), with a Dirichlet prior centred on the weights. `weights` are positive, of any sum; as many as `counts`.
    """
    if len(counts) != len(weights) or not weights or min(weights) <= 0:
        raise ValueError(
            f"weights: one positive weight per count is needed, got {list(weights)!r} for {list(counts)!r}"
        )
    n, whole = sum(counts), math.fsum(weights)
    log_e = math.lgamma(concentration) - math.lgamma(concentration + n)
    for count, weight in zip(counts, weights, strict=True):
        share = weight / whole
        log_e += (
            math.lgamma(concentration * share + count) - math.lgamma(concentration * share) - count * math.log(share)
        )
    return log_e


def top_two_shares(draws: Sequence[Sequence[float]], *, floor: float = 0.10) -> list[float]:
    """The share of new units that top-two Thompson sampling gives each arm; sums to 1, none below `floor`.

    `draws` holds joint draws of the arms' rates from their posterior, one row per draw. Russo (Operations Research
    2020, "Simple Bayesian algorithms for best-arm identification") with beta = 1/2: half the units go to an arm in
    proportion to how often it is best, half to the runner-up. `floor` times the number of arms must not exceed 1.
    """
    arms = len(draws[0])
    _between("floor", floor, 0.0, 1.0 / arms, closed=True)
    wins = [0] * arms
    for row in draws:
        wins[max(range(arms), key=row.__getitem__)] += 1
    best = [count / len(draws) for count in wins]
    shares = [
        0.5 * p + 0.5 * math.fsum(q * p / (1 - q) for j, q in enumerate(best) if j != i and q < 1)
        for i, p in enumerate(best)
    ]
    whole = math.fsum(shares)  # below 1 when one arm won every draw: its half for the runner-up has no owner
    return [floor + (1 - arms * floor) * share / whole for share in shares]


def units_per_arm(rate: float, difference: float, *, sequential: bool = True) -> int:
    """Units needed in each of two arms to see `difference` around `rate`, at alpha 5% (two-sided) and power 80%.

    n = 15.7 p(1-p) / D^2, the usual normal approximation (2 * (1.96 + 0.84)^2 = 15.7), times 1.5 for a test that is
    looked at all the time. `rate` in (0, 1), `difference` not 0.
    """
    _between("rate", rate, 0.0, 1.0)
    if difference == 0:
        raise ValueError("difference: must not be 0: no number of units shows that nothing differs")
    return math.ceil(15.7 * rate * (1 - rate) / difference**2 * (1.5 if sequential else 1.0))


def mean_interval(arm: Arm, *, z: float = 1.96) -> tuple[float, float] | None:
    """The textbook interval mean +/- z s / sqrt(n), for one look; None with fewer than two units."""
    if arm.n < 2:
        return None
    half = z * math.sqrt(arm.variance / arm.n)
    return arm.mean - half, arm.mean + half


def share_interval(successes: int, n: int, *, z: float = 1.96) -> tuple[float, float] | None:
    """Wilson's score interval (JASA 1927) of a share, for one look; None without data.

    Sound at 0 and at n successes, where the textbook interval has no width."""
    if n == 0:
        return None
    if not 0 <= successes <= n:
        raise ValueError(f"successes: must be in [0, {n}], got {successes}")
    p, z2 = successes / n, z * z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def _between(name: str, value: float, low: float, high: float, *, closed: bool = False) -> None:
    inside = low <= value <= high if closed else low < value < high
    if not inside:
        brackets = "[]" if closed else "()"
        raise ValueError(f"{name}: must be in {brackets[0]}{low:g}, {high:g}{brackets[1]}, got {value}")
