"""`tempera recommend`: a sweep's file in, a recommendation per scenario and the change to the presets file out.

Knows files: the sweep's and, for the change, the presets file, which it reads and never writes. Does NOT decide
anything: recommend.py does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from gateway.evaluation import metrics
from gateway.evaluation.preset_edit import EditError, Rule, diff, set_temperature
from gateway.evaluation.recommend import Recommendation, recommend
from gateway.evaluation.rows import Header, read_rows
from gateway.evaluation.study import Objective, Options
from gateway.policy.config import BadConfig, load

NOT_QUALITY = "a model under 1B parameters: not a quality result"


class AdviceError(Exception):
    """Nothing can be recommended from this, or not written; the message is fit to be shown."""


class AdviceOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What `tempera recommend` was asked. `scenarios`: all of the sweep's when empty; `write`: the presets file."""

    sweep: Path
    scenarios: tuple[str, ...] = ()
    objective: Objective = "max_diversity_st_quality"
    delta: float | None = None
    alpha: float = 0.10
    seed: int = 0
    allow_toy_model: bool = False
    write: Path | None = None


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it. `diff` is the change to the presets file, empty when none is due or none was asked for."""

    model: str
    toy: bool
    recommendations: list[Recommendation]
    diff: str = ""

    @property
    def exit_code(self) -> int:
        """1 where the data do not suffice for an answer, else 0."""
        return int(any(found.verdict == "insufficient_data" for found in self.recommendations))

    def lines(self) -> list[str]:
        warning = [f"{self.model}: {NOT_QUALITY}"] if self.toy else []
        return [*warning, *(line for found in self.recommendations for line in found.lines())]

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        whole: dict[str, Any] = msgspec.to_builtins(self)
        return whole


def advise(options: AdviceOptions) -> Advice:
    """Recommend for each scenario. Raises AdviceError, SweepError (the file) and ValueError (options)."""
    for name, low, high in (("alpha", 0.0, 0.5), ("delta", 0.0, 1.0)):
        value = getattr(options, name)
        if value is not None and not low < value < high:
            raise ValueError(f"{name}: must be in ({low:g}, {high:g}), got {value}")
    header, samples = read_rows(options.sweep)
    if header.toy and not options.allow_toy_model:
        raise AdviceError(f"{header.setup.model}: {NOT_QUALITY}; --allow-toy-model recommends all the same")
    cells = metrics.cells(metrics.score(header, samples))
    there = dict.fromkeys(cell.scenario for cell in cells)
    wanted = options.scenarios or tuple(there)
    if not wanted or not set(wanted) <= set(there):
        raise AdviceError(f"scenarios: {', '.join(wanted) or 'none'} asked; the sweep has {', '.join(there) or 'none'}")
    found = []
    for scenario in wanted:
        chosen = [cell for cell in cells if cell.scenario == scenario]
        setting = header.setup.settings.get(scenario)
        settings = Options(
            objective=options.objective,
            delta=options.delta,
            alpha=options.alpha,
            seed=options.seed,
            current=None if setting is None else setting.default,
        )
        found.append(recommend(chosen, settings))
    change = _change(options.write, header, found) if options.write else ""
    return Advice(model=header.setup.model, toy=header.toy, recommendations=found, diff=change)


def _change(path: Path, header: Header, found: list[Recommendation]) -> str:
    """The diff that puts every recommendation into the presets file; the result has passed the file's own check."""
    try:
        before = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AdviceError(f"{path}: {error}") from error
    after = before
    for result in found:
        if result.verdict != "recommend" or result.temperature is None or result.low is None or result.high is None:
            continue
        setting = header.setup.settings.get(result.scenario)
        preset = (setting and setting.preset) or result.scenario
        try:
            after = set_temperature(after, preset, Rule(result.temperature, result.low, result.high))
        except EditError as error:
            raise AdviceError(f"{path}: {error}") from error
    try:
        load(after, lambda name: (path.parent / name).read_text(encoding="utf-8"))
    except BadConfig as error:
        raise AdviceError(f"{path} would not pass its check with this change:\n{error}") from error
    return diff(before, after, path.name)
