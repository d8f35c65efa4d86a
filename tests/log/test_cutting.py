"""What is kept of long messages: whole pieces of JSON, the newest, and never very much work."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.log.cutting import LEAST, _by_marks, _holds_many, _one_by_one, cut_chat, cut_value

WORDS = st.text(st.sampled_from('{"role":,[]}\\ 温x'), max_size=40)
PARTS = st.lists(st.fixed_dictionaries({"role": WORDS, "text": WORDS}), max_size=3)
CONTENT = WORDS | PARTS | st.lists(PARTS, max_size=2) | st.none()
SAID = st.fixed_dictionaries({"role": WORDS, "content": CONTENT}) | st.fixed_dictionaries({"content": CONTENT})
CHATS = st.lists(SAID | CONTENT | st.integers(), min_size=1, max_size=12)


@pytest.mark.parametrize("split", [_by_marks, _one_by_one])
@given(CHATS, st.integers(1, 400), st.sampled_from([None, 1]))
def test_long_chats_are_cut_between_messages(split: Any, chat: list[Any], limit: int, indent: int | None) -> None:
    """However deep roles stand, and whatever looks like one."""
    array = json.dumps(chat, ensure_ascii=False, indent=indent).encode()
    assume(len(array) > limit)
    try:
        found = split(array, limit)
    except msgspec.MsgspecError:
        assert split is _by_marks
        return
    newest = json.loads(b"[%b]" % found.newest)
    assert len(found.newest) <= limit + len(newest)
    older = chat[: len(chat) - len(newest)]
    assert newest == chat[len(older) :]
    assert [json.loads(piece) for piece in (found.first, found.cut) if piece] == older[:1] + older[1:][-1:]
    assert bool(found.between) == (len(older) > 2)


def test_marks_are_used() -> None:
    array = msgspec.json.encode([{"role": "user", "content": text * 400} for text in "abcd"])
    found = _by_marks(array, 1000)
    assert found.newest == msgspec.json.encode({"role": "user", "content": "c" * 400}) + b"," + array[-429:-1]


@given(st.text(st.sampled_from('ab温😀\\"\n\ud7ff'), max_size=60), st.integers(1, 300), st.booleans())
def test_a_text_is_cut_between_characters(text: str, limit: int, ascii_only: bool) -> None:
    """However it is escaped: a JSON string stays one, with no half of a pair at its end."""
    value = json.dumps(text, ensure_ascii=ascii_only).encode()
    short, missing = cut_value(value, limit)
    assert text.startswith(msgspec.json.decode(short, type=str))
    assert missing == (len(value) > limit + 2)
    assert len(short) > min(len(value), limit) - 30


@pytest.mark.parametrize("shift", range(24))
def test_a_long_emoji_message_can_be_read_again(shift: int) -> None:
    said = [{"role": "user", "content": "x" * shift + "😀" * 3000}]
    [message] = msgspec.json.decode(cut_chat(json.dumps(said).encode(), 1000)[0])
    assert set(message["content"].lstrip("x")) == {"😀"}


def test_many_fields_and_many_values_are_not_kept() -> None:
    fields = {"role": "user", "content": "hi"} | {f"f{n}": n for n in range(5000)}
    short, missing = cut_chat(json.dumps([fields]).encode(), 1000)
    assert missing
    assert len(short) < 1000 + 2 * LEAST
    assert msgspec.json.decode(short)[0]["content"] == "hi"
    numbers = b"[%b]" % b",".join([b"1"] * 1_000_000)
    assert _holds_many(numbers)
    assert cut_value(numbers, 1000) == (b'{"omitted_bytes":2000001}', True)
    assert cut_chat(numbers, 1000) == (b'[{"omitted_bytes":2000001}]', True)
    said = b'[{"role":"user","content":%b}]' % numbers
    assert cut_chat(said, 1000) == (b'[{"role":"user","content":{"omitted_bytes":2000001}}]', True)


def test_a_long_text_with_many_commas_keeps_its_beginning() -> None:
    text = "well, " * 200_000
    for order in (("role", "content"), ("content", "role")):
        said = [{name: {"role": "user", "content": text}[name] for name in order}] * 2
        kept = msgspec.json.decode(cut_chat(json.dumps(said[:1]).encode(), 1000)[0])
        assert kept == [{"role": "user", "content": text[:1000]}]
    assert msgspec.json.decode(cut_value(json.dumps(text).encode(), 1000)[0]) == text[:1000]
