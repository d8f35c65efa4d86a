"""Prometheus metrics of the data path.

Labels come from the config and from fixed tables, never from a client, so their number is bounded.

Knows what an exchange says of itself; reads no bodies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.log.exchange import RawExchange
from gateway.serving.counting import Buckets, Counts

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_OVERHEAD: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25)


class _LogNumbers(Collector):
    """The sample log's counters, under the names of `Log.stats`."""

    def __init__(self, stats: Callable[[], dict[str, Any]]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        found = self._stats()
        for name in ("offered", "written", "spooled", "replayed"):
            yield CounterMetricFamily(f"tempera_log_{name}", f"Exchanges {name}.", value=found[name])
        for name in ("left_out", "dropped"):
            family = CounterMetricFamily(f"tempera_log_{name}", f"Exchanges {name}, by why.", labels=("reason",))
            for reason, number in found[name].items():
                family.add_metric((reason,), number)
            yield family
        yield GaugeMetricFamily("tempera_log_queued_bytes", "Waiting to be written.", value=found["queued_bytes"])
        yield GaugeMetricFamily("tempera_log_spool_bytes", "Waiting in the spool.", value=found["spool_bytes"])
        yield GaugeMetricFamily(
            "tempera_log_database_up", "Whether the database takes rows.", value=found["database"] != "down"
        )


class Metrics:
    """`observe` is called once per exchange, on the event loop."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.registry = registry
        labels = ("preset", "protocol")
        self._requests = Counts("tempera_requests", "Generation requests by how they ended.", (*labels, "outcome"))
        self._duration = Buckets(
            "tempera_request_seconds", "From the whole request to the end of the reply.", labels, _SECONDS
        )
        self._ttft = Buckets(
            "tempera_first_token_seconds",
            "From the whole request to the first event with text (streams only).",
            labels,
            _SECONDS,
        )
        self._overhead = Buckets(
            "tempera_overhead_seconds",
            "Spent in the gateway before a request left for the engine.",
            ("protocol",),
            _OVERHEAD,
        )
        self._adjusted = Counts(
            "tempera_adjustments", "Parameters changed on the way, by why.", ("preset", "parameter", "reason")
        )
        for collector in (self._requests, self._duration, self._ttft, self._overhead, self._adjusted):
            registry.register(collector)
        self.in_flight = 0  # kept by whoever counts, read when Prometheus asks
        Gauge("tempera_in_flight", "Requests on the data path now.", registry=registry).set_function(
            lambda: self.in_flight
        )
        self.reloads = Counter(
            "tempera_reloads", "Readings of the presets file by how they ended.", ("outcome",), registry=registry
        )

    def observe(self, exchange: RawExchange) -> None:
        """Count one finished exchange."""
        plan, protocol = exchange.plan, exchange.protocol
        preset = "none" if plan is None else plan.preset
        both = (preset, protocol)
        self._requests.add((preset, protocol, exchange.outcome))
        self._duration.observe(both, exchange.duration)
        if exchange.ttft is not None:
            self._ttft.observe(both, exchange.ttft)
        if plan is not None:
            self._overhead.observe((protocol,), exchange.overhead)
            for adjustment in plan.effective.adjustments:
                self._adjusted.add((preset, adjustment.name, adjustment.by))

    def watch_log(self, stats: Callable[[], dict[str, Any]]) -> None:
        """Show the log's own numbers, read when Prometheus asks."""
        self.registry.register(_LogNumbers(stats))

    def page(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)
