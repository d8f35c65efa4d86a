"""OpenTelemetry: one span per exchange, made after the fact on the log's writer thread, by the conventions for
generative AI (https://opentelemetry.io/docs/specs/semconv/gen-ai/). The data path pays nothing for it.

A span's parameters are the effective ones. It holds names, numbers and times; never a prompt, a text, a stop sequence,
a user or a key. Knows rows and exchanges; how spans travel is the SDK's business, which reads its own OTEL_* variables
(headers, sampler, resource attributes). Needs the extra `otel`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from gateway.log.exchange import RawExchange
from gateway.log.row import Row
from gateway.log.usage import read_usage
from gateway.policy.config import Upstream
from gateway.policy.params import PARAMS

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

Attribute = str | int | float | bool | tuple[str, ...]
PATIENCE: Final = 5.0  # seconds that the end of the process waits for the collector
_INVALID: Final = "the OTLP endpoint must be http(s)://host[:port] without /v1/traces; got {!r}"
# Ours -> the conventions' name; the other parameters are under tempera.request.
_NAMED: Final = {
    name: f"gen_ai.request.{name}"
    for name in ("temperature", "top_p", "top_k", "max_tokens", "frequency_penalty", "presence_penalty", "seed")
}
_LARGEST: Final = 2**63  # of what a span can hold
_PORTS: Final = {"http": 80, "https": 443}


class Tracing:
    """Call it with a row and its exchange, on the log's writer thread."""

    def __init__(self, processor: SpanProcessor, engines: Mapping[str, Upstream]) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create()
        if str(resource.attributes["service.name"]).startswith("unknown_service"):  # no OTEL_SERVICE_NAME
            resource = resource.merge(Resource({"service.name": "tempera"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("tempera")
        self._context = TraceContextTextMapPropagator().extract
        self._kind, self._failed = SpanKind.CLIENT, Status(StatusCode.ERROR)
        self._engines = {name: _address(engine) for name, engine in engines.items()}

    def __call__(self, row: Row, exchange: RawExchange) -> None:
        """One span; it starts when the request was there and ends with the reply."""
        plan, operation = exchange.plan, operation_of(exchange)
        start = _nanoseconds(exchange.time)
        span = self._tracer.start_span(
            operation if plan is None else f"{operation} {plan.model}",
            context=None if exchange.trace is None else self._context({"traceparent": exchange.trace}),
            kind=self._kind,
            start_time=start,
        )
        if span.is_recording():  # the sampler wants it; the rest costs twice as much
            engine = {} if plan is None else self._engines.get(plan.upstream, {})
            attributes = describe(row, exchange) | engine
            span.set_attributes(attributes)
            if "error.type" in attributes:
                span.set_status(self._failed)
        span.end(start + _nanoseconds(exchange.duration))

    def close(self) -> None:
        """Send what waits, for as long as PATIENCE; a collector that is away does not hold the process."""
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(PATIENCE)


def open_tracing(endpoint: str | None, engines: Mapping[str, Upstream]) -> Tracing | None:
    """Tracing to an OTLP/HTTP collector, None where none is named.

    Raises ValueError without the extra, and for an endpoint that cannot be used.
    """
    if endpoint is None:
        return None
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.endswith("/v1/traces"):
        raise ValueError(_INVALID.format(endpoint))
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ValueError(
            f"traces to {endpoint} need the extra otel: pip install 'tempera-gateway[otel]' ({error.name} is missing)"
        ) from None
    exporter = OTLPSpanExporter(endpoint=endpoint.rstrip("/") + "/v1/traces")
    return Tracing(BatchSpanProcessor(exporter), engines)


def operation_of(exchange: RawExchange) -> str:
    """The conventions' name for what was asked."""
    return "text_completion" if exchange.protocol == "completions" else "chat"


def describe(row: Row, exchange: RawExchange) -> dict[str, Attribute]:
    """The attributes of a span."""
    found: dict[str, Attribute] = {
        "gen_ai.operation.name": operation_of(exchange),
        "gen_ai.request.stream": exchange.stream,
        "tempera.exchange": row.id,
        "tempera.protocol": exchange.protocol,
        "tempera.outcome": exchange.outcome,
    }
    if exchange.status:
        found["http.response.status_code"] = exchange.status
    if exchange.outcome not in ("ok", "client_disconnect"):  # a client may leave: nothing failed
        found["error.type"] = exchange.error or "rejected" if exchange.outcome == "rejected" else exchange.outcome
    if exchange.ttft is not None:
        found["gen_ai.response.time_to_first_chunk"] = exchange.ttft
    if row.response_id:
        found["gen_ai.response.id"] = row.response_id
    if row.finish_reason:
        found["gen_ai.response.finish_reasons"] = (row.finish_reason,)
    usage = read_usage(row)
    if usage.prompt or usage.completion:
        found |= {"gen_ai.usage.input_tokens": usage.prompt, "gen_ai.usage.output_tokens": usage.completion}
    return found | _planned(exchange)


def _planned(exchange: RawExchange) -> dict[str, Attribute]:
    """What was decided before the engine was asked."""
    plan = exchange.plan
    if plan is None:
        return {}
    found: dict[str, Attribute] = {
        "gen_ai.request.model": plan.model,
        "tempera.preset": plan.preset,
        "tempera.revision": plan.revision,
    }
    for name, value in plan.effective.values.items():
        if not isinstance(value, int | float) or abs(value) >= _LARGEST:  # a stop sequence is text
            continue
        whole = name == "seed" or PARAMS[name].integer
        found[_NAMED.get(name) or f"tempera.request.{name}"] = value if whole else float(value)
    if plan.effective.adjustments:
        found["tempera.adjusted"] = tuple(f"{each.name}:{each.by}" for each in plan.effective.adjustments)
    if plan.assignment is not None:
        found["tempera.experiment"], found["tempera.variant"] = plan.assignment.experiment, plan.assignment.variant
    return found


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1_000_000) * 1_000  # a float of today's date holds no more than microseconds


def _address(engine: Upstream) -> dict[str, Attribute]:
    parts = urlsplit(engine.base_url)
    port = parts.port or _PORTS.get(parts.scheme, 0)
    return {
        "gen_ai.provider.name": engine.dialect,
        "server.address": parts.hostname or "",
        "server.port": port,
    }
