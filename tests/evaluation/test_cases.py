import json
import re
from collections import Counter
from pathlib import Path

import pytest

from gateway.evaluation.cases import SCENARIOS, CaseError, choose, digest, load_cases, shipped_cases
from gateway.evaluation.checks import RougeRecall, UnitTests, prose_language, quality
from gateway.evaluation.constraints import Answer
from gateway.evaluation.degeneration import signs
from gateway.evaluation.tokens import tokens

GOOD = {
    row["id"]: row["text"]
    for row in map(json.loads, Path(__file__).with_name("good_answers.jsonl").read_text().splitlines())
}
VALID = {
    "id": "a",
    "lang": "en",
    "scenario": "own",
    "messages": [{"role": "user", "content": "Say hi."}],
    "checks": [{"check": "words", "max": 3}, {"check": "include", "any": ["hi"]}],
    "max_tokens": 8,
}


def answer(case, text):
    return Answer(text=text, lang=case.lang, source=case.source, finish="stop")


def test_120_cases_ship_in_balance():
    cases = shipped_cases()
    assert Counter((case.scenario, case.lang) for case in cases) == {
        (s, g): 12 for s in SCENARIOS for g in ("zh", "en")
    }
    assert all(len(case.checks) >= 2 for case in cases)
    for case in cases:
        han = len(re.findall("[一-鿿]", case.source))
        assert (han > 10) == (case.lang == "zh"), case.id


@pytest.mark.parametrize("case", shipped_cases(), ids=lambda case: case.id)
def test_every_case_can_be_answered_and_a_refusal_does_not_pass(case):
    good = answer(case, GOOD[case.id])
    for check in case.checks:
        assert check.score(good) >= (0.5 if isinstance(check, RougeRecall) else 1.0), check
    assert len(tokens(GOOD[case.id])) <= case.max_tokens
    assert not signs(GOOD[case.id], prose_language(case.checks, case.lang), finish="stop").degenerate
    cheap = [check for check in case.checks if not isinstance(check, UnitTests)]
    for bad in ("", "Sorry, I cannot help with that.", "抱歉，我无法回答这个问题。"):
        assert quality(case.checks if len(cheap) < 2 else cheap, answer(case, bad)) < 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": 1}, "unknown field `extra`"),
        ({"checks": [{"check": "words", "maxx": 3}, VALID["checks"][1]]}, "unknown field `maxx` - at `$.checks[0]`"),
        ({"checks": [VALID["checks"][0], {"check": "wrds"}]}, "'wrds' - at `$.checks[1].check`; checks are answer,"),
        ({"checks": [VALID["checks"][0]]}, "checks: expected at least 2, got 1"),
        (
            {"checks": [{"check": "words", "min": 5, "max": 3}] * 2},
            "max: expected >= min (5), got 3 - at `$.checks[0]`",
        ),
        ({"checks": [{"check": "words"}] * 2}, "min, max: expected min >= 1 or a max"),
        ({"checks": [{"check": "matches", "pattern": "("}] * 2}, "pattern: "),
        ({"checks": [{"check": "unit_tests", "tests": "assert ("}] * 2}, "tests: expected Python"),
        ({"checks": [{"check": "json_schema", "schema": {"type": "objekt"}}] * 2}, "schema: "),
        ({"checks": [{"check": "facts", "facts": [[]]}] * 2}, "facts: expected at least one phrase"),
        ({"lang": "fr"}, "'fr' - at `$.lang`"),
        ({"max_tokens": 0}, "max_tokens: expected 1..8192, got 0"),
        ({"id": "A b"}, "id: expected lower-case"),
        ({"messages": []}, "messages: expected at least one"),
        ({"messages": [{"role": "user", "content": " "}]}, "content: expected text - at `$.messages[0]`"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "the last of role user"),
    ],
)
def test_faults_name_file_line_and_field(tmp_path, change, message):
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps(VALID) + "\n\n" + json.dumps({**VALID, "id": "b", **change}) + "\n")
    with pytest.raises(CaseError) as error:
        load_cases(file)
    assert f"{file}:3: " in str(error.value)
    assert message in str(error.value)


def test_all_faults_are_told_at_once(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps(VALID) + "\n{broken\n" + json.dumps(VALID) + "\n")
    with pytest.raises(CaseError) as error:
        load_cases(file)
    first, second = str(error.value).splitlines()
    assert first.startswith(f"{file}:2: JSON is malformed")
    assert second.startswith(f"{file}:3: id 'a' is already used at {file}:1")


@pytest.mark.parametrize("content", [b"", b"\xff\n"])
def test_files_without_cases(tmp_path, content):
    (tmp_path / "mine.jsonl").write_bytes(content)
    with pytest.raises(CaseError, match=r"mine\.jsonl"):
        load_cases(tmp_path / "mine.jsonl")
    with pytest.raises(CaseError, match="No such file"):
        load_cases(tmp_path / "absent.jsonl")


def test_choosing_balances_languages():
    chosen = choose(shipped_cases(), prompts=5)
    assert Counter((case.scenario, case.lang) for case in chosen)["coding", "zh"] == 3
    assert len(chosen) == 25
    assert len(choose(shipped_cases(), scenarios=["coding"])) == 24
    with pytest.raises(CaseError, match="'cooking'"):
        choose(shipped_cases(), scenarios=["cooking"])


def test_digest_follows_content():
    cases = shipped_cases()
    assert digest(cases) == digest(shipped_cases())
    assert digest(cases) != digest(cases[1:])
