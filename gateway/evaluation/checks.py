"""What a good reply holds: facts, answers, a source's numbers, JSON of a shape, code that runs, a persona kept.

The checks a case may name are the members of `AnyCheck`, by their tags; their scores in [0, 1] are averaged into the
case's quality. Knows one reply at a time. Does NOT know cases, files or temperatures.
"""

from __future__ import annotations

import ast
import math
from functools import lru_cache
from typing import Any, get_args

import jsonschema
import msgspec

from gateway.evaluation import sandbox
from gateway.evaluation.constraints import Answer, Check, Constraint, JsonOnly, json_of, require_phrases
from gateway.evaluation.degeneration import Lang, scripts, signs
from gateway.evaluation.numerals import all_numbers, digits, mentions, stated_numbers
from gateway.evaluation.tokens import normal, words

DISCLAIMERS = (
    *("as an ai", "as a language model", "as an artificial intelligence", "i am an ai", "i'm an ai"),
    *("i am a language model", "作为ai", "作为一个ai", "作为一名ai", "作为人工智能", "作为一个人工智能"),
    *("作为语言模型", "作为一个语言模型", "我是ai", "我是一个ai", "我是人工智能", "我是一个语言模型"),
)


class Facts(Check, frozen=True, tag="facts"):
    """The share of `facts` that are stated; each is a list of alternatives, numerals of either kind count as equal."""

    facts: list[list[str]]

    def __post_init__(self) -> None:
        if not self.facts:
            raise ValueError("facts: expected at least one fact")
        for alternatives in self.facts:
            require_phrases("facts", alternatives)

    def score(self, answer: Answer) -> float:
        return sum(any(mentions(answer.text, fact) for fact in group) for group in self.facts) / len(self.facts)


class Exact(Check, frozen=True, tag="answer"):
    """The reply is one of `any` and nothing else, case, numerals and punctuation aside: policy questions with one
    answer."""

    any: list[str]

    def __post_init__(self) -> None:
        require_phrases("any", self.any)

    def score(self, answer: Answer) -> float:
        return float(bare(answer.text) in {bare(expected) for expected in self.any})


class JsonSchema(Check, frozen=True, tag="json_schema"):
    """The reply is JSON and valid against `schema` (draft 2020-12)."""

    schema: dict[str, Any]

    def __post_init__(self) -> None:
        try:
            jsonschema.Draft202012Validator.check_schema(self.schema)
        except jsonschema.SchemaError as error:
            raise ValueError(f"schema: {error.message}") from error

    def score(self, answer: Answer) -> float:
        value = json_of(answer.text)
        return float(value is not None and jsonschema.Draft202012Validator(self.schema).is_valid(value))


class RougeRecall(Check, frozen=True, tag="rouge_l"):
    """ROUGE-L recall against `reference` on our tokens without punctuation: longest common subsequence / reference
    length."""

    reference: str

    def __post_init__(self) -> None:
        if not words(self.reference):
            raise ValueError("reference: expected a text with words")

    def score(self, answer: Answer) -> float:
        reference = words(self.reference)
        return longest_common(words(answer.text), reference) / len(reference)


class SourceNumbers(Check, frozen=True, tag="numbers_from_source"):
    """Every number or date in the reply stands in what was asked; one that does not scores 0. An empty reply scores
    0."""

    def score(self, answer: Answer) -> float:
        return float(bool(answer.text.strip()) and stated_numbers(answer.text) <= all_numbers(answer.source))


class PythonParses(Check, frozen=True, tag="python_parses"):
    def score(self, answer: Answer) -> float:
        return float(sandbox.parses(sandbox.python_of(answer.text)))


class UnitTests(Check, frozen=True, tag="unit_tests"):
    """The code in the reply passes `tests` (assert statements), run in a child process with limits."""

    tests: str

    def __post_init__(self) -> None:
        if not sandbox.parses(self.tests):
            raise ValueError("tests: expected Python assert statements")

    def score(self, answer: Answer) -> float:
        return float(_passes(sandbox.python_of(answer.text), self.tests))


_passes = lru_cache(maxsize=4096)(sandbox.passes)  # cold samples are often the same code


class InCharacter(Check, frozen=True, tag="in_character"):
    """Says something, in the language asked in, and never that it is a program."""

    def score(self, answer: Answer) -> float:
        text = normal(answer.text).replace("’", "'")
        squeezed = "".join(text.split())
        spoken = scripts(answer.text).get("han" if answer.lang == "zh" else "latin", 0.0) > 0.5
        said = any(phrase in text or (not phrase.isascii() and phrase in squeezed) for phrase in DISCLAIMERS)
        return float(spoken and not said)


class Sound(Check, frozen=True, tag="not_degenerate"):
    """None of the signs of degeneration."""

    def score(self, answer: Answer) -> float:
        return float(not signs(answer.text, answer.lang, finish=answer.finish, tail_rate=answer.tail_rate).degenerate)


Content = Facts | Exact | JsonSchema | RougeRecall | SourceNumbers
AnyCheck = Constraint | Content | PythonParses | UnitTests | InCharacter | Sound


CHECK_NAMES = sorted(member.__struct_config__.tag for member in get_args(AnyCheck))


def bare(text: str) -> str:
    """Letters and digits only, numerals as digits: `"7天。"` and `七天` are the same answer."""
    return "".join(char for char in digits(text) if char.isalnum())


def longest_common(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for item in a:
        above = row
        row = [0]
        for i, other in enumerate(b):
            row.append(above[i] + 1 if item == other else max(row[i], above[i + 1]))
    return row[-1]


def quality(checks: list[AnyCheck], answer: Answer) -> float:
    """The mean score of the checks, in [0, 1]."""
    return sum(check.score(answer) for check in checks) / len(checks)


def prose_language(checks: list[AnyCheck], lang: Lang) -> Lang | None:
    """The language a reply must be written in; None where JSON or code is asked for, whose words are mostly Latin."""
    formal = any(isinstance(check, JsonSchema | JsonOnly | PythonParses | UnitTests) for check in checks)
    return None if formal else lang


def canonical(checks: list[AnyCheck], text: str) -> str:
    """What two replies must share to count as the same answer: the JSON value, the syntax tree of the code, or the
    words."""
    if any(isinstance(check, JsonSchema) for check in checks) and (value := json_of(text)) is not None:
        return msgspec.json.encode(value, order="sorted").decode()
    if any(isinstance(check, UnitTests) for check in checks) and sandbox.parses(code := sandbox.python_of(text)):
        return ast.dump(ast.parse(code))
    return bare(text)


def pass_at(k: int, n: int, passed: int) -> float | None:
    """Chance that at least one of k of the n samples passes, 1 - C(n-c,k)/C(n,k) (Chen et al. 2021); None when n <
    k."""
    return 1 - math.comb(n - passed, k) / math.comb(n, k) if n >= k else None
