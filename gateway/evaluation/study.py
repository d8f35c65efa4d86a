"""One grid of cells under one objective: its bootstrap, what each temperature may lose, what is gained.

Knows matrices, margins and levels. Does NOT know verdicts or words.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from gateway.evaluation.cells import Grid
from gateway.evaluation.curves import Floats, falling, resample_weights, resampled, rising
from gateway.evaluation.turn import BEST_OF_N, turning_point

Flags = npt.NDArray[np.bool_]
Objective = Literal["max_diversity_st_quality", "max_quality", "consistency", "label_free"]
MANY = 40  # prompts from which the margin is the strict one
RISE = 0.01  # level at which a hotter temperature counts as better than the coldest


class Goal(NamedTuple):
    """What an objective maximises, and what it guards against loss: always, and where it happens to be measured."""

    target: str
    guards: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    hotter_is_more: bool = False  # the target is fitted as rising with temperature
    turn_offset: float = BEST_OF_N

    @property
    def needed(self) -> set[str]:
        """The measures without which a cell says nothing about this objective."""
        return {self.target, *self.guards, "degenerate"}


GOALS: dict[Objective, Goal] = {
    "max_diversity_st_quality": Goal("diversity", guards=("quality",), hotter_is_more=True),
    "max_quality": Goal("quality", guards=("quality",)),
    "consistency": Goal("consistency", guards=("consistency",), also=("quality",), turn_offset=0.0),
    "label_free": Goal("diversity", hotter_is_more=True),
}


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """`delta`: quality that may be lost, None for .05 from 40 prompts and .10 below; `current`: the preset's
    default."""

    objective: Objective = "max_diversity_st_quality"
    delta: float | None = None
    degenerate_max: float = 0.05
    alpha: float = 0.10
    resamples: int = 2000
    seed: int = 0
    current: float | None = None


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One temperature: means over prompts with their 95% intervals, and the two bounds the range is decided by."""

    temperature: float
    means: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    loss_bound: float | None  # of the guarded measure: at worst this is gained (negative: lost) against the start
    degenerate_bound: float | None
    safe: bool


class Study:
    """One grid with its bootstrap: everything `_judge` decides by. Indices are columns of the grid."""

    def __init__(self, grid: Grid, options: Options) -> None:
        self.grid, self.options, self.goal = grid, options, GOALS[options.objective]
        self.delta = options.delta if options.delta is not None else (0.05 if len(grid.langs) >= MANY else 0.10)
        self.weights = resample_weights(grid.langs, options.resamples, options.seed)
        self.guards = [*self.goal.guards, *(name for name in self.goal.also if name in grid.values)]
        self.cap = self._cap()
        self.start = self._start()
        after = grid.values["degenerate"][:, self.start :]
        self.degenerate = rising(resampled(self.weights, after))
        self.losses = {name: self._loss(self.weights, name) for name in self.guards}

    def _start(self) -> int:
        """The coldest temperature or, where the guarded measure is significantly better hotter, the best such one.

        Significantly: at level RISE, shared among the temperatures (Bonferroni). What degenerates is no start.
        """
        if not self.guards:
            return 0
        values = self.grid.values[self.guards[0]]
        gains = resampled(self.weights, values - values[:, :1])
        better = np.quantile(gains, RISE / (values.shape[1] - 1), axis=0) > 0
        better &= self._clean(resampled(self.weights, self.grid.values["degenerate"])) & self._below_cap()
        return int(np.argmax(np.where(better, values.mean(axis=0), -np.inf))) if better.any() else 0

    def _clean(self, degenerate: Floats) -> Flags:
        return np.asarray(np.quantile(degenerate, 1 - self.options.alpha, axis=0) <= self.options.degenerate_max)

    def _below_cap(self) -> Flags:
        return np.array(self.grid.temperatures) <= (np.inf if self.cap is None else self.cap + 1e-9)

    def _loss(self, weights: Floats, name: str) -> Floats:
        """Change against the start, non-increasing; a row per row of `weights`."""
        fit = falling(resampled(weights, self.grid.values[name][:, self.start :]))
        return np.asarray(fit - fit[:, :1])

    def _cap(self) -> float | None:
        """The lowest turning point of the languages plus the objective's offset; None: no entropies, or none turns."""
        if "entropy" not in self.grid.values:
            return None
        found = []
        for lang in set(self.grid.langs):
            means = self.grid.values["entropy"][self._rows(lang)].mean(axis=0)
            curve = [(t, h) for t, h in zip(self.grid.temperatures, means.tolist(), strict=True) if h > 0]  # not T = 0
            if len(curve) >= 4 and (point := turning_point(*zip(*curve, strict=True))) is not None:
                found.append(point)
        return round(min(found) + self.goal.turn_offset, 6) if found else None

    def _rows(self, lang: str) -> Flags:
        return np.array([other == lang for other in self.grid.langs])

    def safe(self) -> Flags:
        """From the start on: whether each temperature keeps every promise."""
        ok = self._clean(self.degenerate) & self._below_cap()[self.start :]
        for name, loss in self.losses.items():
            ok &= np.quantile(loss, self.options.alpha, axis=0) >= -self.delta
            for lang in set(self.grid.langs):
                rows = self._rows(lang)
                alone = self._loss(self.weights * rows / rows.mean(), name)
                ok &= np.quantile(alone, 1 - self.options.alpha, axis=0) >= -self.delta
        return ok

    def harmful(self) -> bool:
        """Whether the step after the start is shown to break a promise, not merely not shown to keep it."""
        if self.start + 1 >= len(self.grid.temperatures):
            return True
        worse = [np.quantile(loss[:, 1], 1 - self.options.alpha) < -self.delta for loss in self.losses.values()]
        degenerate = np.quantile(self.degenerate[:, 1], self.options.alpha) > self.options.degenerate_max
        return bool(any(worse) or degenerate or not self._below_cap()[self.start + 1])

    def target(self, high: int) -> tuple[Floats, Flags]:
        """From the start to `high` columns after it: what is maximised, and where it ties with its best.

        A tie is a paired difference within one standard error."""
        inside = self.grid.values[self.goal.target][:, self.start :]
        fit = rising if self.goal.hotter_is_more else np.asarray
        values = fit(inside.mean(axis=0))[: high + 1]
        spread = fit(resampled(self.weights, inside))[:, : high + 1]
        best = int(np.argmax(values))
        errors = (spread[:, best, None] - spread).std(axis=0)
        return values, values[best] - values <= errors + 1e-12

    def points(self) -> list[Point]:
        alpha, before = self.options.alpha, [None] * self.start
        spreads = {name: resampled(self.weights, values) for name, values in self.grid.values.items()}
        ends = {name: np.quantile(spread, (0.025, 0.975), axis=0) for name, spread in spreads.items()}
        losses = [np.quantile(loss, alpha, axis=0) for loss in self.losses.values()]
        worst = [*before, *(np.min(losses, axis=0).tolist() if losses else [None] * len(self.degenerate[0]))]
        degenerate = [*before, *np.quantile(self.degenerate, 1 - alpha, axis=0).tolist()]
        safe = [*before, *self.safe().tolist()]
        return [
            Point(
                temperature=t,
                means={name: float(values[:, i].mean()) for name, values in self.grid.values.items()},
                intervals={name: (float(end[0, i]), float(end[1, i])) for name, end in ends.items()},
                loss_bound=worst[i],
                degenerate_bound=degenerate[i],
                safe=bool(safe[i]),
            )
            for i, t in enumerate(self.grid.temperatures)
        ]
