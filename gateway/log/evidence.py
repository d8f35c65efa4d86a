"""What the log holds on one experiment, read once: its units, their votes, and what was remembered of earlier looks.

A unit belongs to the variant it was first seen with; one seen with another later is counted as moved. Knows SQL; knows
no statistics.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from sqlalchemy import Engine, Select, case, func, select

from gateway.log.feedback import counted
from gateway.log.queries import output_tokens, rows_of
from gateway.log.schema import exchanges, experiment_state
from gateway.log.store import border, upsert

_c = exchanges.c
FAULTS: Final = (  # outcomes that are nobody's doing but the engine's or ours
    "upstream_error",
    "upstream_unavailable",
    "upstream_timeout",
    "upstream_reset",
    "upstream_invalid_response",
    "internal_error",
)


class Unit(msgspec.Struct, kw_only=True):
    """One user or conversation; `tokens` and `latency_ms` are means over its exchanges, None where nothing is known."""

    unit: str
    variant: str
    first: float
    exchanges: int
    errors: int
    regenerated: int = 0
    tokens: float | None
    latency_ms: float | None


class Vote(msgspec.Struct):
    time: float
    unit: str
    value: float  # in [-1, 1]


class Remembered(msgspec.Struct):
    """The highest ln E of any earlier look at a variant, and when it first crossed the line."""

    max_log_e: float
    crossed_at: float | None


class Evidence(msgspec.Struct):
    """Units in the order they came, votes as they were given; `regenerate`: whether anybody reports that at all."""

    units: list[Unit]
    votes: list[Vote]
    moved: int
    regenerate: bool
    remembered: dict[str, Remembered]


def read(engine: Engine, name: str, metric: str = "thumb") -> Evidence:
    """Everything on an experiment. Raises store.Away."""
    units, moved = _units(rows_of(engine, _per_unit(name)))
    again = rows_of(engine, _regenerated(name))
    for row in again:
        if row["unit"] in units:
            units[row["unit"]].regenerated = row["number"]
    votes = [Vote(row["time"], row["unit"], row["value"]) for row in rows_of(engine, _votes(name, metric))]
    state = rows_of(engine, select(experiment_state).where(experiment_state.c.experiment == name))
    remembered = {row["variant"]: Remembered(row["max_log_e"], row["crossed_at"]) for row in state}
    return Evidence(list(units.values()), votes, moved, bool(again), remembered)


def _units(rows: list[dict[str, Any]]) -> tuple[dict[str, Unit], int]:
    units: dict[str, Unit] = {}
    moved = 0
    for row in rows:
        if row["unit"] in units:
            moved += 1
            continue
        means = {name: None if row[name] is None else float(row[name]) for name in ("tokens", "latency_ms")}
        units[row["unit"]] = Unit(**(row | means))
    return units, moved


def _per_unit(name: str) -> Select[Any]:
    first = func.min(_c.time).label("first")
    return (
        select(
            _c.unit,
            _c.variant,
            first,
            func.count().label("exchanges"),
            func.sum(case((_c.outcome.in_(FAULTS), 1), else_=0)).label("errors"),
            func.avg(output_tokens()).label("tokens"),
            func.avg(func.coalesce(_c.ttft_ms, _c.duration_ms)).label("latency_ms"),
        )
        .where(_c.experiment == name, _c.unit.is_not(None))
        .group_by(_c.unit, _c.variant)
        .order_by(first, _c.unit)
    )


def _votes(name: str, metric: str) -> Select[Any]:
    votes = counted(metric, among=select(_c.id).where(_c.experiment == name))
    joined = select(votes.c.time, votes.c.value, _c.unit).join(exchanges, _c.id == votes.c.exchange_id)
    return joined.where(_c.unit.is_not(None)).order_by(votes.c.time, votes.c.exchange_id)


def _regenerated(name: str) -> Select[Any]:
    votes = counted("regenerate", among=select(_c.id).where(_c.experiment == name))
    joined = select(_c.unit, func.count().label("number")).join(votes, _c.id == votes.c.exchange_id)
    return joined.where(_c.unit.is_not(None), votes.c.value > 0).group_by(_c.unit)


def remember(engine: Engine, name: str, found: dict[str, Remembered]) -> None:
    """Keeps the highest evidence and the first crossing of each variant, whoever looks and in whatever order."""
    with border(engine), engine.begin() as connection:
        for variant, now in found.items():
            values = {"experiment": name, "variant": variant, "max_log_e": now.max_log_e, "crossed_at": now.crossed_at}
            statement = upsert(connection, experiment_state).values(values)
            old, new = experiment_state.c, statement.excluded
            higher = case((new.max_log_e > old.max_log_e, new.max_log_e), else_=old.max_log_e)
            earlier = case((new.crossed_at < old.crossed_at, new.crossed_at), else_=old.crossed_at)
            connection.execute(
                statement.on_conflict_do_update(
                    index_elements=["experiment", "variant"],
                    set_={"max_log_e": higher, "crossed_at": func.coalesce(earlier, new.crossed_at)},
                )
            )
