"""The pure parts of a turn: likeness, tokens as text, what the model reads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ui.client import Token, dictionary
from ui.turns import prompt, similarity, spell


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("The cat sat.", "the cat sat!", 1.0),
        ("the cat sat", "the cat ran", 0.6),
        ("春天来了", "春天走了", 4 / 7),
        ("alpha beta", "gamma delta", 0.0),
        ("yes", "yes", 1.0),
        ("", "", 1.0),
        ("", "words here", 0.0),
        ("?!", "...", 0.0),
    ],
)
def test_similarity(one: str, other: str, alike: float) -> None:
    assert similarity(one, other) == pytest.approx(alike)
    assert similarity(other, one) == pytest.approx(alike)


def test_a_character_of_several_tokens_stands_at_the_last() -> None:
    raw = "春".encode()
    tokens = [Token(part, -0.1, ((part, -0.1), (b"x", -3.0))) for part in (raw[:1], raw[1:2], raw[2:], " 天".encode())]
    spelt = spell(tokens)
    assert [one["text"] for one in spelt] == ["", "", "春", " 天"]
    assert [one["piece"] for one in spelt] == ["‹e6›", "‹98›", "‹a5›", " 天"]
    assert spelt[0]["candidates"] == [["‹e6›", -0.1], ["x", -3.0]]


def said(kind: str, content: str, **more: Any) -> Any:
    return SimpleNamespace(**{"type": f"{kind}_message", "content": content, "modes": None, "metadata": None} | more)


def test_prompt_leaves_out_errors_empty_cards_and_other_comparisons() -> None:
    now = said("user", "now", modes={"view": "compare"})
    messages = [
        said("user", "a", modes={"view": "tokens"}),
        said("assistant", "b"),
        said("user", "compared", modes={"view": "compare"}),
        said("assistant", ""),
        said("assistant", "away", metadata={"error": True}),
        now,
    ]
    assert prompt(messages, now) == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "now"},
    ]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", []),
        ("temperature=0.5, top_p=1", [("temperature", "0.5", ""), ("top_p", "1", "")]),
        ('temperature="0.33333"', [("temperature", "0.33333", "")]),
        (
            "temperature=(1.4 0.5);by=bound, n=(3 1);by=cap",
            [("temperature", "(1.4 0.5)", "bound"), ("n", "(3 1)", "cap")],
        ),
    ],
)
def test_dictionary(header: str, expected: list[tuple[str, str, str]]) -> None:
    assert dictionary(header) == expected
