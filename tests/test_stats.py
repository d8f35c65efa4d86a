"""Known answers, dualities and simulations of gateway.stats; a simulation allows its nominal rate + 3 standard
errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import betaln, gammaln

from gateway import stats
from gateway.stats import Arm

ALPHA = 0.05


def arm(values: np.ndarray) -> Arm:
    return Arm(len(values), float(values.sum()), float((values**2).sum()))


def slack(rate: float, runs: int) -> float:
    """The largest share of `runs` that a true rate of `rate` explains (3 standard errors)."""
    return rate + 3 * math.sqrt(rate * (1 - rate) / runs)


# --- the anytime-valid interval


def looks(
    rng: np.random.Generator, p_a: float, p_b: float, *, ratio: int = 1, most: int = 2000
) -> list[tuple[Arm, Arm]]:
    """Two growing arms of 0/1 votes, looked at every 10 units of A (and 10 x ratio of B)."""
    a = np.cumsum(rng.random(most) < p_a)
    b = np.cumsum(rng.random(most * ratio) < p_b)
    pairs = []
    for n in range(10, most + 1, 10):
        s_a, s_b = int(a[n - 1]), int(b[n * ratio - 1])
        pairs.append((Arm(n, s_a, s_a), Arm(n * ratio, s_b, s_b)))
    return pairs


def guarded(pair: tuple[Arm, Arm]) -> bool:
    return stats.guard_met([(int(x.total), int(x.n - x.total)) for x in pair])


def test_peeking_at_the_interval_all_the_time_gives_at_most_the_nominal_false_positives() -> None:
    rng, runs = np.random.default_rng(1), 400
    wrong = plain = 0
    for _ in range(runs):
        steps = [(stats.anytime_effect(*pair), pair) for pair in looks(rng, 0.6, 0.6) if guarded(pair)]
        wrong += any(effect.low > 0 or effect.high < 0 for effect, _ in steps if effect)
        plain += any(
            abs(e.difference) > 1.96 * math.sqrt(a.variance / a.n + b.variance / b.n) for e, (a, b) in steps if e
        )
    assert wrong / runs <= ALPHA
    assert plain / runs > 0.25, "the same looks with a plain z-test, so that this test is known to be able to fail"


def test_the_guard_is_what_keeps_lopsided_arms_at_the_nominal_rate() -> None:
    rng, runs = np.random.default_rng(2), 300
    free = held = 0
    for _ in range(runs):
        steps = [(stats.anytime_effect(*pair), guarded(pair)) for pair in looks(rng, 0.95, 0.95, ratio=9, most=600)]
        free += any(e is not None and (e.low > 0 or e.high < 0) for e, _ in steps)
        held += any(e is not None and (e.low > 0 or e.high < 0) for e, met in steps if met)
    assert held / runs <= slack(ALPHA, runs)
    assert free / runs > slack(ALPHA, runs)


def test_the_interval_covers_the_true_effect_at_every_look_at_once_and_finds_it() -> None:
    rng, runs = np.random.default_rng(3), 300
    covered, found = 0, []
    for _ in range(runs):
        effects = [
            (pair[0].n, e) for pair in looks(rng, 0.6, 0.7) if guarded(pair) and (e := stats.anytime_effect(*pair))
        ]
        covered += all(e.low <= 0.1 <= e.high for _, e in effects)
        found.append(next((n for n, e in effects if e.low > 0), math.inf))
    assert covered / runs >= 0.95 - (slack(ALPHA, runs) - ALPHA)
    assert max(found) < math.inf, "power 1 by 2000 units per arm"
    assert 330 <= float(np.median(found)) <= 460, "390-400 per arm in the design's simulation"


@given(
    st.lists(st.floats(-1, 1), min_size=3, max_size=40),
    st.lists(st.floats(-1, 1), min_size=3, max_size=40),
    st.floats(0.001, 0.5),
)
def test_the_interval_excludes_zero_exactly_when_the_e_value_reaches_one_over_alpha(
    xs: list[float], ys: list[float], alpha: float
) -> None:
    effect = stats.anytime_effect(arm(np.array(xs)), arm(np.array(ys)), alpha=alpha)
    if effect is None or abs(effect.log_e + math.log(alpha)) < 1e-6:
        return
    assert (effect.low > 0 or effect.high < 0) == (effect.log_e > -math.log(alpha))


def test_the_interval_against_a_hand_computation() -> None:
    effect = stats.anytime_effect(Arm(100, 60, 60), Arm(100, 70, 70))
    assert effect is not None
    s2 = (60 * 40 + 70 * 30) / 100 / 99 / 100  # both sample variances over their n
    rho2 = (5.991464547 + math.log(6.991464547)) / 2000
    half = math.sqrt(200 * s2) * math.sqrt(
        2 * (200 * rho2 + 1) / (200**2 * rho2) * math.log(math.sqrt(200 * rho2 + 1) / 0.05)
    )
    assert effect.difference == pytest.approx(0.1)
    assert (effect.low, effect.high) == pytest.approx((0.1 - half, 0.1 + half))
    assert effect.log_e == pytest.approx(
        rho2 * 200 * (0.01 / s2) / (2 * (200 * rho2 + 1)) - 0.5 * math.log(200 * rho2 + 1)
    )


@pytest.mark.parametrize(("a", "b"), [(Arm(1, 1, 1), Arm(50, 25, 25)), (Arm(50, 50, 50), Arm(50, 50, 50))])
def test_no_interval_where_nothing_can_be_estimated(a: Arm, b: Arm) -> None:
    assert stats.anytime_effect(a, b) is None


# --- exact e-processes


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_the_paired_process_rarely_reaches_twenty_without_a_difference(p: float) -> None:
    rng, runs = np.random.default_rng(4), 500
    wrong = sum(
        stats.paired_log_e((rng.random((150, 2)) < p).astype(int).tolist())[1] >= math.log(20) for _ in range(runs)
    )
    assert wrong / runs <= slack(ALPHA, runs)


def test_the_paired_process_finds_a_difference_and_matches_a_hand_computation() -> None:
    rng = np.random.default_rng(5)
    found = [stats.paired_log_e((rng.random((400, 2)) < (0.5, 0.7)).astype(int).tolist())[1] for _ in range(50)]
    assert sum(log_e >= math.log(20) for log_e in found) >= 45
    # first pair: all rates are 1/2, so E = 1; then theta_A = .18/1.36, theta_B = 1.18/1.36, theta_0 = .5
    log_e, best = stats.paired_log_e([(0, 1), (0, 1)])
    assert log_e == best == pytest.approx(2 * math.log(1.18 / 1.36 / 0.5))
    assert stats.paired_log_e([(0, 1), (1, 0)])[0] == pytest.approx(2 * math.log(0.18 / 1.36 / 0.5))


def test_the_universal_process_keeps_its_rate_under_greedy_allocation() -> None:
    rng, runs = np.random.default_rng(6), 300
    wrong = 0
    for _ in range(runs):
        counts = [[0, 0], [0, 0], [0, 0]]
        highest = 0.0
        for _ in range(300):
            k = max(range(3), key=lambda i: rng.beta(1 + counts[i][0], 1 + counts[i][1]))
            counts[k][0 if rng.random() < 0.6 else 1] += 1
            highest = max(highest, stats.universal_log_e([(s, f) for s, f in counts]))
        wrong += highest >= math.log(20)
    assert wrong / runs <= slack(ALPHA, runs)


def test_the_universal_process_against_its_formula_and_a_clear_difference() -> None:
    arms = [(30, 70), (55, 45), (0, 3)]
    s, f = 85, 118
    expected = (
        sum(betaln(0.5 + a, 0.5 + b) - betaln(0.5, 0.5) for a, b in arms)
        - s * math.log(s / 203)
        - f * math.log(f / 203)
    )
    assert stats.universal_log_e(arms) == pytest.approx(expected)
    assert stats.universal_log_e([(300, 700), (500, 500)]) > math.log(1000)
    assert stats.universal_log_e([(0, 0), (0, 0)]) == 0.0


# --- sample ratio


def test_the_ratio_check_is_silent_on_fifty_fifty_and_loud_on_fifty_three_forty_seven() -> None:
    rng, runs, n = np.random.default_rng(7), 200, 12_000
    alarms = {0.5: 0, 0.53: 0}
    for p in alarms:
        for _ in range(runs):
            a = np.cumsum(rng.random(n) < p)
            steps = ((int(a[k - 1]), k - int(a[k - 1])) for k in range(200, n + 1, 200))
            alarms[p] += any(stats.sample_ratio_log_e(step, (1, 1)) >= math.log(stats.RATIO_ALARM) for step in steps)
    assert alarms[0.5] / runs <= slack(0.001, runs)
    assert alarms[0.53] / runs >= 0.95


def test_the_ratio_check_knows_unequal_weights_and_its_formula() -> None:
    log = math.log(stats.RATIO_ALARM)
    assert stats.sample_ratio_log_e((9000, 1000), (9, 1)) < 0 < log < stats.sample_ratio_log_e((5000, 5000), (9, 1))
    expected = gammaln(100) - gammaln(110) + 2 * (gammaln(55) - gammaln(50)) - 10 * math.log(0.5)
    assert stats.sample_ratio_log_e((5, 5), (0.5, 0.5)) == pytest.approx(expected)


# --- allocation and planning


def test_top_two_shares_follow_the_draws_and_keep_the_floor() -> None:
    # A is best in 3 draws of 4, B in one, C never: 1/2 (.75, .25, 0) + 1/2 (.25, .75, 0)
    draws = [(0.9, 0.5, 0.1), (0.8, 0.5, 0.1), (0.7, 0.5, 0.1), (0.4, 0.5, 0.1)]
    assert stats.top_two_shares(draws, floor=0.0) == pytest.approx([0.5, 0.5, 0.0])
    assert stats.top_two_shares(draws, floor=0.1) == pytest.approx([0.45, 0.45, 0.1])
    assert stats.top_two_shares([(1.0, 0.0)], floor=0.1) == pytest.approx([0.9, 0.1])
    # three arms each best in a third of the draws: (p_i + sum over j of p_j p_i / (1 - p_j)) / 2 = 1/3
    assert stats.top_two_shares([(1, 0, 0), (0, 1, 0), (0, 0, 1)], floor=0.0) == pytest.approx([1 / 3] * 3)


@given(st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=1, max_size=30), st.floats(0, 0.25))
def test_shares_are_a_distribution_above_the_floor(draws: list[tuple[float, ...]], floor: float) -> None:
    shares = stats.top_two_shares(draws, floor=floor)
    assert math.fsum(shares) == pytest.approx(1.0)
    assert min(shares) >= floor - 1e-12


def test_planning_figures_of_the_design() -> None:
    assert stats.units_per_arm(0.6, 0.05, sequential=False) == 1508  # 1507.2, rounded up
    assert stats.units_per_arm(0.6, 0.10, sequential=False) == 377
    assert stats.units_per_arm(0.6, -0.10) == 566


def test_intervals_for_one_look() -> None:
    assert stats.mean_interval(Arm(1, 1, 1)) is None
    assert stats.mean_interval(arm(np.array([0.0, 1.0, 2.0]))) == pytest.approx(
        (1 - 1.96 / math.sqrt(3), 1 + 1.96 / math.sqrt(3))
    )
    assert stats.share_interval(0, 0) is None
    assert stats.share_interval(0, 10) == pytest.approx((0.0, 0.27753), abs=1e-4)
    assert stats.share_interval(8, 10) == pytest.approx((0.49016, 0.94331), abs=1e-4)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: stats.anytime_effect(Arm(9, 1, 1), Arm(9, 1, 1), alpha=1.0), "alpha: must be in (0, 1), got 1.0"),
        (lambda: stats.paired_log_e([(0, 1), (2, 0)]), "got (2, 0) at pair 1"),
        (lambda: stats.universal_log_e([(-1, 0)]), "got (-1, 0)"),
        (lambda: stats.sample_ratio_log_e((1, 2), (1,)), "one positive weight per count"),
        (lambda: stats.top_two_shares([(0.5, 0.5)], floor=0.6), "floor: must be in [0, 0.5], got 0.6"),
        (lambda: stats.units_per_arm(1.0, 0.1), "rate: must be in (0, 1), got 1.0"),
        (lambda: stats.units_per_arm(0.5, 0.0), "difference: must not be 0"),
        (lambda: stats.share_interval(3, 2), "successes: must be in [0, 2], got 3"),
    ],
)
def test_bad_input_is_named(call: object, says: str) -> None:
    with pytest.raises(ValueError) as raised:
        call()  # type: ignore[operator]
    assert says in str(raised.value)
