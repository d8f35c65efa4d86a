"""Verifiable constraints on the form of a reply: lengths, counts, phrases, titles, endings. Each is a Check with a
verdict in [0, 1].

Knows one reply at a time. Does NOT know facts, sources or code (checks.py). A field nobody knows is an error: cases
are written by people.
"""

from __future__ import annotations

import json
import re
from typing import Literal

import msgspec

from gateway.evaluation.degeneration import Lang, scripts
from gateway.evaluation.numerals import mentions
from gateway.evaluation.tokens import code_blocks, normal, prose, words


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a check looks at: a reply, the language it was asked in, and the text it was asked with (`source`)."""

    text: str
    lang: Lang
    source: str = ""
    finish: str | None = None
    tail_rate: float | None = None


class Check(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="check"):
    """One objective test of a reply: `score` is in [0, 1]; a reply that nothing is asked of passes."""

    def score(self, answer: Answer) -> float:
        return 1.0


class Range(Check, frozen=True):
    """A count between `min` and `max`, both included; one of the two may be missing."""

    min: int = 0
    max: int | None = None

    def __post_init__(self) -> None:
        if self.min < 0 or (self.max is None and self.min == 0):
            raise ValueError(f"min, max: expected min >= 1 or a max, got min={self.min}, max={self.max}")
        if self.max is not None and self.max < self.min:
            raise ValueError(f"max: expected >= min ({self.min}), got {self.max}")

    def count(self, text: str) -> int:
        """What is counted; characters, unless a check says otherwise."""
        return len(text)

    def score(self, answer: Answer) -> float:
        return float(self.min <= self.count(answer.text) and (self.max is None or self.count(answer.text) <= self.max))


class Words(Range, frozen=True, tag="words"):
    def count(self, text: str) -> int:
        return len(words(text))


class Chars(Range, frozen=True, tag="chars"):
    """Characters that are not white space, punctuation included."""

    def count(self, text: str) -> int:
        return sum(not char.isspace() for char in text)


class Sentences(Range, frozen=True, tag="sentences"):
    def count(self, text: str) -> int:
        parts = re.split(r"(?<=[.!?])[\"'”’)]*\s+|[。！？!?…]+[”’」』）]*|\n+", text)
        return sum(any(char.isalnum() for char in part) for part in parts)


class Bullets(Range, frozen=True, tag="bullets"):
    """Lines that begin with -, *, • or a number."""

    def count(self, text: str) -> int:
        return len(re.findall(r"^[ \t]*(?:[-*•·]\s|\d+[.)、）](?!\d)|[（(]\d+[)）])[ \t]*\S", text, re.MULTILINE))


class Paragraphs(Range, frozen=True, tag="paragraphs"):
    """Blocks separated by blank lines."""

    def count(self, text: str) -> int:
        return sum(bool(block.strip()) for block in re.split(r"\n[ \t]*\n", text))


class Lines(Range, frozen=True, tag="lines"):
    def count(self, text: str) -> int:
        return sum(bool(line.strip()) for line in text.splitlines())


class Include(Check, frozen=True, tag="include"):
    """One of `any` (spelling alternatives) at least `times` times in all."""

    any: list[str]
    times: int = 1

    def __post_init__(self) -> None:
        require_phrases("any", self.any)
        if self.times < 1:
            raise ValueError(f"times: expected >= 1, got {self.times}")

    def score(self, answer: Answer) -> float:
        if self.times == 1:
            return float(any(mentions(answer.text, phrase) for phrase in self.any))
        text = normal(answer.text)
        return float(sum(text.count(normal(phrase)) for phrase in self.any) >= self.times)


class Exclude(Check, frozen=True, tag="exclude"):
    """None of these phrases: forbidden claims, clichés, a word the reply must avoid."""

    phrases: list[str]

    def __post_init__(self) -> None:
        require_phrases("phrases", self.phrases)

    def score(self, answer: Answer) -> float:
        return float(bool(answer.text.strip()) and not any(mentions(answer.text, phrase) for phrase in self.phrases))


class Starts(Check, frozen=True, tag="starts"):
    """The first words are one of `any`, quotation marks aside."""

    any: list[str]

    def __post_init__(self) -> None:
        require_phrases("any", self.any)

    def score(self, answer: Answer) -> float:
        text = normal(answer.text).strip(_MARKS)
        return float(any(text.startswith(normal(phrase).strip(_MARKS)) for phrase in self.any))


class Ends(Check, frozen=True, tag="ends"):
    """The last words are one of `any`, final punctuation aside."""

    any: list[str]

    def __post_init__(self) -> None:
        require_phrases("any", self.any)

    def score(self, answer: Answer) -> float:
        text = normal(answer.text).rstrip(_MARKS)
        return float(any(text.endswith(normal(phrase).rstrip(_MARKS)) for phrase in self.any))


class JsonOnly(Check, frozen=True, tag="json_only"):
    """The whole reply is one JSON value, a code fence around it allowed."""

    def score(self, answer: Answer) -> float:
        return float(json_of(answer.text) is not None)


class Language(Check, frozen=True, tag="language"):
    """Most letters outside code are of the script of `lang`."""

    lang: Lang

    def score(self, answer: Answer) -> float:
        return float(scripts(answer.text).get("han" if self.lang == "zh" else "latin", 0.0) > 0.5)


class Title(Check, frozen=True, tag="title"):
    """A title in 《》 or [[ ]], with something in it."""

    style: Literal["《》", "[[]]"]

    def score(self, answer: Answer) -> float:
        return float(
            re.search(r"《[^《》\n]+》" if self.style == "《》" else r"\[\[[^\[\]\n]+\]\]", answer.text) is not None
        )


class NoComma(Check, frozen=True, tag="no_comma"):
    def score(self, answer: Answer) -> float:
        return float(bool(answer.text.strip()) and not set(",，﹐､") & set(answer.text))


class EndsWithQuestion(Check, frozen=True, tag="ends_with_question"):
    def score(self, answer: Answer) -> float:
        return float(answer.text.rstrip(" \n\t\"'”’」』*_").endswith(("?", "？")))


class Matches(Check, frozen=True, tag="matches"):
    """A regular expression (multi-line) found at least `times` times: the required form."""

    pattern: str
    times: int = 1

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern: {error}") from error

    def score(self, answer: Answer) -> float:
        return float(len(re.findall(self.pattern, answer.text, re.MULTILINE)) >= self.times)


_MARKS = " \n\t\"'“”‘’「」『』*_.!。!…~"


def require_phrases(field: str, values: list[str]) -> None:
    if not values or not all(value.strip() for value in values):
        raise ValueError(f"{field}: expected at least one phrase, none of them blank, got {values}")


def json_of(text: str) -> object | None:
    """The JSON value a reply consists of, in a code fence or bare; None when there is none, or more than that."""
    blocks = code_blocks(text)
    whole = blocks[0] if len(blocks) == 1 and not prose(text).strip() else text
    try:
        value: object = json.loads(whole)
    except (ValueError, RecursionError):
        return None
    return value


Counted = Words | Chars | Sentences | Bullets | Paragraphs | Lines
Phrased = Include | Exclude | Starts | Ends | Matches
Constraint = Counted | Phrased | JsonOnly | Language | Title | NoComma | EndsWithQuestion
