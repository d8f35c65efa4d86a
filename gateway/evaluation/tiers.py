"""Is the temperature asked for the temperature applied? The tests of it, on numbers alone.

An engine draws each token from q_i ~ exp(l_i / T), l its own raw log-probabilities, cut by min_p, top_k and top_p in
vLLM's order. With top_k no larger than the candidates shown, q is known exactly, so T can be estimated from what was
drawn. Every position counts as one draw: given what came before, draws are independent.

Knows arrays of log-probabilities and draws. Does NOT know engines, prompts or HTTP.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from gateway.evaluation.curves import multinomial_p
from gateway.evaluation.wire import Position

CANDIDATES = 20  # shown for each position: OpenAI's and vLLM's limit for top_logprobs
Z_LIMIT = 3.29  # two-sided 1e-3
P_LIMIT = 1e-3
GAP_LIMIT = 1e-5  # of a probability; measured on llama.cpp: below 1e-7
SKIPPED_LIMIT = 0.005  # share of draws that the law says cannot happen: ties and rounding, no more
RESOLVING = 4.93  # standard errors in a difference that two tests in a row see with power .9: 3.29 + 1.64
TAIL = math.log(1e-4)  # raw log-probability below which a token counts as from the tail

Floats = npt.NDArray[np.float64]


class Chain(msgspec.Struct, frozen=True, kw_only=True):
    """The sampler fields in effect: temperature > 0, top_k >= 1 and no larger than CANDIDATES."""

    temperature: float
    top_k: int = CANDIDATES
    top_p: float = 1.0
    min_p: float = 0.0


class Draws(NamedTuple):
    """Positions as arrays: raw log-probabilities (positions, candidates), falling, -inf where there are fewer; and the
    column that was drawn, -1 where it is not among them."""

    logprobs: Floats
    drawn: npt.NDArray[np.int64]


def draws_of(positions: Sequence[Position]) -> Draws:
    """The positions of any number of replies, in order."""
    logprobs = np.full((len(positions), CANDIDATES), -np.inf)
    drawn = np.full(len(positions), -1, dtype=np.int64)
    for row, position in enumerate(positions):
        for column, candidate in enumerate(position.top[:CANDIDATES]):
            logprobs[row, column] = candidate.logprob
            if candidate.key == position.sampled.key and drawn[row] < 0:
                drawn[row] = column
    return Draws(logprobs, drawn)


def law(logprobs: Floats, chain: Chain) -> Floats:
    """The probability of each candidate under the chain, row by row: temperature, then min_p, top_k, top_p (vLLM)."""
    q = _softmax(logprobs, 1 / chain.temperature)
    q = np.where(q >= chain.min_p * q[:, :1], q, 0.0)
    q[:, chain.top_k :] = 0.0
    q /= q.sum(axis=1, keepdims=True)
    before = np.cumsum(q, axis=1) - q
    q = np.where((before < chain.top_p - 1e-12) | (np.arange(q.shape[1]) == 0), q, 0.0)
    return np.asarray(q / q.sum(axis=1, keepdims=True))


def _softmax(logprobs: Floats, beta: float) -> Floats:
    weights = np.exp(beta * (logprobs - logprobs[:, :1]))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _moments(logprobs: Floats, beta: float) -> tuple[float, float]:
    """Sums over positions of the mean and the variance of l under exp(beta l)."""
    q = _softmax(logprobs, beta)
    finite = np.where(np.isfinite(logprobs), logprobs, 0.0)
    mean = (q * finite).sum(axis=1)
    return float(mean.sum()), float(((q * finite**2).sum(axis=1) - mean**2).clip(min=0).sum())


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """Tier B. `temperature` and `error` (one standard error) are None where the draws do not bound them."""

    z: float  # standard normal if the chain is what is applied
    temperature: float | None
    error: float | None
    positions: int
    skipped: int  # draws that the chain makes impossible, outside the candidates shown, or not shown at all

    @property
    def passed(self) -> bool:
        return abs(self.z) < Z_LIMIT and self.skipped <= SKIPPED_LIMIT * self.positions


def estimate(draws: Draws, chain: Chain, *, lost: int = 0) -> Estimate:
    """Tier B: the score test of the temperature, and its maximum-likelihood estimate.

    z = sum(l_drawn - E(1/T)) / sqrt(sum V(1/T)); 1/T-hat solves sum E(beta) = sum l_drawn, found by bisection, E being
    monotone; SE = T-hat^2 / sqrt(sum V(1/T-hat)), the inverse Fisher information carried over from beta to T. What the
    chain cuts at its own temperature stays cut while beta varies. `lost` tokens were drawn but not shown: they count as
    skipped, since what is hidden may be hidden for what it is.
    """
    allowed = law(draws.logprobs, chain) > 0
    rows = np.arange(len(draws.drawn))
    usable = (draws.drawn >= 0) & allowed[rows, draws.drawn]
    logprobs = np.where(allowed, draws.logprobs, -np.inf)[usable]
    total = float(logprobs[np.arange(len(logprobs)), draws.drawn[usable]].sum())
    skipped = int((~usable).sum()) + lost
    if not len(logprobs):
        return Estimate(z=math.inf, temperature=None, error=None, positions=len(rows) + lost, skipped=skipped)
    mean, variance = _moments(logprobs, 1 / chain.temperature)
    beta = _solve(logprobs, total)
    information = _moments(logprobs, beta)[1] if beta else 0.0
    return Estimate(
        z=(total - mean) / math.sqrt(variance) if variance > 0 else 0.0,
        temperature=1 / beta if beta else None,
        error=1 / beta**2 / math.sqrt(information) if beta and information > 1e-9 else None,
        positions=len(rows) + lost,
        skipped=skipped,
    )


def _solve(logprobs: Floats, total: float, low: float = 1e-2, high: float = 1e3) -> float | None:
    """beta with sum E(beta) = total; None when it lies outside [low, high] (always the likeliest, or hotter than
    100)."""
    if not _moments(logprobs, low)[0] < total < _moments(logprobs, high)[0]:
        return None
    for _ in range(40):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _moments(logprobs, middle)[0] < total else (low, middle)
    return math.sqrt(low * high)


def predicted_error(draws: Draws, chain: Chain) -> float:
    """The standard error that T-hat will have if the chain is what is applied; looks at the laws, not at the draws."""
    allowed = np.where(law(draws.logprobs, chain) > 0, draws.logprobs, -np.inf)
    information = _moments(allowed, 1 / chain.temperature)[1]
    return chain.temperature**2 / math.sqrt(information) if information > 0 else math.inf


class Omnibus(msgspec.Struct, frozen=True, kw_only=True):
    """Tier C."""

    g: float | None  # None: infinite, something was drawn that cannot be
    p: float
    draws: int
    skipped: int

    @property
    def passed(self) -> bool:
        return self.p > P_LIMIT and self.skipped <= SKIPPED_LIMIT * self.draws


def omnibus(first: Sequence[Position], chain: Chain, *, lost: int = 0) -> Omnibus:
    """Tier C: whether many first tokens of one prompt follow the law in every respect, by an exact multinomial test.

    Catches what leaves the mean log-probability alone, such as a biased generator. The law is that of the mean of the
    candidates' log-probabilities over the replies (batching makes them differ in the fourth decimal).
    """
    table: dict[int | str, list[float]] = {}
    for position in first:
        for candidate in position.top[:CANDIDATES]:
            table.setdefault(candidate.key, []).append(candidate.logprob)
    often = sorted(table, key=lambda key: (-len(table[key]), -math.fsum(table[key])))[:CANDIDATES]
    ranked = sorted(often, key=lambda key: -math.fsum(table[key]) / len(table[key]))
    mean = [math.fsum(table[key]) / len(table[key]) for key in ranked]
    q = law(np.array([mean]), chain)[0]
    counted = Counter(position.sampled.key for position in first)
    possible = {key: share for key, share in zip(ranked, q.tolist(), strict=True) if share > 0}
    counts = [counted[key] for key in possible]
    skipped = len(first) - sum(counts) + lost
    if not sum(counts):
        return Omnibus(g=None, p=0.0, draws=len(first) + lost, skipped=skipped)
    g, p = multinomial_p(counts, list(possible.values()))
    return Omnibus(g=g, p=p, draws=len(first) + lost, skipped=skipped)


def gap(raw: Position, after: Position, chain: Chain) -> float:
    """Tier A: the largest difference between the engine's own probabilities after its chain and the law of its raw
    ones."""
    q = law(np.array([[candidate.logprob for candidate in raw.top[:CANDIDATES]]]), chain)[0]
    expected = {candidate.key: float(p) for candidate, p in zip(raw.top, q, strict=False)}
    said = {candidate.key: math.exp(candidate.logprob) for candidate in after.top}
    return max(abs(expected.get(key, 0.0) - said.get(key, 0.0)) for key in expected | said)


class Heat(msgspec.Struct, frozen=True, kw_only=True):
    """Tier D, at one temperature: how surprised the model is by what was drawn, nothing cut."""

    temperature: float
    surprisal: float  # nats per token, -mean raw log-probability, a mean over texts
    error: float  # its standard error over texts
    tail_rate: float  # share of tokens from the tail
    texts: int


def heat(temperature: float, texts: Sequence[Sequence[float]]) -> Heat:
    """Of the raw log-probabilities of the tokens of each text; two texts at least, none empty."""
    means = np.array([-np.mean(text) for text in texts])
    tokens = np.concatenate([np.asarray(text) for text in texts])
    return Heat(
        temperature=temperature,
        surprisal=float(means.mean()),
        error=float(means.std(ddof=1) / math.sqrt(len(means))),
        tail_rate=float((tokens < TAIL).mean()),
        texts=len(texts),
    )


def rises(heats: Sequence[Heat]) -> bool:
    """Tier D: surprisal rises clearly from the coldest to the hottest, never clearly falls between neighbours, and the
    tail does not shrink."""
    ordered = sorted(heats, key=lambda heat: heat.temperature)
    steps = [(b.surprisal - a.surprisal) / math.hypot(a.error, b.error, 1e-9) for a, b in itertools.pairwise(ordered)]
    cold, hot = ordered[0], ordered[-1]
    clear = (hot.surprisal - cold.surprisal) / math.hypot(cold.error, hot.error, 1e-9)
    return clear > Z_LIMIT and min(steps) > -Z_LIMIT and hot.tail_rate >= cold.tail_rate
