"""The reply headers are RFC 9651 dictionaries: a strict parser reads back what was written."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.protocol import structured

# RFC 9651, sections 4.2.2 to 4.2.5, as far as integers, decimals, strings, tokens and inner lists go.
_KEY = re.compile(r"[a-z*][a-z0-9_\-.*]*")
_NUMBER = re.compile(r"-?(?:[0-9]{1,12}\.[0-9]{1,3}|[0-9]{1,15})(?![0-9.])")
_STRING = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"')
_TOKEN = re.compile(r"[A-Za-z*][!#$%&'*+\-.^_`|~0-9A-Za-z:/]*")
_COMMA = re.compile(r"[ \t]*,[ \t]*(?!$)")


class Reader:
    """Reads a dictionary field; raises ValueError at the first byte the RFC does not allow."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    def _take(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._at)
        if found is None:
            raise ValueError(f"position {self._at} of {self._text!r}: expected {pattern.pattern}")
        self._at = found.end()
        return found.group(found.re.groups)

    def _follows(self, char: str) -> bool:
        return self._text.startswith(char, self._at)

    def dictionary(self) -> dict[str, tuple[Any, dict[str, Any]]]:
        members: dict[str, tuple[Any, dict[str, Any]]] = {}
        while self._at < len(self._text):
            if members:
                self._take(_COMMA)
            key = self._take(_KEY)
            self._take(re.compile("="))
            value = self._inner() if self._follows("(") else self._item()
            parameters = {}
            while self._follows(";"):
                self._take(re.compile("; *"))
                name = self._take(_KEY)
                self._take(re.compile("="))
                parameters[name] = self._item()
            members[key] = (value, parameters)
        return members

    def _inner(self) -> list[Any]:
        self._take(re.compile(r"\( *"))
        items = []
        while not self._follows(")"):
            items.append(self._item())
            self._take(re.compile(r" +|(?=\))"))
        self._at += 1
        return items

    def _item(self) -> Any:
        if self._follows('"'):
            return re.sub(r"\\(.)", r"\1", self._take(_STRING))
        if self._text[self._at : self._at + 1].isalpha():
            return self._take(_TOKEN)
        number = self._take(_NUMBER)
        return float(number) if "." in number else int(number)


def read(text: str) -> dict[str, tuple[Any, dict[str, Any]]]:
    return Reader(text).dictionary()


@pytest.mark.parametrize(
    "bad", ["a=0.1234", "a=1234567890123456", "a=1.", "A=1", "a=1,", 'a="é"', "a=(1", "a=1e5", "a=.5"]
)
def test_the_reader_is_strict(bad: str) -> None:
    with pytest.raises(ValueError):
        read(bad)


def test_what_the_contract_shows() -> None:
    assert (
        structured.dictionary({"temperature": 0.5, "top_p": 0.9, "top_k": -1}) == "temperature=0.5, top_p=0.9, top_k=-1"
    )
    told = [("temperature", 1.4, 0.5, "bound"), ("max_tokens", 9000, 512, "cap"), ("min_p", 0.05, None, "route")]
    text = structured.adjustments(told)
    assert text.startswith("temperature=(1.4 0.5);by=bound, ")
    assert read(text) == {
        "temperature": ([1.4, 0.5], {"by": "bound"}),
        "max_tokens": ([9000, 512], {"by": "cap"}),
        "min_p": ([0.05], {"by": "route"}),
    }
    assert structured.dictionary({}) == ""


_NUMBERS = st.one_of(
    st.integers(), st.floats(), st.integers(-2000, 2000).map(lambda n: n / 1000), st.sampled_from([0, 0.0])
)


@given(st.lists(_NUMBERS, min_size=1, max_size=4))
@example([0.123, 0.1234, 0.9999, 99999.125, 1.0001])
@example([0.1 + 0.2, 1e-5, 1e15, 1e16, 123456789012.125, 1234567890123.5, -0.0, 10**15 - 1, 10**15, -(10**15)])
@example([math.nan, math.inf, -math.inf, 5e-324, 1.7976931348623157e308])
def test_numbers_survive(values: list[float]) -> None:
    """A number the grammar has comes back as that number, any other one as a string that says it exactly."""
    members = read(structured.dictionary({f"k{i}": value for i, value in enumerate(values)}))
    for value, (found, _) in zip(values, members.values(), strict=True):
        if isinstance(found, str):
            assert not isinstance(value, int) or abs(value) >= 10**15
            assert isinstance(value, int) or not (
                abs(value) < 10**12 and value == round(value, 3) and abs(value) > 1e-3
            )
            assert (float(found) if isinstance(value, float) else int(found)) == value or math.isnan(value)
        else:
            assert (found, type(found)) == (value, type(value))


@given(st.text())
@example('"\\\r\n\0é你')
def test_a_text_can_not_leave_its_string(text: str) -> None:
    written = structured.dictionary({"a": text, "b": 1})
    assert written.isascii()
    assert written.isprintable()
    found = read(written)
    assert found["b"] == (1, {})
    assert found["a"][0] == "".join(char if " " <= char <= "~" else "?" for char in text)
