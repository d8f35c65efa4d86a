"""The result page: whole, self-contained, escaped, and in the reader's language."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import msgspec
import pytest

from gateway.log import page, words
from gateway.log.evidence import Evidence
from gateway.log.finding import Result
from gateway.policy.experiments import Variant
from tests.log.test_results import declared, judged, seen

VOID = {"meta"}


class Checker(HTMLParser):
    """Every element that opens closes, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1] != "style":
            self.text.append(data)


def checked(result: Result, language: words.Language) -> str:
    html = page.render(result, 0.03, language)
    checker = Checker()
    checker.feed(html)
    assert checker.open == []
    assert not re.search(r"https?:|src=|url\(|<script|@import", html)
    return " ".join(checker.text)


SHIPPED = judged(seen({"plain": 0.5, "warm": 0.75}, 3000))


@pytest.mark.parametrize(
    ("result", "en", "zh"),
    [
        (SHIPPED, "Ship warm", "采用 warm"),
        (judged(seen({"plain": 0.6, "warm": 0.6}, 1000)), "Not yet", "还不能下结论"),
        (judged(Evidence([], [], 0, False, {})), "No exchange", "日志中还没有"),
        (
            judged(
                seen({"plain": 0.5, "warm": 0.75}, 3000, tokens=lambda v, r: r.gauss(200 if v == "warm" else 100, 9))
            ),
            "harm: Tokens per answer (warm)",
            "护栏指标恶化：每次回答的 token 数 (warm)",
        ),
        (judged(seen({"plain": 0.4, "warm": 0.75}, 900), declared(allocation="adaptive")), "arms differ", "各组有差别"),
        (
            judged(seen({"a": 0.6, "b": 0.6, "c": 0.6}, 2000), declared(variants={name: Variant() for name in "abc"})),
            "c against a",
            "c 对比 a",
        ),
    ],
)
def test_pages_say_it_in_both_languages(result: Result, en: str, zh: str) -> None:
    assert en in checked(result, "en")
    assert zh in checked(result, "zh")


def test_names_cannot_inject() -> None:
    evil = msgspec.structs.replace(SHIPPED, name="<script>alert(1)</script>", preset='"><img src=x>')
    html = page.render(evil, 0.03)
    assert "<script" not in html
    assert "<img" not in html


def test_every_verdict_and_reason_has_words() -> None:
    verdicts = ("ship b", "keep a", "no difference", "not yet", "invalid: sample ratio")
    reasons = ("ratio", "few_votes", "too_early", "undecided", "worse", "better", "equivalent", "guardrail: tokens (b)")
    for language in ("en", "zh"):
        assert len({words.verdict(said, language) for said in verdicts}) == 5  # type: ignore[arg-type]
        assert len({words.reason(said, language) for said in reasons}) == 8  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("", "en"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("en-GB, zh;q=0.9", "en"),
        ("fr, zh-TW;q=0.4, en;q=0.3", "zh"),
        ("de", "en"),
        ("en;q=x, zh;q=0.1", "zh"),
    ],
)
def test_the_reader_s_language(header: str, language: str) -> None:
    assert words.choose_language(header) == language
