"""Isotonic fits against a plain pool-adjacent-violators, the bootstrap's promises, the exact test's rate."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.evaluation.curves import falling, multinomial_p, resample_weights, rising


def pool_adjacent_violators(values: list[float]) -> list[float]:
    blocks: list[list[float]] = []
    for value in values:
        blocks.append([value])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    return [float(np.mean(block)) for block in blocks for _ in block]


@given(st.lists(st.lists(st.floats(-5, 5), min_size=4, max_size=4), min_size=1, max_size=5))
def test_the_closed_form_is_pool_adjacent_violators_row_by_row(rows: list[list[float]]) -> None:
    fit = rising(np.array(rows))
    assert fit == pytest.approx(np.array([pool_adjacent_violators(row) for row in rows]), abs=1e-9)
    assert falling(-np.array(rows)) == pytest.approx(-fit)


def test_resamples_keep_each_language_s_share_and_depend_on_the_seed_alone() -> None:
    strata = ["zh"] * 5 + ["en"] * 15
    weights = resample_weights(strata, 200, seed=3)
    assert weights[:, :5].sum(axis=1) == pytest.approx(0.25)
    assert weights.sum(axis=1) == pytest.approx(1.0)
    assert (weights == resample_weights(strata, 200, seed=3)).all()
    assert (weights != resample_weights(strata, 200, seed=4)).any()


def test_the_bootstrap_s_spread_is_the_standard_error() -> None:
    values = np.random.default_rng(1).normal(size=60)
    spread = (resample_weights(["en"] * 60, 4000, seed=0) @ values).std()
    assert spread == pytest.approx(values.std() / math.sqrt(60), rel=0.05)


def test_the_exact_test_keeps_its_rate_where_the_chi_square_would_not_and_finds_a_wrong_law() -> None:
    rng = np.random.default_rng(2)
    law = np.array([0.7, 0.2, 0.05, 0.03, *[0.02 / 16] * 16])
    runs = 300
    low = sum(
        multinomial_p(rng.multinomial(100, law).tolist(), law.tolist(), draws=499)[1] <= 0.05 for _ in range(runs)
    )
    assert low / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)
    wrong = law**2 / (law**2).sum()
    assert multinomial_p(rng.multinomial(400, wrong).tolist(), law.tolist())[1] <= 1e-3
    assert multinomial_p([5, 5], [1.0, 0.0]) == (math.inf, 1 / 10_000)


def test_the_statistic_against_a_hand_computation() -> None:
    g, _ = multinomial_p([30, 10], [0.5, 0.5])
    assert g == pytest.approx(2 * (30 * math.log(1.5) + 10 * math.log(0.5)))
