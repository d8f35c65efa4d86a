"""What adaptive experiments learn: weights for new units by top-two Thompson sampling, and what old units keep.

Weights change at full multiples of EVERY seconds and are written down before they come into force; the first process
to write them decides, and all others read them: so all agree without talking to each other. Blocks; knows nothing
about requests.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Final

from sqlalchemy import Engine, select

from gateway import stats
from gateway.log import evidence
from gateway.log.queries import rows_of
from gateway.log.results import tally
from gateway.log.row import first_id
from gateway.log.schema import allocations, exchanges
from gateway.log.store import border, upsert
from gateway.policy.experiments import Allocation, Assignment, Experiment

EVERY: Final = 300.0
_DRAWS: Final = 4000
_OVERLAP: Final = 900.0  # rows may be late by that much (a spool that was replayed)


class Learner:
    """The allocations of one process. `refresh` and `note` may run on different threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[str, dict[str, str]] = {}
        self._read_up_to: dict[str, float] = {}

    def note(self, assignment: Assignment) -> None:
        """A unit this process has just assigned: it keeps its variant from now on, not only from the next refresh."""
        known = self._known.get(assignment.experiment)
        if known is not None:
            known.setdefault(assignment.unit, assignment.variant)

    def refresh(self, experiments: Mapping[str, Experiment], now: float) -> dict[str, Allocation]:
        """The allocations of the adaptive experiments that run, by name; to be called a few times per EVERY seconds.

        An experiment without weights of its own yet is not in the result: its declared weights are in force. Raises
        store.Away.
        """
        result = {}
        for name, experiment in experiments.items():
            if experiment.allocation != "adaptive" or experiment.state != "running":
                continue
            self._learn_units(name, now)
            self._decide(name, experiment, now)
            weights = self._weights(name, now)
            if weights is not None and len(weights) == len(experiment.variants):
                result[name] = Allocation(weights, self._known[name])
        return result

    def _learn_units(self, name: str, now: float) -> None:
        known = self._known.setdefault(name, {})
        c = exchanges.c
        since = first_id(self._read_up_to.get(name, 0.0) - _OVERLAP)
        query = select(c.unit, c.variant).where(c.experiment == name, c.unit.is_not(None), c.id >= since).order_by(c.id)
        for row in rows_of(self._engine, query):
            known.setdefault(row["unit"], row["variant"])
        self._read_up_to[name] = now

    def _decide(self, name: str, experiment: Experiment, now: float) -> None:
        """Writes the weights of the next period down, unless somebody has."""
        start = (now // EVERY + 1) * EVERY
        c = allocations.c
        if rows_of(self._engine, select(c.valid_from).where(c.experiment == name, c.valid_from == start)):
            return
        counts = tally(experiment, evidence.read(self._engine, name, experiment.metric))
        weights = list(shares(counts, f"{name} {start}"))
        values = {"experiment": name, "valid_from": start, "weights": weights}
        with border(self._engine), self._engine.begin() as connection:
            connection.execute(upsert(connection, allocations).values(values).on_conflict_do_nothing())

    def _weights(self, name: str, now: float) -> tuple[float, ...] | None:
        c = allocations.c
        current = select(c.weights).where(c.experiment == name, c.valid_from <= now)
        rows = rows_of(self._engine, current.order_by(c.valid_from.desc()).limit(1))
        return tuple(rows[0]["weights"]) if rows else None


def shares(counts: list[tuple[int, int]], seed: str) -> list[float]:
    """The share of new units for each arm, from (positive, other) units and a seed; none below a tenth."""
    rng = random.Random(seed)  # noqa: S311 - chance, not secrecy; the same seed gives the same shares
    draws = [[rng.betavariate(0.5 + s, 0.5 + f) for s, f in counts] for _ in range(_DRAWS)]
    return stats.top_two_shares(draws)
