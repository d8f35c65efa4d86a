"""A cell: what one prompt scored at one temperature. The sweep makes them, `recommend` and `report` read them.

Knows the shape only. Does NOT know how a number was obtained, nor what is good.
"""

from __future__ import annotations

import msgspec


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """Scores of one prompt at one temperature, over its `n` samples.

    None: not measured (no checks, no logprobs, failed requests)."""

    scenario: str
    lang: str
    prompt: str  # the case's id, the same at every temperature
    temperature: float  # the one in effect, not the one asked for
    quality: float | None = None  # [0, 1], the mean score of the samples
    degenerate: float | None = None  # [0, 1], the share of samples that are degenerate
    diversity: float | None = None  # >= 0, higher is more diverse; one metric, the same in every cell
    consistency: float | None = None  # [0, 1], pair agreement of the answers
    entropy: float | None = None  # nats per token of the *tempered* distribution, see turn.py
    n: int = 0  # samples behind these numbers, the same at every temperature
