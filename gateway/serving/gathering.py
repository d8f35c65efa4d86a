"""The metrics of several workers as one page: counters and histograms add up, and never go down.

A worker's numbers travel as a Page, the families of its registry in plain tuples. What a worker that is gone had
counted stays in the sums; its gauges go with it. Knows Prometheus's kinds and naming, nothing about processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, Protocol

import msgspec
from prometheus_client import generate_latest
from prometheus_client.core import Metric

Labels = tuple[tuple[str, str], ...]
_COUNTED: Final = ("counter", "histogram", "summary")
_EACH: Final = ("process_", "python_")  # what every process has for itself: shown per worker
# Gauges, by how their names end. What is not named here adds up.
GAUGES: Final[tuple[tuple[tuple[str, ...], Callable[[float, float], float]], ...]] = (
    (("_in_flight", "_waiting", "_bytes"), lambda one, other: one + other),
    (("_up",), min),  # it is well when it is well with all
    (("_refused", "_draining", "_info", "_seconds"), max),  # one of them is enough
)


class Family(msgspec.Struct, array_like=True):
    """One metric. A sample is its name, its labels and its value."""

    name: str
    kind: str
    text: str
    samples: list[tuple[str, Labels, float]]

    @property
    def counted(self) -> bool:
        return self.kind in _COUNTED

    @property
    def each(self) -> bool:
        return self.name.startswith(_EACH)


Page = list[Family]


class Collects(Protocol):
    """A registry, as far as it matters here."""

    def collect(self) -> Iterable[Metric]: ...


def page_of(registry: Collects) -> Page:
    """Everything in a registry as it is now. To be called on the thread that counts."""
    return [
        Family(
            metric.name,
            metric.type,
            metric.documentation,
            [
                (sample.name, tuple(sample.labels.items()), float(sample.value))
                for sample in metric.samples
                if not sample.name.endswith("_created")  # a sum of dates says nothing
            ],
        )
        for metric in registry.collect()
    ]


def total(past: Page, workers: Mapping[str, Page]) -> Page:
    """One Page of what was counted before (`past`) and of every worker's, by its name."""
    sums: dict[str, Family] = {}
    values: dict[str, dict[tuple[str, Labels], float]] = {}
    for worker, page in (("", past), *workers.items()):
        for family in page:
            sums.setdefault(family.name, family)
            kept = values.setdefault(family.name, {})
            add = _adder(family)
            for name, labels, value in family.samples:
                where = (name, (*labels, ("worker", worker)) if family.each else labels)
                kept[where] = add(kept[where], value) if where in kept else value
    return [
        Family(name, family.kind, family.text, [(*where, value) for where, value in values[name].items()])
        for name, family in sums.items()
    ]


def lasting(past: Page, page: Page) -> Page:
    """`past` with what a worker that is gone had counted."""
    return total(past, {"": [family for family in page if family.counted and not family.each]})


def text(page: Page) -> bytes:
    """The page as Prometheus reads it."""
    return generate_latest(_Shown(page))


class _Shown:
    def __init__(self, page: Page) -> None:
        self._page = page

    def collect(self) -> Iterator[Metric]:
        for family in self._page:
            metric = Metric(family.name, family.text, family.kind)
            for name, labels, value in family.samples:
                metric.add_sample(name, dict(labels), value)
            yield metric


def _adder(family: Family) -> Callable[[float, float], float]:
    def add(one: float, other: float) -> float:
        return one + other

    if family.counted:
        return add
    if family.kind == "info":
        return max
    return next((how for ends, how in GAUGES if family.name.endswith(ends)), add)
