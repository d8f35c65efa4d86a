"""Our counters against prometheus-client's own: the same numbers in the same text."""

from __future__ import annotations

import uuid

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from gateway.serving.counting import Buckets, Counts
from gateway.serving.ids import exchange_id

BOUNDS = (0.01, 0.1, 1, 2.5)


def lines(registry: CollectorRegistry) -> list[str]:
    """The page without the times of creation, which only the original has."""
    return sorted(line for line in generate_latest(registry).decode().splitlines() if "_created" not in line)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from((0.0, 0.01, 0.0100001, 0.5, 1.0, 2.5, 99.0)))))
def test_the_page_is_the_originals(values: list[tuple[str, float]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    counts, buckets = Counts("made", "Made.", ("kind",)), Buckets("took_seconds", "Took.", ("kind",), BOUNDS)
    ours.register(counts)
    ours.register(buckets)
    counter = Counter("made", "Made.", ("kind",), registry=theirs)
    histogram = Histogram("took_seconds", "Took.", ("kind",), buckets=BOUNDS, registry=theirs)
    for kind, value in values:
        counts.add((kind,))
        buckets.observe((kind,), value)
        counter.labels(kind).inc()
        histogram.labels(kind).observe(value)
    assert numbers(ours) == numbers(theirs)


def numbers(registry: CollectorRegistry) -> dict[str, float]:
    """Every sample of the page; bounds may be written 1 or 1.0."""
    found = (line.rpartition(" ") for line in lines(registry) if not line.startswith("#"))
    return {name.replace('.0"', '"'): float(value) for name, _, value in found}


def test_ids_are_uuids_of_version_7_that_grow() -> None:
    ids = [exchange_id() for _ in range(2000)]
    assert len(set(ids)) == 2000
    assert {(uuid.UUID(text).version, uuid.UUID(text).variant) for text in ids} == {(7, uuid.RFC_4122)}
    assert [text[:13] for text in ids] == sorted(text[:13] for text in ids)
