"""YAML as plain values: a word stays a word, every problem has its line, and no text ends in a traceback."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.document import Document, Problem, suggest


def value_of(text: str) -> Any:
    document = Document(text)
    assert document.problems == []
    return document.value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("off", "off"),
        ("on", "on"),
        ("yes", "yes"),
        ("no", "no"),
        ("y", "y"),
        ("True", "True"),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("2020-01-01", "2020-01-01"),
        ("0", 0),
        ("-1", -1),
        ("42", 42),
        ("010", "010"),  # eight to YAML 1.1
        ("1:30", "1:30"),  # ninety to YAML 1.1
        ("1_000", "1_000"),
        ("0.5", 0.5),
        (".5", 0.5),
        ("1.", 1.0),
        ("1e3", 1000.0),
        ("1.5e-3", 0.0015),
        ("-.inf", float("-inf")),
        ("1.2.3", "1.2.3"),
        ("qwen2.5:7b", "qwen2.5:7b"),
        ("=", "="),
        ("'0.5'", "0.5"),
        ('"off"', "off"),
        ("温度", "温度"),
        ("!!str 5", "5"),
    ],
)
def test_scalars_as_in_yaml_1_2(text: str, value: Any) -> None:
    found = value_of(f"a: {text}")["a"]
    assert (found, type(found)) == (value, type(value))


def test_keys_are_words() -> None:
    assert value_of("on: 1\n5: 2\nnull: 3\nx y: 4") == {"on": 1, "5": 2, "null": 3, "x y": 4}


def test_structures_and_anchors() -> None:
    assert value_of("a: &x {b: [1, 2]}\nc: *x\nd:\n- 1\n- e: f") == {
        "a": {"b": [1, 2]},
        "c": {"b": [1, 2]},
        "d": [1, {"e": "f"}],
    }


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: [1, 2", 2),
        ("a: 1\n\tb: 2", 2),
        ("a: 1\nb: *nowhere", 2),
        ("a: 1\n---\nb: 2", 2),
        ("a: 'x", 1),
        ("a: 1\nb: \x07", 2),
        ("a: 1\nb: !mine x", 2),
        ("a: 1\nb: !!python/object/apply:os.system [x]", 2),
        ("a: 1\nb: !!int abc", 2),
        ("a: 1\nb: !!timestamp tomorrow", 2),
        ("a: 1\nb: &x\n  c: *x", 2),
        ("a: 1\nb: " + "[" * 5_000, 1),
        ("a: 1\nb:\n  - x\n  - {? [c, d] : 1}", 4),
    ],
)
def test_what_is_not_a_plain_document_is_a_problem_with_a_line(text: str, line: int) -> None:
    problems = Document(text).problems
    assert problems
    assert line == 1 or problems[0].line == line
    assert all("\n" not in str(problem).strip() or problem.message for problem in problems)


def test_aliases_can_not_blow_a_document_up() -> None:
    """Nine lines that would hold a billion words."""
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    assert Document("\n".join(lines)).problems


def test_duplicate_keys_say_where_both_are() -> None:
    document = Document("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\na: 2\n'a': 3")
    assert sorted(document.problems) == [
        Problem(5, "b.c", "appears twice (first on line 3)"),
        Problem(6, "a", "appears twice (first on line 1)"),
        Problem(7, "a", "appears twice (first on line 1)"),
    ]


def test_lines() -> None:
    document = Document("# comment\na:\n  b: [1,\n    2]\n  'c d': {e: 5}\n")
    assert [document.line(path) for path in [("a",), ("a", "b"), ("a", "b", 1), ("a", "c d", "e")]] == [2, 3, 4, 5]
    assert [document.line(path) for path in [("a", "zz"), ("a", "c d", "zz", "y"), ("zz",), ()]] == [2, 5, 1, 1]


def test_nothing_of_a_text_is_kept() -> None:
    """A gateway reads its presets for as long as it runs, whenever they change."""

    def nodes() -> int:
        gc.collect()
        return sum(type(each) is yaml.ScalarNode for each in gc.get_objects())

    before = nodes()
    for _ in range(3):
        value_of("a: [1, b, true]")
    assert nodes() == before


def test_a_problem_reads_as_one_line() -> None:
    assert str(Problem(3, "presets.x", "is wrong")) == "line 3: presets.x: is wrong"
    assert str(Problem(1, "", "not valid YAML")) == "line 1: not valid YAML"


@pytest.mark.parametrize(
    ("name", "words"), [("topp", "did you mean 'top_p'?"), ("zzz", "known are: temperature, top_k, top_p")]
)
def test_suggestions(name: str, words: str) -> None:
    assert words in suggest(name, ["top_p", "temperature", "top_k"])


@given(st.text(max_size=60) | st.text("ab:-[]{}&*!|>'\"#%@`,? \n\t1.", max_size=40))
def test_any_text_is_a_document_or_a_problem(text: str) -> None:
    document = Document(text)
    assert document.problems or document.value is None or isinstance(document.value, dict | list | str | int | float)
