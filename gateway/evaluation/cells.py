"""A cell: what one prompt scored at one temperature. The sweep makes them, `recommend` and `report` read them.

Knows the shape, and which cells can be compared with each other. Does NOT know how a number was obtained, nor what is
good.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from gateway.evaluation.curves import Floats

MEASURES = ("quality", "degenerate", "diversity", "consistency", "entropy")


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


class Grid(NamedTuple):
    """Cells as matrices: prompts in rows, sorted, temperatures in columns, rising; nothing missing in what was
    needed."""

    temperatures: list[float]
    langs: list[str]  # per row
    values: dict[str, Floats]
    samples: int
    dropped: list[str]


def compare(cells: Sequence[Cell], needed: set[str]) -> Grid:
    """What can be compared: temperatures that at least four prompts in five have, prompts that have all of those.

    A cell counts when everything `needed` was measured, with as many samples as the fullest one. Raises ValueError for
    two cells of one prompt and temperature.
    """
    samples = max(cell.n for cell in cells)
    table: dict[tuple[str, str], dict[float, Cell]] = {}
    for cell in cells:
        if cell.n == samples and not any(getattr(cell, name) is None for name in needed):
            row = table.setdefault((cell.lang, cell.prompt), {})
            if cell.temperature in row:
                raise ValueError(f"cells: prompt {cell.prompt!r} has two cells at {cell.temperature:g}")
            row[cell.temperature] = cell
    had = Counter(t for row in table.values() for t in row)
    temperatures = sorted(t for t, count in had.items() if count >= 0.8 * len(table))
    rows = sorted(key for key, row in table.items() if all(t in row for t in temperatures))
    values = {}
    for name in MEASURES:
        column = [[getattr(table[key][t], name) for t in temperatures] for key in rows]
        if column and not any(value is None for value in itertools.chain(*column)):
            values[name] = np.array(column, dtype=float)
    return Grid(
        temperatures, [lang for lang, _ in rows], values, samples, _dropped(cells, needed, temperatures, len(rows))
    )


def _dropped(cells: Sequence[Cell], needed: set[str], temperatures: list[float], rows: int) -> list[str]:
    """What was left out, in words."""
    said = []
    if absent := sorted({cell.temperature for cell in cells} - set(temperatures)):
        said.append(f"left out, too few complete cells: temperature {', '.join(f'{t:g}' for t in absent)}")
    prompts = len({(cell.lang, cell.prompt) for cell in cells})
    if rows < prompts:
        said.append(f"left out, not complete at every temperature: {prompts - rows} of {prompts} prompts")
    if never := sorted(name for name in needed if all(getattr(cell, name) is None for cell in cells)):
        said.append(f"not measured at all: {', '.join(never)}")
    return said
