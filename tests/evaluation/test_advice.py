"""From a sweep's file to a change of the presets file."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import msgspec
import pytest

from gateway.evaluation.advice import AdviceError, AdviceOptions, advise
from gateway.evaluation.cases import Case, Message
from gateway.evaluation.constraints import EndsWithQuestion, Include
from gateway.evaluation.rows import Header, Journal, Sample, Setting, Setup

GRID = [0.3, 0.6, 0.9, 1.2]
WORDS = re.findall(
    "[a-z]+",
    "amber basin cedar dune ember fjord grove islet juniper kelp lagoon mesa north oasis pine quartz reef sand",
)
PRESETS = """\
default: balanced
presets:
  balanced:
    title: {en: General, zh: 通用}
    hint: {en: any, zh: 任意}
    parameters: {temperature: 0.7}
  creative:  # for the writers
    title: {en: Creative, zh: 创意}
    hint: {en: warm, zh: 温}
    parameters:
      temperature: {default: 0.3, min: 0.1, max: 0.5}  # too careful?
"""


def written(path: Path, *, prompts: int = 24, toy: bool = False) -> Path:
    """A sweep in which the checks pass up to 0.9 and fail at 1.2, and replies get more varied all the way."""
    checks = [Include(any=["harbor"]), EndsWithQuestion()]
    cases = [
        Case(
            id=f"c{i:02}", lang="en", scenario="creative", messages=[Message("user", "x")], checks=checks, max_tokens=64
        )
        for i in range(prompts)
    ]
    settings = {"creative": Setting(preset="creative", default=0.3, low=0.1, high=0.5)}
    setup = Setup(
        model="m-7b", temperatures=GRID, samples=4, max_tokens=64, seed=1, settings=settings, cases=cases
    )  # fmt: skip
    journal = Journal(
        path, Header(setup=setup, profile="dev", created="2026-01-01T00:00:00Z", parameters=None, toy=toy)
    )
    rng = random.Random(1)
    for case in cases:
        plain = rng.sample(WORDS, 12)
        for k, t in enumerate(GRID):
            for n in range(4):
                varied = [rng.choice(WORDS) if rng.random() < k / 4 else word for word in plain]
                text = f"A harbor of {' '.join(varied)}" + ("?" if t < 1 else ".")
                journal.write([sample(case.id, t, n, text)])
    journal.close()
    return path


def sample(case: str, t: float, n: int, text: str) -> Sample:
    return Sample(
        case=case,
        scenario="creative",
        lang="en",
        asked=t,
        temperature=t,
        sample=n,
        text=text,
        finish="stop",
        tokens=12,
        tail_rate=None,
        surprisal=None,
        entropy=None,
        params={},
        exchange=None,
        seconds=0.1,
    )


def test_a_sweep_becomes_a_diff_of_the_presets_file(tmp_path: Path) -> None:
    presets = tmp_path / "presets.yaml"
    presets.write_text(PRESETS)
    found = advise(AdviceOptions(sweep=written(tmp_path / "sweep.jsonl"), write=presets))
    (result,) = found.recommendations
    assert (result.verdict, result.temperature, result.high) == ("recommend", 0.9, 0.9)
    assert found.exit_code == 0
    assert "-      temperature: {default: 0.3, min: 0.1, max: 0.5}  # too careful?\n" in found.diff
    assert f"+      temperature: {{default: 0.9, min: {result.low:g}, max: 0.9}}  # too careful?\n" in found.diff
    assert presets.read_text() == PRESETS, "shown, not done"
    assert json.loads(msgspec.json.encode(found.document()))["recommendations"][0]["verdict"] == "recommend"


def test_a_toy_model_needs_to_be_allowed_and_is_said_to_be_one(tmp_path: Path) -> None:
    path = written(tmp_path / "sweep.jsonl", prompts=8, toy=True)
    with pytest.raises(AdviceError, match="not a quality result; --allow-toy-model"):
        advise(AdviceOptions(sweep=path))
    found = advise(AdviceOptions(sweep=path, allow_toy_model=True))
    assert "not a quality result" in found.lines()[0]
    assert found.recommendations[0].verdict == "keep_preset"


def test_too_little_data_is_no_answer_and_no_change(tmp_path: Path) -> None:
    presets = tmp_path / "presets.yaml"
    presets.write_text(PRESETS)
    found = advise(AdviceOptions(sweep=written(tmp_path / "sweep.jsonl", prompts=5), write=presets))
    assert (found.exit_code, found.diff) == (1, "")


def test_what_is_asked_wrongly_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "sweep.jsonl", prompts=20)
    with pytest.raises(AdviceError, match="scenarios: coding asked; the sweep has creative"):
        advise(AdviceOptions(sweep=path, scenarios=("coding",)))
    with pytest.raises(ValueError, match=r"alpha: must be in \(0, 0.5\), got 0.7"):
        advise(AdviceOptions(sweep=path, alpha=0.7))
    presets = tmp_path / "presets.yaml"
    presets.write_text(PRESETS.replace("creative:", "other:"))
    with pytest.raises(AdviceError, match="no preset 'creative'"):
        advise(AdviceOptions(sweep=path, write=presets))
    variants = "{a: {weight: 1}, b: {weight: 1, parameters: {temperature: 0.1}}}"
    experiment = f"experiments:\n  e: {{preset: creative, variants: {variants}}}\n"
    presets.write_text(PRESETS + experiment)
    with pytest.raises(AdviceError, match="would not pass its check"):
        advise(AdviceOptions(sweep=path, write=presets))
