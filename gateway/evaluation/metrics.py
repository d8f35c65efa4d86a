"""From a sweep's samples to numbers: metrics per prompt and temperature, averaged over prompts with their intervals.

Prompts are the unit: intervals bootstrap prompts, never samples, and every comparison between temperatures is paired by
prompt, so a prompt without samples at every temperature is left out and named. Languages are never pooled. Knows what
to compute; does NOT know how it is shown or what is good.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from gateway.evaluation import diversity as div
from gateway.evaluation.cases import Case
from gateway.evaluation.cells import Cell
from gateway.evaluation.checks import UnitTests, canonical, pass_at, prose_language, quality
from gateway.evaluation.constraints import Answer
from gateway.evaluation.curves import resample_weights
from gateway.evaluation.degeneration import Lang, repetition, signs
from gateway.evaluation.rows import Header, Sample
from gateway.evaluation.tokens import tokens

ALL = "*"  # every scenario together
ENOUGH = 8  # prompts below which no interval is printed
RESAMPLES = 2000
PASS_AT = 4
SIGNS = ("repetitive", "loop", "tail", "script", "language", "empty", "truncated")

Values = dict[str, float | None]
Embed = Callable[[Sequence[str]], div.Vectors]


class Scored(msgspec.Struct, frozen=True):
    """`values[case, temperature]` holds the metrics over `n[case]` samples; temperatures are those in effect."""

    cases: list[Case]
    temperatures: list[float]
    values: dict[tuple[str, float], Values]
    n: dict[str, int]
    incomplete: list[str]  # cases left out
    clamped: list[tuple[float, float]]  # (asked, used) where they differ
    semantic: bool  # dispersion and vendi come from embeddings


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """A metric's mean over prompts at one temperature; a 95% interval from ENOUGH prompts on."""

    scenario: str
    lang: Lang
    metric: str
    temperature: float
    value: float
    low: float | None
    high: float | None
    prompts: int
    n: int  # samples per prompt


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A metric's mean from the coldest to the hottest temperature, and the paired difference with a 95% interval."""

    scenario: str
    lang: Lang
    metric: str
    cold: float
    hot: float
    low: float | None
    high: float | None
    prompts: int


def score(header: Header, samples: Sequence[Sample], embed: Embed | None = None) -> Scored:
    """Every metric of every prompt that has at least two samples at each temperature."""
    wanted = set(header.setup.temperatures)
    curve = [sample for sample in samples if sample.asked in wanted]
    greedy = {sample.case: sample.text for sample in samples if sample.temperature == 0 and sample.sample == 0}
    temperatures = sorted({sample.temperature for sample in curve})
    by_cell: dict[tuple[str, float], list[Sample]] = defaultdict(list)
    for sample in sorted(curve, key=lambda sample: (sample.asked, sample.sample)):
        by_cell[sample.case, sample.temperature].append(sample)
    asked = Counter((sample.case, sample.asked) for sample in curve)
    n = {
        case.id: min([asked[case.id, t] for t in wanted] + [len(by_cell[case.id, t]) for t in temperatures])
        for case in header.setup.cases
    }
    cases = [case for case in header.setup.cases if n[case.id] >= 2]
    values = {
        (case.id, t): _measure(case, by_cell[case.id, t][: n[case.id]], greedy.get(case.id), embed)
        for case in cases
        for t in temperatures
    }
    texts = {(case, t): [sample.text for sample in cell[: n[case]]] for (case, t), cell in by_cell.items()}
    _add_self_repetition(cases, temperatures, texts, values)
    return Scored(
        cases=cases,
        temperatures=temperatures,
        values=values,
        n={case.id: n[case.id] for case in cases},
        incomplete=[case.id for case in header.setup.cases if n[case.id] < 2],
        clamped=sorted({(s.asked, s.temperature) for s in curve if abs(s.asked - s.temperature) > 5e-4}),
        semantic=embed is not None,
    )


def _measure(case: Case, samples: Sequence[Sample], greedy: str | None, embed: Embed | None) -> Values:
    texts = [sample.text for sample in samples]
    answers = [canonical(case.checks, text) for text in texts]
    vectors = embed(texts) if embed else div.surface_vectors(texts)
    redundancy = div.redundancy(texts)
    return {
        "quality": _mean(_quality(case, sample) for sample in samples),
        **_degeneration(case, samples),
        **_likelihood(samples),
        "distinct_1": div.distinct(texts, 1) if case.lang == "en" else None,
        "distinct_2": div.distinct(texts, 2),
        "distinct_4": div.distinct(texts, 4),
        "self_bleu": div.self_bleu(texts, case.lang),
        "redundancy": redundancy,
        "diversity": None if redundancy is None else 1 - redundancy,
        "dispersion": div.dispersion(vectors),
        "vendi": div.vendi(vectors),
        "agreement": div.pair_agreement(answers),
        "greedy_agreement": None if greedy is None else div.greedy_agreement(answers, canonical(case.checks, greedy)),
        "short": div.short_share(texts),
        **_passing(case, texts),
    }


def _degeneration(case: Case, samples: Sequence[Sample]) -> Values:
    lang = prose_language(case.checks, case.lang)
    found = [signs(s.text, lang, finish=s.finish, tail_rate=s.tail_rate) for s in samples]
    return {
        "degenerate": _mean(float(sign.degenerate) for sign in found),
        **{name: _mean(float(getattr(sign, name)) for sign in found) for name in SIGNS},
        "rep_4": _mean(repetition(tokens(sample.text)) for sample in samples),
    }


def _likelihood(samples: Sequence[Sample]) -> Values:
    return {name: _mean(getattr(sample, name) for sample in samples) for name in ("tail_rate", "surprisal", "entropy")}


def _quality(case: Case, sample: Sample) -> float:
    answer = Answer(
        text=sample.text, lang=case.lang, source=case.source, finish=sample.finish, tail_rate=sample.tail_rate
    )
    return quality(case.checks, answer)


def _passing(case: Case, texts: Sequence[str]) -> Values:
    """pass@1 and pass@4 where the case has unit tests."""
    suites = [check for check in case.checks if isinstance(check, UnitTests)]
    if not suites:
        return {}
    passed = sum(all(suite.score(Answer(text=text, lang=case.lang)) for suite in suites) for text in texts)
    return {f"pass_{k}": pass_at(k, len(texts), passed) for k in (1, PASS_AT)}


def _add_self_repetition(
    cases: Sequence[Case],
    temperatures: Sequence[float],
    texts: Mapping[tuple[str, float], list[str]],
    into: Mapping[tuple[str, float], Values],
) -> None:
    """Per prompt the mean of its samples' values, each counted against all samples of the scenario and language."""
    for members in _groups(cases).values():
        for t in temperatures:
            owners = [case.id for case in members for _ in texts[case.id, t]]
            found = div.self_repetition([text for case in members for text in texts[case.id, t]])
            for case in members:
                own = [value for value, owner in zip(found, owners, strict=True) if owner == case.id]
                into[case.id, t]["self_repetition"] = _mean(own)


def _groups(cases: Sequence[Case]) -> dict[tuple[str, Lang], list[Case]]:
    found: dict[tuple[str, Lang], list[Case]] = defaultdict(list)
    for case in cases:
        found[case.scenario, case.lang].append(case)
    return found


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def summarise(scored: Scored, *, seed: int = 1) -> tuple[list[Point], list[Change]]:
    """Every metric by scenario and language, and by language over all scenarios where there are several."""
    groups: list[tuple[str, list[Case]]] = [(scenario, cases) for (scenario, _), cases in _groups(scored.cases).items()]
    if len({scenario for scenario, _ in groups}) > 1:
        langs = dict.fromkeys(case.lang for case in scored.cases)
        groups += [(ALL, [case for case in scored.cases if case.lang == lang]) for lang in langs]
    points: list[Point] = []
    changes: list[Change] = []
    for scenario, cases in groups:
        for metric in dict.fromkeys(name for values in scored.values.values() for name in values):
            curve, change = _curve(scored, scenario, cases, metric, seed)
            points += curve
            changes += change
    return points, changes


def _curve(
    scored: Scored, scenario: str, cases: Sequence[Case], metric: str, seed: int
) -> tuple[list[Point], list[Change]]:
    """The means over prompts of one language; a prompt where the metric is undefined is left out."""

    def value(case: Case, temperature: float) -> float | None:
        return scored.values[case.id, temperature].get(metric)

    temperatures = [t for t in scored.temperatures if any(value(case, t) is not None for case in cases)]
    owners = [case for case in cases if all(value(case, t) is not None for t in temperatures)]
    if not owners or not temperatures:
        return [], []
    table = np.array([[value(case, t) for t in temperatures] for case in owners], dtype=float)
    table = np.hstack([table, table[:, -1:] - table[:, :1]])  # the difference is bootstrapped like a column
    band = _band(table, [case.scenario for case in owners], seed)
    low, high = band if band is not None else ([None] * table.shape[1],) * 2
    means = [float(mean) for mean in table.mean(axis=0)]
    common: dict[str, Any] = {
        "scenario": scenario, "lang": cases[0].lang, "metric": metric, "prompts": len(owners)
    }  # fmt: skip
    n = min(scored.n[case.id] for case in owners)
    points = [
        Point(**common, temperature=t, value=means[i], low=low[i], high=high[i], n=n)
        for i, t in enumerate(temperatures)
    ]
    return points, [Change(**common, cold=means[0], hot=means[-2], low=low[-1], high=high[-1])]


def _band(table: div.Vectors, strata: Sequence[str], seed: int) -> list[list[float]] | None:
    """The 2.5% and 97.5% quantiles, in rows, of the columns' means over resampled prompts (percentile bootstrap)."""
    if len(table) < ENOUGH:
        return None
    band = np.percentile(resample_weights(strata, RESAMPLES, seed) @ table, [2.5, 97.5], axis=0)
    return [[float(value) for value in row] for row in band]


def cells(scored: Scored) -> list[Cell]:
    """The sweep as `recommend` reads it; diversity is 1 - redundancy."""
    found = []
    for case in scored.cases:
        for temperature in scored.temperatures:
            values = scored.values[case.id, temperature]
            found.append(
                Cell(
                    scenario=case.scenario,
                    lang=case.lang,
                    prompt=case.id,
                    temperature=temperature,
                    quality=values["quality"],
                    degenerate=values["degenerate"],
                    diversity=values["diversity"],
                    consistency=values["agreement"],
                    entropy=values["entropy"],
                    n=scored.n[case.id],
                )
            )
    return found
