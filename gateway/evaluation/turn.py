"""The entropy turning point (TURN): above which temperature the model's distribution falls apart.

Du et al. 2025 (ICML), "Optimizing temperature for language models with multi-sample inference": the logarithm of the
mean token entropy is concave in the temperature while the model is sure of itself and turns convex where noise tokens
take over. Here it is a ceiling for `recommend`, never its answer. Knows entropies by temperature; does NOT know
quality, prompts or where log-probabilities come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

BEST_OF_N = (
    0.1  # what the paper adds to the turning point when the best of several answers counts; 0 for a majority vote
)

Floats = npt.NDArray[np.float64]


def turn_paper(temperatures: Sequence[float], entropies: Sequence[float]) -> float | None:
    """The paper's EntP: the first interior temperature where d2 ln H / dT2 > 0 (numpy.gradient applied twice); None
    when there is none.

    `temperatures` rising, at least 3; `entropies` positive, nats per token, one each.
    """
    return _first(temperatures, _convex(temperatures, entropies))


def turning_point(temperatures: Sequence[float], entropies: Sequence[float]) -> float | None:
    """EntP as used here: the first of two consecutive interior temperatures where d2 ln H / dT2 > 0.

    One noisy value makes `turn_paper` answer far too low; the second one in a row nearly never does. Arguments as
    there.
    """
    convex = _convex(temperatures, entropies)
    return _first(temperatures, [here and after for here, after in zip(convex, [*convex[1:], False], strict=True)])


def _convex(temperatures: Sequence[float], entropies: Sequence[float]) -> list[bool]:
    """Whether ln H curves upward at each temperature; the two ends, where the second difference is one-sided, never
    count."""
    t, h = np.asarray(temperatures, dtype=float), np.asarray(entropies, dtype=float)
    if len(t) != len(h) or len(t) < 3 or not (np.diff(t) > 0).all():
        raise ValueError(
            f"temperatures: at least 3, rising, one per entropy; got {list(temperatures)} for {len(h)} entropies"
        )
    if not (h > 0).all():
        raise ValueError(f"entropies: must be > 0, got {list(entropies)}")
    second = np.gradient(np.gradient(np.log(h), t), t)
    return [False, *(bool(d > 0) for d in second[1:-1]), False]


def _first(temperatures: Sequence[float], flags: Iterable[bool]) -> float | None:
    return next((t for t, flag in zip(temperatures, flags, strict=True) if flag), None)


def tempered_surprisal(sampled: float, candidates: Sequence[float], temperature: float) -> float:
    """-ln q_T(sampled token) in nats, q_T being the softmax of the raw log-probabilities `candidates` divided by T (>
    0).

    Exact when the engine sampled among exactly these candidates (top_k = top_logprobs). Otherwise approximate: what
    lies outside is left out, so it underestimates, at T > 1 markedly. Their mean over positions is TURN's H(T).
    """
    scaled = np.asarray(candidates, dtype=float) / temperature
    top = float(scaled.max())
    return top + float(np.log(np.exp(scaled - top).sum())) - sampled / temperature
