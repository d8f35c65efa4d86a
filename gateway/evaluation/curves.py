"""Curves over temperature with their uncertainty: bootstrap over prompts, isotonic fits, an exact multinomial test.

Knows matrices of numbers, prompts in rows and temperatures in columns. Does NOT know what was measured, nor what is
good.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def resample_weights(strata: Sequence[str], resamples: int, seed: int) -> Floats:
    """(resamples, prompts): the weight of each prompt in each bootstrap resample; rows sum to 1.

    Prompts are drawn with replacement within their stratum (a language), so every resample has the same mix. One matrix
    serves all temperatures and metrics, which keeps every comparison paired by prompt. Depends on `strata`, `resamples`
    and `seed` alone.
    """
    rng = np.random.default_rng(seed)
    weights = np.zeros((resamples, len(strata)))
    labels = np.asarray(strata)
    for stratum in sorted(set(strata)):
        members = np.flatnonzero(labels == stratum)
        drawn = rng.integers(0, len(members), size=(resamples, len(members)))
        np.add.at(weights, (np.arange(resamples)[:, None], members[drawn]), 1.0)
    return weights / len(strata)


def resampled(weights: Floats, values: Floats) -> Floats:
    """(resamples, temperatures): the mean over prompts in each resample, from (prompts, temperatures).

    A plain loop in place of a matrix product: the threads of a BLAS cost more than these small sums, by far on a busy
    machine, and their order of summation would depend on it.
    """
    return np.asarray(np.einsum("bp,pt->bt", weights, values))


def falling(values: Floats) -> Floats:
    """The least-squares non-increasing fit along the last axis (isotonic regression, equal weights)."""
    return -rising(-values)


def rising(values: Floats) -> Floats:
    """The least-squares non-decreasing fit along the last axis: what pool-adjacent-violators gives, by its max-min
    formula.

    fit_i = max over a <= i of min over b >= i of mean(values[a..b]) (Barlow et al. 1972), which needs no loop over
    rows.
    """
    m = values.shape[-1]
    sums = np.concatenate([np.zeros((*values.shape[:-1], 1)), np.cumsum(values, axis=-1)], axis=-1)
    fit = np.full_like(values, -np.inf, dtype=float)
    for a in range(m):
        means = (sums[..., a + 1 :] - sums[..., a, None]) / np.arange(1, m - a + 1)
        lowest = np.minimum.accumulate(means[..., ::-1], axis=-1)[..., ::-1]  # over b >= i, for each i >= a
        fit[..., a:] = np.maximum(fit[..., a:], lowest)
    return fit


def multinomial_p(
    counts: Sequence[int], law: Sequence[float], *, draws: int = 9_999, seed: int = 0
) -> tuple[float, float]:
    """(G, p): the likelihood-ratio statistic G = 2 sum c ln(c / (N q)) and its exact p-value by simulation, in (0, 1].

    p = (1 + draws with G at least as large) / (1 + draws), a valid test at every N (Davison and Hinkley 1997, section
    4.2). `law` sums to 1; a count where the law is 0 gives G = inf and the smallest p.
    """
    c, q = np.asarray(counts, dtype=float), np.asarray(law, dtype=float)
    observed = _g(c[None, :], q)[0]
    simulated = _g(np.random.default_rng(seed).multinomial(int(c.sum()), q / q.sum(), size=draws).astype(float), q)
    return float(observed), float((1 + (simulated >= observed - 1e-9).sum()) / (1 + draws))


def _g(counts: Floats, law: Floats) -> Floats:
    expected = counts.sum(axis=1, keepdims=True) * law
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(counts > 0, counts * np.log(counts / expected), 0.0)
    return np.asarray(2 * terms.sum(axis=1))
