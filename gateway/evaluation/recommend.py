"""`recommend`: from a sweep's cells to a temperature and a range for a preset, or why none is given.

Quality may fall by at most `delta` against the coldest temperature and degeneration may not exceed `degenerate_max`,
both with confidence 1 - alpha by a bootstrap over prompts of isotonic fits; inside that, the objective is maximised,
and of temperatures that tie within one standard error the coldest is taken. The entropy turning point is a ceiling
only.

Knows verdicts and how to word them; the numbers are study.py's. Does NOT know where cells come from, which model spoke,
or what a presets file looks like.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np

from gateway.evaluation.cells import Cell, compare
from gateway.evaluation.study import GOALS, Objective, Options, Point, Study

Verdict = Literal["recommend", "keep_preset", "insufficient_data"]

TO_SHOW = 8  # prompts below which no interval is printed
TO_RECOMMEND = 20  # prompts below which nothing is recommended


class Recommendation(msgspec.Struct, frozen=True, kw_only=True):
    """`temperature` inside [low, high] where there is a range; `reasons` say what the verdict rests on."""

    scenario: str
    objective: Objective
    verdict: Verdict
    reasons: list[str]
    prompts: dict[str, int]  # by language, those measured at every temperature kept
    samples: int
    delta: float | None = None  # the margin used
    temperature: float | None = None
    low: float | None = None
    high: float | None = None
    cap: float | None = None  # the entropy turning point, with what the objective adds to it
    points: list[Point] = []

    def lines(self) -> list[str]:
        """For people: the verdict and its reasons."""
        prompts = " + ".join(f"{count} {lang}" for lang, count in self.prompts.items()) or "no"
        head = f"{self.scenario}: {self.verdict}"
        if self.temperature is not None:
            head += f", {self.temperature:g} in [{self.low:g}, {self.high:g}]"
        basis = f"{prompts} prompts x {self.samples} samples, {self.objective}"
        return [f"{head} ({basis})", *(f"  - {reason}" for reason in self.reasons)]


def recommend(cells: Sequence[Cell], options: Options | None = None) -> Recommendation:
    """The recommendation for one scenario; the order of the cells does not matter, and a seed gives one answer.

    Languages are strata: each keeps its share in every resample, and none may be shown to lose more than the margin.
    Raises ValueError for no cells, cells of several scenarios, or two of one prompt and temperature.
    """
    options = options or Options()
    scenarios = {cell.scenario for cell in cells}
    if len(scenarios) != 1:
        raise ValueError(f"cells: exactly one scenario is needed, got {sorted(scenarios)}")
    grid = compare(cells, GOALS[options.objective].needed)
    blank = Recommendation(
        scenario=scenarios.pop(),
        objective=options.objective,
        verdict="insufficient_data",
        reasons=grid.dropped,
        prompts=dict(sorted(Counter(grid.langs).items())),
        samples=grid.samples,
    )
    if len(grid.langs) < TO_SHOW or len(grid.temperatures) < 2:
        found = f"{len(grid.langs)} prompts at {len(grid.temperatures)} temperatures can be compared"
        needs = f"{TO_SHOW} at 2 are needed to say anything, {TO_RECOMMEND} prompts to recommend"
        return msgspec.structs.replace(blank, reasons=[f"{found}; {needs}", *grid.dropped])
    return _judge(Study(grid, options), blank)


def _judge(study: Study, blank: Recommendation) -> Recommendation:
    """The range, the temperature in it, and whether they are worth a change."""
    t, safe = study.grid.temperatures[study.start :], study.safe()
    found = msgspec.structs.replace(
        blank, delta=study.delta, cap=study.cap, points=study.points(), verdict="keep_preset"
    )
    if not safe[0]:
        most = study.options.degenerate_max
        why = f"even at {t[0]:g} the share of degenerate replies is not shown to be at most {most:g}"
        if study.cap is not None and t[0] > study.cap:
            why = f"the entropy turning point ({study.cap:g}) is below the coldest temperature"
        return msgspec.structs.replace(found, reasons=[why, *blank.reasons])
    high = int(np.argmin(safe)) - 1 if not safe.all() else len(t) - 1
    values, ties = study.target(high)
    best = int(np.argmax(ties))
    low = 0
    if study.goal.hotter_is_more:
        low = int(np.argmax(values >= values[0] + 0.8 * (values[best] - values[0]) - 1e-12))
    reasons = _against(study, high, [t[k] for k in range(low, high + 1) if ties[k]])
    return msgspec.structs.replace(
        found,
        verdict="keep_preset" if reasons else "recommend",
        reasons=[*reasons, *_about(study, high), *blank.reasons],
        temperature=t[best],
        low=t[low],
        high=t[high],
    )


def _against(study: Study, high: int, as_good: list[float]) -> list[str]:
    """Why the preset is better left alone; empty when a change is well founded."""
    prompts, current = len(study.grid.langs), study.options.current
    if prompts < TO_RECOMMEND:
        return [f"{prompts} prompts, and {TO_RECOMMEND} are needed to recommend: the range is an indication only"]
    if high == study.start == 0 and study.goal.hotter_is_more and not study.harmful():
        return ["nothing above the coldest temperature is shown to be safe, nor to be harmful: more prompts would tell"]
    if current is not None and any(abs(current - t) < 1e-9 for t in as_good):
        return [f"the preset's {current:g} is inside the range and as good as any within one standard error"]
    return []


def _about(study: Study, high: int) -> list[str]:
    """What the range rests on, in words."""
    t, edge = study.grid.temperatures[study.start :], study.start + high + 1
    reasons = []
    if study.start:
        reasons.append(f"{study.guards[0]} rises significantly up to {t[0]:g}: colder temperatures are left out")
    if study.cap is not None and edge < len(study.grid.temperatures) and study.grid.temperatures[edge] > study.cap:
        reasons.append(f"the entropy turning point caps the range at {study.cap:g}")
    elif edge == len(study.grid.temperatures):
        reasons.append("the range ends where the sweep ends: hotter temperatures were not tried")
    if not study.guards:
        reasons.append("quality was not looked at: this objective has only degeneration and entropy to go by")
    return reasons
