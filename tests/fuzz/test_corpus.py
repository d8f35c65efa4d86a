"""The fuzz targets over their seeds and over every finding so far: the short form of `make fuzz`."""

from __future__ import annotations

import random

import pytest

from gateway.compiled import used
from tests.fuzz import bodies, replies, streams
from tests.fuzz.targets import TARGETS, found


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_hold(name: str) -> None:
    target = TARGETS[name]
    seeds = target.seeds()
    assert len(seeds) >= 20
    for seed in seeds:
        target.check(seed)


@pytest.mark.parametrize("name", TARGETS)
def test_findings_stay_mended(name: str) -> None:
    for path in found(name):
        TARGETS[name].check(path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_a_few_changed_inputs_hold(name: str) -> None:
    """What one byte changed, taken out or put in does to each seed."""
    target, chance = TARGETS[name], random.Random(name)
    for seed in target.seeds():
        for _ in range(3):
            at = chance.randrange(target.head, len(seed) + 1)
            end = at + chance.choice((0, 1, 5))
            changed = seed[:at] + chance.choice((b"", chance.randbytes(1), b'"', b"\n", b"\0")) + seed[end:]
            target.check(changed)
            if target.mutate is not None and (made := target.mutate(seed, chance.randrange(1 << 30))) is not None:
                target.check(made)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("bodies", "gateway.protocol.envelope.parse"),
        pytest.param(
            "bodies",
            "gateway.policy.fences.check",
            marks=pytest.mark.skipif(used(), reason="compiled in, so it cannot be taken out: TEMPERA_COMPILED=off"),
        ),
        ("streams", "gateway.protocol.sse.Splitter.feed"),
        ("replies", "gateway.serving.connection.Connection.on_headers_complete"),
    ],
)
def test_a_fault_is_found(name: str, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks can fail: with a part of the gateway taken out they do."""
    monkeypatch.setattr(wrong, lambda *_, **__: {})
    with pytest.raises((AssertionError, AttributeError, KeyError)):
        list(map(TARGETS[name].check, TARGETS[name].seeds()))


def test_the_references_read_as_the_standards_say() -> None:
    assert bodies.read(b'{"a": 1.50, "a": [NaN]}') is None
    assert bodies.read(b'{"a": "\\ud800"}') is None
    assert bodies.read(b'{"a": 1.50, "a": [null]}') == [("a", "1.50"), ("a", [None])]
    assert streams.reference(b"event: x\rdata: 1\r\ndata:2\n\n\r") == [(b"x", b"1\n2")]
    assert b"".join(streams.cut(b"abcdefg", b"\2\1")) == b"abcdefg"
    assert replies.seeds()
