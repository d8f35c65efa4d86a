"""The tests of temperature on simulated draws: how often they cry wolf, and which wolves they see."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from gateway.evaluation import tiers
from gateway.evaluation.tiers import Chain, Draws
from gateway.evaluation.wire import Candidate, Position

TEMPERATURES = (0.2, 0.5, 0.7, 1.0, 1.3)
Generator = Callable[[np.random.Generator, int], np.ndarray]


def fair(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.random(n)


def biased(rng: np.random.Generator, n: int) -> np.ndarray:
    """A generator that favours small numbers."""
    return rng.random(n) ** 1.5


def _pool() -> np.ndarray:
    """Raw log-probabilities of the 20 likeliest of 1,000 tokens in 4,000 contexts, from sure to lost."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 1000)) * rng.uniform(1.0, 5.0, size=(4000, 1))
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -np.sort(-logprobs, axis=1)[:, :20]


POOL = _pool()


def contexts(rng: np.random.Generator, n: int) -> np.ndarray:
    return POOL[rng.integers(0, len(POOL), n)]


def enough(rng: np.random.Generator, asked: Chain) -> np.ndarray:
    """As many contexts as tell the temperature asked for from one 0.1 away."""
    n = 400
    while (
        tiers.predicted_error(Draws(found := contexts(rng, n), np.zeros(n, dtype=np.int64)), asked)
        > 0.1 / tiers.RESOLVING
    ):
        n = int(n * 1.2)
    return found


def engine(rng: np.random.Generator, logprobs: np.ndarray, chain: Chain, generator: Generator = fair) -> Draws:
    """What an engine that really applies `chain` draws."""
    cumulated = np.cumsum(tiers.law(logprobs, chain), axis=1)
    drawn = (generator(rng, len(logprobs))[:, None] * cumulated[:, -1:] > cumulated).sum(axis=1)
    return Draws(logprobs, drawn)


def positions_of(draws: Draws) -> list[Position]:
    named = [[Candidate(k, f"t{k}", float(lp)) for k, lp in enumerate(row)] for row in draws.logprobs]
    return [Position(row[k], tuple(row)) for row, k in zip(named, draws.drawn, strict=True)]


def passes(rng: np.random.Generator, asked: Chain, applied: Chain, generator: Generator = fair) -> bool:
    """Tiers B and C at one temperature, each repeated once when it fails, as verify does."""

    def tier_b() -> bool:
        return tiers.estimate(engine(rng, enough(rng, asked), applied, generator), asked).passed

    def tier_c() -> bool:
        first = np.repeat(contexts(rng, 1), 400, axis=0)
        return tiers.omnibus(positions_of(engine(rng, first, applied, generator)), asked).passed

    return (tier_b() or tier_b()) and (tier_c() or tier_c())


def test_an_honest_engine_is_believed() -> None:
    """False alarms in 200 simulated runs at five temperatures: of single tier-B tests, of T-hat's interval, of whole
    runs."""
    rng = np.random.default_rng(1)
    single, covered, tests = 0, 0, 200 * len(TEMPERATURES)
    for _ in range(200):
        for t in TEMPERATURES:
            found = tiers.estimate(engine(rng, contexts(rng, 300), Chain(temperature=t)), Chain(temperature=t))
            assert found.temperature is not None
            assert found.error is not None
            single += not found.passed
            covered += abs(found.temperature - t) < 1.96 * found.error
    assert single / tests <= 0.001 + 3 * math.sqrt(0.001 / tests)
    assert covered / tests == pytest.approx(0.95, abs=0.02)


def test_no_false_alarm_in_200_whole_runs() -> None:
    rng = np.random.default_rng(2)
    alarms = sum(not passes(rng, Chain(temperature=t), Chain(temperature=t)) for t in TEMPERATURES for _ in range(40))
    assert alarms == 0, "expected by the repetition: 200 x (1e-6 + 1e-6)"


FAULTS: dict[str, tuple[Callable[[Chain], Chain], Generator, tuple[float, ...]]] = {
    # what is applied for what is asked, by which generator, and at which temperatures it must be seen
    "ignores temperature": (lambda asked: Chain(temperature=1.0), fair, (0.2, 0.5, 0.7, 1.3)),
    "halves temperature": (lambda asked: Chain(temperature=asked.temperature / 2), fair, TEMPERATURES),
    "is off by 0.1": (lambda asked: Chain(temperature=asked.temperature + 0.1), fair, TEMPERATURES),
    "applies top_k 5": (lambda asked: Chain(temperature=asked.temperature, top_k=5), fair, (0.7, 1.0, 1.3)),
    "applies top_p .9": (lambda asked: Chain(temperature=asked.temperature, top_p=0.9), fair, (0.7, 1.0, 1.3)),
    "applies min_p .05": (lambda asked: Chain(temperature=asked.temperature, min_p=0.05), fair, (0.7, 1.0, 1.3)),
    "has a biased generator": (lambda asked: asked, biased, (0.7, 1.0, 1.3)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_engine_is_caught(fault: str) -> None:
    applied, generator, temperatures = FAULTS[fault]
    rng = np.random.default_rng(3)
    for t in temperatures:
        asked = Chain(temperature=t)
        caught = sum(not passes(rng, asked, applied(asked), generator) for _ in range(5))
        assert caught >= 3, f"{caught} of 5 at {t}"


def test_tier_c_sees_what_leaves_the_mean_log_probability_alone() -> None:
    rng = np.random.default_rng(8)
    raw = np.log([[0.3, 0.3, 0.2, 0.2]]).repeat(400, axis=0)
    drawn = rng.choice(4, size=400, p=[0.4, 0.2, 0.2, 0.2])  # two equal tokens, one preferred
    assert tiers.estimate(Draws(raw, drawn), Chain(temperature=1.0)).passed
    assert not tiers.omnibus(positions_of(Draws(raw, drawn)), Chain(temperature=1.0)).passed


def test_a_preset_s_own_cuts_are_part_of_the_law() -> None:
    rng = np.random.default_rng(4)
    preset = Chain(temperature=0.9, top_p=0.9, top_k=10, min_p=0.02)
    found = tiers.estimate(engine(rng, contexts(rng, 2000), preset), preset)
    assert found.passed
    assert found.skipped == 0
    assert found.temperature == pytest.approx(0.9, abs=0.08)
    ignoring = tiers.estimate(engine(rng, contexts(rng, 2000), Chain(temperature=0.9)), preset)
    assert not ignoring.passed
    assert ignoring.skipped > 100, "drawn although top_p = .9 forbids it"


def test_the_law_by_hand() -> None:
    raw = np.log([[0.5, 0.25, 0.15, 0.1]])
    cases = {
        Chain(temperature=1.0): [0.5, 0.25, 0.15, 0.1],
        Chain(temperature=0.5): [0.25 / 0.345, 0.0625 / 0.345, 0.0225 / 0.345, 0.01 / 0.345],
        Chain(temperature=1.0, top_k=2): [2 / 3, 1 / 3, 0, 0],
        Chain(temperature=1.0, top_p=0.6): [2 / 3, 1 / 3, 0, 0],
        Chain(temperature=1.0, min_p=0.25): [0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0],
        Chain(temperature=1.0, top_k=3, top_p=0.8): [2 / 3, 1 / 3, 0, 0],  # top_p of what top_k left
    }
    for chain, expected in cases.items():
        assert tiers.law(raw, chain)[0] == pytest.approx(expected)


def test_the_estimate_by_hand() -> None:
    # two candidates: E(beta) = (l1 p^beta + l2 r^beta) / (p^beta + r^beta), and 70 of 100 draws take the first
    raw = np.log([[0.8, 0.2]]).repeat(100, axis=0)
    found = tiers.estimate(Draws(raw, np.array([0] * 70 + [1] * 30)), Chain(temperature=1.0))
    beta = math.log(7 / 3) / math.log(4)
    assert found.temperature == pytest.approx(1 / beta)
    assert found.error == pytest.approx(1 / beta**2 / math.sqrt(100 * 0.7 * 0.3) / math.log(4))
    assert found.z == pytest.approx((70 - 80) / math.sqrt(100 * 0.8 * 0.2))
    always = tiers.estimate(Draws(raw, np.zeros(100, dtype=np.int64)), Chain(temperature=1.0))
    assert (always.temperature, always.passed) == (None, False)


def test_draws_outside_the_candidates_are_counted_and_fail_above_one_in_two_hundred() -> None:
    rng = np.random.default_rng(5)
    draws = engine(rng, contexts(rng, 1000), Chain(temperature=0.7))
    for outside, passed in ((5, True), (6, False)):
        drawn = draws.drawn.copy()
        drawn[:outside] = -1
        found = tiers.estimate(Draws(draws.logprobs, drawn), Chain(temperature=0.7))
        assert (found.skipped, found.passed) == (outside, passed)
    nothing = tiers.estimate(Draws(draws.logprobs, np.full(1000, -1)), Chain(temperature=0.7))
    assert not nothing.passed


def test_positions_become_arrays_whatever_their_order_and_number() -> None:
    a, b, c = (Candidate(key, key, lp) for key, lp in (("a", -0.1), ("b", -3.0), ("c", -9.0)))
    draws = tiers.draws_of([Position(b, (a, b)), Position(c, (a, b)), Position(a, (a,))])
    assert draws.drawn.tolist() == [1, -1, 0]
    assert draws.logprobs[2].tolist() == [-0.1, *[-math.inf] * 19]


def test_the_predicted_error_is_the_one_found() -> None:
    rng = np.random.default_rng(6)
    draws, chain = engine(rng, contexts(rng, 3000), Chain(temperature=0.7)), Chain(temperature=0.7)
    assert tiers.estimate(draws, chain).error == pytest.approx(tiers.predicted_error(draws, chain), rel=0.1)


def test_the_gap_between_two_views_of_one_distribution() -> None:
    raw = [Candidate(k, str(k), math.log(p)) for k, p in enumerate((0.4, 0.3, 0.2))]
    law = tiers.law(np.array([[candidate.logprob for candidate in raw]]), Chain(temperature=0.7))[0]
    after = [Candidate(k, str(k), math.log(p)) for k, p in enumerate(law)]
    honest, other = Position(raw[0], tuple(raw)), Position(raw[0], tuple(after))
    assert tiers.gap(honest, other, Chain(temperature=0.7)) < 1e-12
    assert tiers.gap(honest, other, Chain(temperature=0.8)) > 0.01
    assert tiers.gap(honest, Position(raw[0], tuple(after[:2])), Chain(temperature=0.7)) == pytest.approx(law[2])


def test_heat_rises_or_not() -> None:
    rng = np.random.default_rng(7)

    def at(t: float, mean: float) -> tiers.Heat:
        return tiers.heat(t, [(-rng.exponential(mean, 50)).tolist() for _ in range(8)])

    assert tiers.rises([at(1.3, 3.0), at(0.2, 0.5), at(0.7, 1.2)])
    assert not tiers.rises([at(0.2, 1.5), at(0.7, 1.5), at(1.3, 1.5)])
    assert not tiers.rises([at(0.2, 0.5), at(0.7, 5.0), at(1.3, 1.5)])
    one = tiers.heat(0.5, [[-1.0, -3.0], [-2.0, -12.0]])
    assert (one.surprisal, one.error, one.tail_rate) == (4.5, 2.5, 0.25)
