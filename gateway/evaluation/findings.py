"""What a report says, as one value: curves, changes, recommendations, sample outputs, doubts. Also its JSON.

Knows what belongs in a report and what must be said with it. Does NOT know pages, charts or wording.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.evaluation.cells import Cell
from gateway.evaluation.checks import prose_language, quality
from gateway.evaluation.constraints import Answer
from gateway.evaluation.degeneration import Lang, signs
from gateway.evaluation.metrics import SIGNS, Change, Point, Scored, cells, summarise
from gateway.evaluation.recommend import Recommendation, recommend
from gateway.evaluation.rows import Header, Sample, Setting
from gateway.evaluation.study import Options

SHOWN_CASES = 2  # per scenario and language
SHOWN_SAMPLES = 2  # per temperature
SHOWN_TEMPERATURES = 8
SHOWN_CHARS = 600


class Shown(msgspec.Struct, frozen=True):
    """One sample output to read; `signs` are the names of what is wrong with it."""

    text: str
    quality: float
    signs: list[str]
    exchange: str | None


class Example(msgspec.Struct, frozen=True):
    """One case with samples side by side, by temperature."""

    case: str
    scenario: str
    lang: Lang
    prompt: list[dict[str, str]]
    columns: list[tuple[float, list[Shown]]]


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """A whole report. `doubts` are keys of words.DOUBTS; intervals are 95%, by bootstrap over prompts."""

    model: str
    parameters: int | None
    toy: bool
    profile: str
    created: str
    revision: str | None
    temperatures: list[float]
    samples: int
    prompts: dict[str, dict[Lang, int]]
    settings: dict[str, Setting]
    semantic: bool
    points: list[Point]
    changes: list[Change]
    recommendations: list[Recommendation]
    examples: list[Example]
    verification: dict[str, Any] | None
    incomplete: list[str]
    clamped: list[tuple[float, float]]
    doubts: list[str]

    def json(self) -> bytes:
        """All of it, indented."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """What goes into findings beside the sweep itself."""

    verification: dict[str, Any] | None = None
    toy: bool | None = None  # None: as the sweep has it
    allow_toy: bool = False  # recommend all the same
    options: Options = Options()


def find(header: Header, samples: Sequence[Sample], scored: Scored, judged: Judged) -> Findings:
    """Put the report together. Deterministic."""
    points, changes = summarise(scored)
    toy = header.toy if judged.toy is None else judged.toy
    counts: dict[str, dict[Lang, int]] = defaultdict(lambda: defaultdict(int))
    for case in scored.cases:
        counts[case.scenario][case.lang] += 1
    return Findings(
        model=header.setup.model,
        parameters=header.parameters,
        toy=toy,
        profile=header.profile,
        created=header.created,
        revision=header.revision,
        temperatures=scored.temperatures,
        samples=header.setup.samples,
        prompts={scenario: dict(langs) for scenario, langs in counts.items()},
        settings=header.setup.settings,
        semantic=scored.semantic,
        points=points,
        changes=changes,
        recommendations=[] if toy and not judged.allow_toy else _recommend(header, cells(scored), judged.options),
        examples=_examples(header, samples, scored),
        verification=judged.verification,
        incomplete=scored.incomplete,
        clamped=scored.clamped,
        doubts=_doubts(header, samples, scored, toy),
    )


def _recommend(header: Header, found: Sequence[Cell], options: Options) -> list[Recommendation]:
    by_scenario: dict[str, list[Cell]] = defaultdict(list)
    for cell in found:
        by_scenario[cell.scenario].append(cell)
    return [
        recommend(group, msgspec.structs.replace(options, current=header.setup.settings[scenario].default))
        for scenario, group in by_scenario.items()
    ]


def _doubts(header: Header, samples: Sequence[Sample], scored: Scored, toy: bool) -> list[str]:
    """Which caveats apply, the gravest first."""
    few = any(
        sum(case.scenario == scenario and case.lang == lang for case in scored.cases) < 8
        for scenario, lang in {(case.scenario, case.lang) for case in scored.cases}
    )
    settings = header.setup.settings.values()
    cut = sum(sample.finish == "length" for sample in samples) > 0.1 * max(len(samples), 1)
    found = {
        "toy": toy,
        "incomplete": bool(scored.incomplete),
        "clamped": bool(scored.clamped),
        "few_prompts": few,
        "cut_short": cut,
        "no_logprobs": all(sample.tokens is None for sample in samples),
        "hot": any(s.hot is not None and s.hot.above < max(scored.temperatures) for s in settings),
        "system_prompt": any(setting.system_prompt for setting in settings),
        "surface": not scored.semantic,
        "diversity_alone": True,
        "checks": True,
        "entropy_approximate": True,
        "one_model": True,
    }
    return [name for name, applies in found.items() if applies]


def _examples(header: Header, samples: Sequence[Sample], scored: Scored) -> list[Example]:
    shown: dict[tuple[str, Lang], int] = defaultdict(int)
    examples = []
    for case in scored.cases:
        shown[case.scenario, case.lang] += 1
        if shown[case.scenario, case.lang] > SHOWN_CASES:
            continue
        columns = []
        for temperature in _spread(scored.temperatures):
            made = sorted(
                (s for s in samples if (s.case, s.temperature) == (case.id, temperature)), key=lambda s: s.sample
            )
            columns.append((temperature, [_show(header, sample) for sample in made[:SHOWN_SAMPLES]]))
        prompt = [{"role": message.role, "content": message.content} for message in case.messages]
        examples.append(Example(case.id, case.scenario, case.lang, prompt, columns))
    return examples


def _spread(temperatures: Sequence[float]) -> list[float]:
    """At most SHOWN_TEMPERATURES of them, the ends included."""
    if len(temperatures) <= SHOWN_TEMPERATURES:
        return list(temperatures)
    step = (len(temperatures) - 1) / (SHOWN_TEMPERATURES - 1)
    return [temperatures[round(i * step)] for i in range(SHOWN_TEMPERATURES)]


def _show(header: Header, sample: Sample) -> Shown:
    case = next(case for case in header.setup.cases if case.id == sample.case)
    answer = Answer(
        text=sample.text, lang=case.lang, source=case.source, finish=sample.finish, tail_rate=sample.tail_rate
    )
    found = signs(sample.text, prose_language(case.checks, case.lang), finish=sample.finish, tail_rate=sample.tail_rate)
    text = sample.text if len(sample.text) <= SHOWN_CHARS else sample.text[:SHOWN_CHARS] + " …"
    return Shown(text, quality(case.checks, answer), [n for n in SIGNS if getattr(found, n)], sample.exchange)


def read_verification(content: bytes) -> dict[str, Any]:
    """What `verify --json` wrote. Raises ValueError when it is something else."""
    found = json.loads(content)
    if not isinstance(found, dict) or "passed" not in found or not isinstance(found.get("temperatures"), list):
        raise ValueError("verification: expected the output of `verify --json`")
    return found
