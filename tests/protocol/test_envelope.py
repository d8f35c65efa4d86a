"""Opening the envelope: every byte that is not ours survives, and what is no JSON object is refused by name."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.protocol import envelope
from gateway.protocol.errors import InvalidRequest, TooLarge

# What a client may write: a JSON text and whether it nests, as bytes, so that spelling is part of the example.
_SPACE = st.sampled_from(["", " ", "\n", "\t ", "\r\n"])
_SCALARS = st.one_of(
    st.sampled_from(
        ["null", "true", "false", "0", "-0", "-0.0", "1E400", "1e-400", "64.0", "1.10", "9007199254740993"]
    ),
    st.integers(10**29, 10**31).map(str),
    st.text(max_size=8).map(json.dumps),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8).map(lambda s: json.dumps(s, ensure_ascii=False)),
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.tuples(_SPACE, st.lists(inner, max_size=3)).map(lambda p: "[" + p[0] + f"{p[0]},".join(p[1]) + "]"),
        st.tuples(_SPACE, st.lists(inner, max_size=3)).map(
            lambda p: "{" + ",".join(f'"k{i % 2}"{p[0]}:{v}' for i, v in enumerate(p[1])) + "}"
        ),
    ),
    max_leaves=6,
)
_NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


def refused(body: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        envelope.parse(body)
    return caught.value


@given(st.dictionaries(_NAMES, _VALUES, max_size=5), _SPACE, st.booleans())
@example({"seed": "123456789012345678901234567890", "x": "1.10"}, " ", True)
def test_every_value_keeps_its_bytes(members: dict[str, str], space: str, escaped: bool) -> None:
    names = {name: json.dumps(name, ensure_ascii=escaped) for name in members}
    inside = ",".join(f"{space}{names[name]}{space}:{space}{value}{space}" for name, value in members.items())
    fields = envelope.parse(f"{space}{{{inside}}}{space}".encode())
    assert list(fields) == list(members)
    assert {name: bytes(raw) for name, raw in fields.items()} == {n: v.encode() for n, v in members.items()}
    again = envelope.encode(fields)
    assert {name: bytes(raw) for name, raw in envelope.parse(again).items()} == {n: bytes(r) for n, r in fields.items()}


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (b"", "invalid_json", "empty"),
        (b"null", "invalid_json", "JSON object"),
        (b"5", "invalid_json", "JSON object"),
        (b'"text"', "invalid_json", "JSON object"),
        (b"[{}]", "invalid_json", "JSON object"),
        (b"{", "invalid_json", "not valid JSON"),
        (b'{"a":1}x', "invalid_json", "not valid JSON"),
        (b'{"a":01}', "invalid_json", "not valid JSON"),
        (b'{"a":"\x01"}', "invalid_json", "not valid JSON"),
        (b"{'a':1}", "invalid_json", "not valid JSON"),
        (b'\xef\xbb\xbf{"a":1}', "invalid_json", "not valid JSON"),
        ('{"a":1}'.encode("utf-16"), "invalid_utf8", "UTF-8"),
        (b'{"a":"\xff"}', "invalid_utf8", "0xff at position 6"),
        (b'{"a":"\xc0\x80"}', "invalid_utf8", "UTF-8"),
        (b'{"a":"\xed\xa0\x80"}', "invalid_utf8", "UTF-8"),
        (b'{"a":"\xf5\x80\x80\x80"}', "invalid_utf8", "UTF-8"),
        (b'{"a":"\\ud83d"}', "invalid_json", "surrogate"),
        (b'{"a":["\\uDE00"]}', "invalid_json", "surrogate"),
        (b'{"a":"\\ud83dx"}', "invalid_json", "surrogate"),
        (b'{"\\ud83d":1}', "invalid_json", "surrogate"),
        (b'{"a":1,"a":1}', "duplicate_field", "'a'"),
        (b'{ "a" : 1, "b": 2, "a" : 1 }', "duplicate_field", "'a'"),
        (b'{"temperature":0,"\\u0074emperature":2}', "duplicate_field", "'temperature'"),
        (b'{"\\u0061":1,"\\u0061":1}', "duplicate_field", "'a'"),
        ('{"温":1,"\\u6e29":1}'.encode(), "duplicate_field", "温"),
        (b'{"":1,"":1}', "duplicate_field", "''"),
    ],
)
def test_what_is_refused(body: bytes, code: str, words: str) -> None:
    error = refused(body)
    assert (error.status, error.type, error.code) == (400, "invalid_request_error", code)
    assert words in error.message


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("before", ["", '"x":"NaN \\" Infinity","y":[1],', '"\\u0061":1,'])
def test_a_literal_that_is_no_number_is_named(literal: str, before: str) -> None:
    error = refused(f'{{{before}"temperature" : {literal}, "n":1}}'.encode())
    assert (error.param, error.code) == ("temperature", "out_of_range")
    assert "temperature" in error.message
    assert literal in error.message


def test_a_literal_that_is_no_number_deeper_down_is_refused() -> None:
    assert "NaN" in refused(b'{"metadata":{"a":[NaN]}}').message
    assert "NaN" not in refused(b'{"a":"NaN"').message


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":{"b":1,"b":2}}',  # only the top level is ours to judge
        b'{"b":{"a":1},"a":1}',
        b'{"a":"\\ud83d\\ude00","\\u0062":1}',
        b'{"\\u0061":' + b"9" * 5000 + b"}",
        b'{"a":1e999}',
        b"{}",
        b" \n{ } ",
    ],
)
def test_what_is_taken(body: bytes) -> None:
    envelope.parse(body)


def nested(depth: int, opening: str) -> bytes:
    """JSON whose outer object is level 1 and whose innermost list or object is level `depth`."""
    inner = {"[": ("[", "]"), "{": ('{"k":', "}")}[opening]
    return b'{"a":' + (inner[0] * (depth - 1)).encode() + b"1" + (inner[1] * (depth - 1)).encode() + b"}"


@pytest.mark.parametrize("opening", ["[", "{"])
def test_depth_is_counted_from_the_outer_object(opening: str) -> None:
    assert list(envelope.parse(nested(64, opening))) == ["a"]
    for depth in (65, 1_000, 100_000):
        error = refused(nested(depth, opening))
        assert (error.code, "64" in error.message) == ("too_deep", True)


@pytest.mark.parametrize("body", [b"[" * 200_000, b'{"a":' * 200_000, b'{"a":[' * 100_000, b'{"a":' + b"[" * 200_000])
def test_unbalanced_depths_are_refused(body: bytes) -> None:
    refused(body)


def test_brackets_in_strings_are_not_levels() -> None:
    wide = {"a": "[{" * 500, 'b"\\': ['\\"[[', "\\\\", "]]"] * 50, "c": [[], {}] * 50}
    assert list(envelope.parse(json.dumps(wide).encode())) == list(wide)


@given(st.integers(), st.integers(0, 4))
def test_depth_agrees_with_a_count(seed: int, slack: int) -> None:
    """`deeper_than` against a plain recursive measure, on random trees with brackets and quotes in their strings."""
    rng = random.Random(seed)

    def grow(levels: int) -> object:
        if levels == 0:
            return rng.choice([1, "[", "}", '"[', "\\", '\\"{{', None])
        items = [grow(rng.randrange(levels)) for _ in range(rng.randrange(3))] + [grow(levels - 1)]
        return items if rng.random() < 0.5 else {f'k"[{i}': item for i, item in enumerate(items)}

    def depth(tree: object) -> int:
        inner: Iterator[object] = iter(
            tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
        )
        return max((depth(item) for item in inner), default=0) + isinstance(tree, list | dict)

    tree = grow(rng.randrange(6))
    body = json.dumps(tree).encode()
    assert envelope.deeper_than(body, slack) == (depth(tree) > slack)


def test_size() -> None:
    body = b'{"a":"' + b"x" * 100 + b'"}'
    assert envelope.parse(body, len(body))
    with pytest.raises(TooLarge) as caught:
        envelope.parse(body, len(body) - 1)
    assert caught.value.status == 413
    assert {str(len(body)), str(len(body) - 1)} <= set(caught.value.message.replace(".", "").split())


def test_a_body_of_very_many_names_is_read_in_linear_time() -> None:
    """A quadratic search for a duplicate would take minutes here."""
    names = ",".join(f'"k{i}":0' for i in range(200_000))
    assert len(envelope.parse(('{"\\u0061":0,' + names + "}").encode())) == 200_001
    assert "'k199999'" in refused(('{"\\u0061":0,' + names + ',"k199999":0}').encode()).message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("null", None),
        ("0", 0),
        ("0.0", 0.0),
        ("true", True),
        ('"0.7"', "0.7"),
        ("1e-999", 0.0),
        ("123456789012345678901234567890", 123456789012345678901234567890),
    ],
)
def test_one_value(text: str, value: object) -> None:
    found = envelope.value({"x": msgspec.Raw(text.encode())}, "x")
    assert (found, type(found)) == (value, type(value))
    assert envelope.value({}, "x") is None


@pytest.mark.parametrize("text", ["1e999", "-1e999", "[1e999]", '{"a":1e999}'])
def test_a_number_no_double_holds_names_its_field(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        envelope.value({"seed": msgspec.Raw(text.encode())}, "seed")
    assert (caught.value.param, caught.value.status) == ("seed", 400)
    assert "seed" in caught.value.message
    assert "1e999" in caught.value.message


@given(st.one_of(st.none(), st.booleans(), st.floats(), st.text(), st.integers(), st.lists(st.text())))
def test_a_value_is_shown_short_and_in_its_own_script(value: object) -> None:
    shown = envelope.show(value)
    assert len(shown) <= 60
    assert "温度" in envelope.show("温度")


@given(st.binary(max_size=40))
@example(b'{"a":1e999}')
@example(b'{"\xff":1}')
def test_any_bytes_give_fields_or_a_clear_refusal(body: bytes) -> None:
    fields = None
    with contextlib.suppress(InvalidRequest):
        fields = envelope.parse(body)
    assert fields is None or json.loads(body).keys() == fields.keys()
