"""The session of a conversation: the documented formula, the same in every process, telling nothing."""

from __future__ import annotations

import hmac
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.affinity import session

names = st.none() | st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True)
conversations = st.text(st.characters(), min_size=1, max_size=64)


def test_the_formula_is_the_documented_one() -> None:
    wanted = hmac.new(b"s3cret", b"alice\0chat-1", sha256).hexdigest()[:32]
    assert session("s3cret", "alice", "chat-1") == wanted.encode()


def test_it_does_not_change_between_releases() -> None:
    """A literal value: gateways of two releases run side by side during an upgrade."""
    assert session("secret", None, "对话") == b"45e5cb74bfc00ca9619b1530b9ba6be5"


@pytest.mark.parametrize("conversation", [None, ""])
def test_without_a_conversation_there_is_none(conversation: str | None) -> None:
    assert session("secret", "alice", conversation) is None


@given(names, conversations)
def test_it_is_32_hex_digits_whatever_the_client_wrote(key: str | None, conversation: str) -> None:
    found = session("secret", key, conversation)
    assert found is not None
    assert len(found) == 32
    assert set(found) <= set(b"0123456789abcdef")


@given(names, conversations, names, conversations)
def test_two_callers_or_two_conversations_are_two_sessions(
    key: str | None, conversation: str, other: str | None, another: str
) -> None:
    same = (key, conversation) == (other, another)
    assert (session("secret", key, conversation) == session("secret", other, another)) is same
    assert session("secret", key, conversation) != session("Secret", key, conversation)
