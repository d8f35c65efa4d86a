"""Signs that a text fell apart, found without a judge: repetition, loops, tokens from the tail, foreign script, wrong
language, nothing.

Knows the thresholds and one sample at a time. Does NOT know quality, prompts or temperatures.
"""

from __future__ import annotations

import unicodedata
from typing import Literal

import msgspec

from gateway.evaluation.tokens import ngrams, normal, prose, tokens

Lang = Literal["zh", "en"]

REPETITION = 0.3  # rep-4 above this
TAIL_RATE = 0.02  # share of sampled tokens in the tail above this
TAIL_PROBABILITY = 1e-4  # a sampled token below this raw probability came from the tail
FOREIGN = 0.01  # share of letters of a script that neither language is written in
OWN_SHARE = 0.5  # a text of at least JUDGED characters with less of its own script is in the wrong language
JUDGED = 30
PERIOD, TURNS, SPAN = 50, 3, 30  # a loop: a period of at most 50 tokens, at least 3 times, over at least 30 tokens


class Signs(msgspec.Struct, frozen=True):
    """What was found in one sample. `tail` is False when the engine gave no log-probabilities."""

    repetitive: bool
    loop: bool
    tail: bool
    script: bool
    language: bool
    empty: bool
    truncated: bool

    @property
    def degenerate(self) -> bool:
        """Any sign but truncation, which is as much the token limit's doing as the model's, and is reported beside
        it."""
        return self.repetitive or self.loop or self.tail or self.script or self.language or self.empty


def repetition(items: list[str], k: int = 4) -> float:
    """1 - unique k-grams / k-grams: 0 without repeats, towards 1 in a loop."""
    grams = ngrams(items, k)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def loops(items: list[str]) -> bool:
    """Whether the text ends in a loop: its last tokens repeat one period."""
    for period in range(1, min(PERIOD, len(items) // TURNS) + 1):
        run = period
        while run < len(items) and items[-1 - run] == items[-1 - run + period]:
            run += 1
        if run >= max(SPAN, TURNS * period):
            return True
    return False


def _script(letter: str) -> str:
    name = unicodedata.name(letter, "")
    if name.startswith(("LATIN ", "CJK ")):
        return "latin" if name.startswith("LATIN") else "han"
    return "greek" if name.startswith("GREEK") else "other"


def scripts(text: str) -> dict[str, float]:
    """Share of the letters outside code blocks by script: latin, han, greek (formulas), other; empty without
    letters."""
    letters = [_script(char) for char in normal(prose(text)) if char.isalpha()]
    return {name: letters.count(name) / len(letters) for name in set(letters)}


def foreign_script(text: str, lang: Lang | None) -> bool:
    """U+FFFD, or letters of a script not used in `lang`: Latin names are at home in Chinese, Greek in formulas.

    None is a reply that is not prose (JSON, code), where Latin and Han may both stand."""
    shares = scripts(text)
    foreign = shares.get("other", 0.0) + (shares.get("han", 0.0) if lang == "en" else 0.0)
    return "\ufffd" in text or foreign > FOREIGN


def wrong_language(text: str, lang: Lang | None) -> bool:
    """A text of some length, code aside, mostly not in the script of `lang`; never so for None."""
    shares = scripts(text)
    own = shares.get("han" if lang == "zh" else "latin", 0.0)
    return lang is not None and bool(shares) and len(prose(text).strip()) >= JUDGED and own < OWN_SHARE


def signs(text: str, lang: Lang | None, *, finish: str | None = None, tail_rate: float | None = None) -> Signs:
    """The signs in one sample; `finish` is the engine's finish_reason, `tail_rate` the share of tail tokens in [0,
    1]."""
    items = tokens(text)
    return Signs(
        repetitive=repetition(items) > REPETITION,
        loop=loops(items),
        tail=tail_rate is not None and tail_rate > TAIL_RATE,
        script=foreign_script(text, lang),
        language=wrong_language(text, lang),
        empty=not text.strip(),
        truncated=finish == "length",
    )
