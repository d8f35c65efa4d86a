"""The sample log by temperature: what came out of each preset at each step of the effective temperature.

A bin holds the temperatures nearest to its centre. Counts, lengths and times are over all its exchanges; degeneration
is judged on its newest texts by the function that is handed in, and the result says on how many. Intervals are for one
look. Blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, Engine, Integer, Select, cast, func, select

from gateway import stats
from gateway.log.feedback import counted
from gateway.log.queries import Filters, output_tokens, rows_of, temperature
from gateway.log.schema import exchanges

WIDTH: Final = 0.1
TEXTS: Final = 200  # texts per bin that are judged
_c = exchanges.c
Degenerate = Callable[[str], bool]


class Bin(msgspec.Struct, kw_only=True):
    """One preset at one temperature. Means are None where nothing was measured; `feedback` is in [-1, 1]."""

    preset: str
    temperature: float
    exchanges: int
    errors: int
    tokens: float | None
    ttft_ms: float | None
    duration_ms: float
    votes: int = 0
    feedback: float | None = None
    feedback_interval: tuple[float, float] | None = None
    judged: int = 0
    degenerate: float | None = None
    degenerate_interval: tuple[float, float] | None = None


def by_temperature(
    engine: Engine,
    filters: Filters,
    *,
    width: float = WIDTH,
    metric: str = "thumb",
    degenerate: Degenerate | None = None,
) -> list[Bin]:
    """The bins, by preset and temperature. Raises store.Away."""
    step = cast(func.round(temperature() / width), Integer)
    conditions = [*filters.conditions(), temperature().is_not(None)]
    said = {(row["preset"], row["step"]): row for row in rows_of(engine, _votes(step, conditions, metric))}
    bins = []
    for row in rows_of(engine, _summary(step, conditions)):
        at = row.pop("step")
        means = {name: _number(row[name]) for name in ("tokens", "ttft_ms", "duration_ms")}
        found = Bin(temperature=round(at * width, 6), **(row | means))
        if votes := said.get((found.preset, at)):
            arm = stats.Arm(votes["votes"], votes["total"], votes["squares"])
            found.votes, found.feedback, found.feedback_interval = arm.n, arm.mean, stats.mean_interval(arm)
        if degenerate is not None:
            _judge(found, _texts(engine, [*conditions, _c.preset == found.preset, step == at]), degenerate)
        bins.append(found)
    return bins


def _summary(step: ColumnElement[Any], conditions: list[ColumnElement[bool]]) -> Select[Any]:
    return (
        select(
            _c.preset,
            step.label("step"),
            func.count().label("exchanges"),
            func.count().filter(_c.outcome != "ok").label("errors"),
            func.avg(output_tokens()).label("tokens"),
            func.avg(_c.ttft_ms).label("ttft_ms"),
            func.avg(_c.duration_ms).label("duration_ms"),
        )
        .where(*conditions)
        .group_by(_c.preset, step)
        .order_by(_c.preset, step)
    )


def _votes(step: ColumnElement[Any], conditions: list[ColumnElement[bool]], metric: str) -> Select[Any]:
    votes = counted(metric)
    return (
        select(
            _c.preset,
            step.label("step"),
            func.count().label("votes"),
            func.sum(votes.c.value).label("total"),
            func.sum(votes.c.value * votes.c.value).label("squares"),
        )
        .select_from(votes.join(exchanges, _c.id == votes.c.exchange_id))
        .where(*conditions)
        .group_by(_c.preset, step)
    )


def _texts(engine: Engine, conditions: list[ColumnElement[bool]]) -> list[str]:
    newest = select(_c.text).where(*conditions, _c.text.is_not(None)).order_by(_c.id.desc()).limit(TEXTS)
    return [row["text"] for row in rows_of(engine, newest)]


def _judge(found: Bin, texts: list[str], degenerate: Degenerate) -> None:
    if texts:
        bad = sum(map(degenerate, texts))
        found.judged, found.degenerate = len(texts), bad / len(texts)
        found.degenerate_interval = stats.share_interval(bad, len(texts))


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
