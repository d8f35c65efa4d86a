"""Prometheus metrics of one gateway process.

Labels come from the config, from fixed tables and from HTTP's status codes, never from a client, so their number is
bounded. What is counted belongs to the thread that counts it: requests to the event loop, tokens to the log's writer.

Knows what an exchange and its row say of themselves; reads no bodies.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.log.exchange import RawExchange
from gateway.log.row import Row
from gateway.log.usage import read_usage
from gateway.serving.counting import Buckets, Counts
from gateway.serving.state import State

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_OVERHEAD: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25)
_BETWEEN: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
# Shown from the start, as zeros: an alert on an increase sees nothing of a series that begins with its first event.
_DROPPED: Final = ("queue_full", "closed", "unreadable", "spool_full", "disk_full", "refused", "torn")


_TEXTS: Final = {
    "requests": "Generation requests by how they ended and the HTTP status; 0: the client left before there was one.",
    "request_seconds": "From the whole request to the end of the reply.",
    "first_token_seconds": "From the whole request to the first event with text (streams only).",
    "inter_token_seconds": "Mean time between the pieces of a stream, one value per exchange: (duration - time to the "
    "first token) / (pieces - 1). Engines send about one token per piece; a client that reads slowly slows it down.",
    "overhead_seconds": "Spent in the gateway before a request left for the engine.",
    "adjustments": "Parameters changed on the way, by why.",
    "tokens": "Tokens as the engine counted them, of the exchanges that the log reads (not those of presets with log: "
    "off, nor those that log_share leaves out).",
    "in_flight": "Requests on the data path now.",
    "reloads": "Readings of the presets file by how they ended.",
}


class Metrics:
    """`observe` is called once per exchange, on the event loop; `count_tokens` once per row, on the log's writer."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry = CollectorRegistry() if registry is None else registry
        both = ("preset", "protocol")
        self._requests = _counts("requests", (*both, "outcome", "status"))
        self._duration = _buckets("request_seconds", both, _SECONDS)
        self._ttft = _buckets("first_token_seconds", both, _SECONDS)
        self._between = _buckets("inter_token_seconds", both, _BETWEEN)
        self._overhead = _buckets("overhead_seconds", ("protocol",), _OVERHEAD)
        self._adjusted = _counts("adjustments", ("preset", "parameter", "reason"))
        self._tokens = _counts("tokens", (*both, "kind"))
        counted = (self._requests, self._duration, self._ttft, self._between, self._overhead, self._adjusted)
        for collector in (*counted, self._tokens):
            registry.register(collector)
        ProcessCollector(registry=registry)
        self.in_flight = 0  # kept by whoever counts, read when Prometheus asks
        gauge = Gauge("tempera_in_flight", _TEXTS["in_flight"], registry=registry)
        gauge.set_function(lambda: self.in_flight)
        self.reloads = Counter("tempera_reloads", _TEXTS["reloads"], ("outcome",), registry=registry)
        for outcome in ("ok", "refused"):
            self.reloads.labels(outcome)

    def observe(self, exchange: RawExchange) -> None:
        """Count one finished exchange."""
        plan, protocol, ttft = exchange.plan, exchange.protocol, exchange.ttft
        preset = "none" if plan is None else plan.preset
        both = (preset, protocol)
        self._requests.add((preset, protocol, exchange.outcome, exchange.status))
        self._duration.observe(both, exchange.duration)
        if ttft is not None:
            self._ttft.observe(both, ttft)
            if exchange.pieces > 1:
                self._between.observe(both, (exchange.duration - ttft) / (exchange.pieces - 1))
        if plan is not None:
            self._overhead.observe((protocol,), exchange.overhead)
            for adjustment in plan.effective.adjustments:
                self._adjusted.add((preset, adjustment.name, adjustment.by))

    def count_tokens(self, row: Row, exchange: RawExchange) -> None:
        """Count what an exchange used. Never raises: the writer thread has rows to save."""
        usage = read_usage(row)
        preset = "none" if exchange.plan is None else exchange.plan.preset
        if usage.prompt:
            self._tokens.add((preset, exchange.protocol, "prompt"), usage.prompt)
        if usage.completion:
            self._tokens.add((preset, exchange.protocol, "completion"), usage.completion)

    def watch(self, state: State) -> None:
        """Show what the state, its engines and its log say of themselves, read when Prometheus asks."""
        self.registry.register(_StateNumbers(state))
        self.registry.register(_LogNumbers(state))

    def page(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)


class _StateNumbers(Collector):
    """What is in force, and what is in the way."""

    def __init__(self, state: State) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        state = self._state
        yield InfoMetricFamily("tempera_config", "The presets in force.", value={"revision": state.config.revision})
        family = GaugeMetricFamily(
            "tempera_upstream_up", "Whether the engine answered when it was last asked.", labels=("upstream",)
        )
        for name, reached in state.models.reached.items():
            family.add_metric((name,), reached)
        yield family
        yield _flag("tempera_presets_refused", "The presets file is broken, the last good one in force.", state.trouble)
        yield _flag(
            "tempera_keys_refused", "The keys file is broken, the last good one in force.", state.access.trouble
        )
        yield GaugeMetricFamily(
            "tempera_limits_store_up",
            "Whether limits hold as set; 0 while the store that replicas share is away and each counts alone.",
            value=state.access.limiter.trouble is None,
        )
        gate = state.access.gate
        yield GaugeMetricFamily(
            "tempera_waiting", "Requests in flight that wait for a place.", value=0 if gate is None else gate.waiting
        )
        yield _flag("tempera_draining", "No new requests are taken: the gateway stops.", state.draining)


class _LogNumbers(Collector):
    """The sample log's counters, under the names of `Log.stats`."""

    def __init__(self, state: State) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        found = self._state.log.stats()
        for name in ("offered", "written", "spooled", "replayed"):
            yield CounterMetricFamily(f"tempera_log_{name}", f"Exchanges {name}.", value=found[name])
        shown = {"left_out": found["left_out"], "dropped": dict.fromkeys(_DROPPED, 0) | found["dropped"]}
        for name, numbers in shown.items():
            family = CounterMetricFamily(f"tempera_log_{name}", f"Exchanges {name}, by why.", labels=("reason",))
            for reason, number in numbers.items():
                family.add_metric((reason,), number)
            yield family
        yield GaugeMetricFamily("tempera_log_queued_bytes", "Waiting to be written.", value=found["queued_bytes"])
        yield GaugeMetricFamily("tempera_log_spool_bytes", "Waiting in the spool.", value=found["spool_bytes"])
        yield GaugeMetricFamily(
            "tempera_log_database_up", "Whether the database takes rows.", value=found["database"] != "down"
        )


def _counts(name: str, labels: tuple[str, ...]) -> Counts:
    return Counts(f"tempera_{name}", _TEXTS[name], labels)


def _buckets(name: str, labels: tuple[str, ...], bounds: tuple[float, ...]) -> Buckets:
    return Buckets(f"tempera_{name}", _TEXTS[name], labels, bounds)


def _flag(name: str, text: str, truth: Any) -> Metric:
    """A gauge that is 1 or 0."""
    return GaugeMetricFamily(name, text, value=bool(truth))
