"""Pages of several workers as one: what adds up, what does not, and what stays of those that are gone."""

from __future__ import annotations

import msgspec
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.parser import text_string_to_metric_families

from gateway.serving.gathering import Page, lasting, page_of, text, total


def page(requests: dict[str, int], seconds: list[float], **gauges: float) -> Page:
    registry = CollectorRegistry()
    counter = Counter("t_requests", "Requests.", ("preset",), registry=registry)
    for preset, number in requests.items():
        counter.labels(preset).inc(number)
    histogram = Histogram("t_seconds", "Time.", buckets=(1, 10), registry=registry)
    for value in seconds:
        histogram.observe(value)
    for name, value in gauges.items():
        Gauge(f"t_{name}", "A gauge.", registry=registry).set(value)
    Info("t_config", "What is in force.", registry=registry).info({"revision": "abc"})
    ProcessCollector(registry=registry)
    sent = msgspec.msgpack.encode(page_of(registry))  # as it comes from another process
    return msgspec.msgpack.decode(sent, type=Page)


def shown(whole: Page) -> dict[str, float]:
    """Every series but the processes' own, read back from the text."""
    families = text_string_to_metric_families(text(whole).decode())
    samples = [sample for family in families for sample in family.samples if not sample.name.startswith("process_")]
    return {s.name + ",".join(f" {k}={v}" for k, v in s.labels.items()): s.value for s in samples}


def test_what_adds_up_and_what_does_not() -> None:
    one = page({"a": 3, "b": 1}, [0.5, 20], in_flight=2, queued_bytes=10, database_up=1, draining=0, anything=4)
    two = page({"a": 4, "c": 2}, [5], in_flight=1, queued_bytes=5, database_up=0, draining=1, anything=5)
    assert shown(total([], {"1": one, "2": two})) == {
        "t_requests_total preset=a": 7,
        "t_requests_total preset=b": 1,
        "t_requests_total preset=c": 2,
        "t_seconds_bucket le=1.0": 1,
        "t_seconds_bucket le=10.0": 2,
        "t_seconds_bucket le=+Inf": 3,
        "t_seconds_count": 3,
        "t_seconds_sum": 25.5,
        "t_in_flight": 3,
        "t_queued_bytes": 15,
        "t_database_up": 0,
        "t_draining": 1,
        "t_anything": 9,
        "t_config_info revision=abc": 1,
    }


def test_who_is_gone_has_counted_and_holds_nothing() -> None:
    past: Page = []
    for _ in range(3):
        past = lasting(past, page({"a": 2}, [5], in_flight=9, database_up=0))
    found = shown(total(past, {"1": page({"a": 1}, [], in_flight=1, database_up=1)}))
    assert found["t_requests_total preset=a"] == 7
    assert found["t_seconds_bucket le=10.0"] == found["t_seconds_count"] == 3
    assert (found["t_in_flight"], found["t_database_up"]) == (1, 1)
    assert "process_" not in text(past).decode()


def test_every_process_shows_its_own_numbers() -> None:
    whole = text(total([], {"1": page({}, []), "2": page({}, [])})).decode()
    for worker in "12":
        assert f'process_resident_memory_bytes{{worker="{worker}"}}' in whole
    assert whole.count("process_resident_memory_bytes{") == 2


@pytest.mark.parametrize("kind", ["counter", "histogram", "gauge"])
def test_nobody_is_a_page_of_nothing(kind: str) -> None:
    assert text(total([], {})) == b""
    assert [f for f in total([], {"1": page({"a": 1}, [1])}) if f.kind == kind]
