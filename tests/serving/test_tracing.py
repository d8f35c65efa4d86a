"""Spans made of exchanges: by the conventions, with what was really used, and without a word of anybody's.

The last tests run `tempera serve` with a collector of our own on loopback that reads the protobuf.
"""

# ruff: noqa: E402 - what needs the extra is imported after the look whether it is there
from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.log.digest import digest
from gateway.policy.config import Upstream
from gateway.policy.params import Effective
from gateway.serving.tracing import open_tracing
from tests.contract.targets import gateway, send
from tests.fakes import FakeEngine
from tests.log.made import assigned, exchange, plan

for needed in ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http", "opentelemetry.proto"):
    pytest.importorskip(needed, reason="the extra otel is not installed")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from gateway.serving.tracing import Tracing

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
ENGINES = {"default": Upstream(base_url="http://engine:8000/v1")}
CANARY = "canary-7f3a"


@pytest.fixture
def spans_of() -> Iterator[Callable[..., tuple[ReadableSpan, ...]]]:
    """The spans of exchanges with these fields."""
    memory = InMemorySpanExporter()
    tracing = Tracing(SimpleSpanProcessor(memory), ENGINES)

    def make(**changes: Any) -> tuple[ReadableSpan, ...]:
        offered = exchange(**changes)
        tracing(digest(offered), offered)
        return memory.get_finished_spans()

    yield make
    tracing.close()


def test_a_span_says_what_was_really_used(spans_of: Callable[..., tuple[ReadableSpan, ...]]) -> None:
    decided = plan(
        effective=Effective(
            {"temperature": 1, "top_p": 0.9, "min_p": 0.1, "max_tokens": 64, "seed": 7, "stop": (CANARY,)},
            plan().effective.adjustments,
            {"temperature": 1.4},
        ),
        assignment=assigned("heat", "hot", "u1"),
    )
    (span,) = spans_of(at=1_700_000_000.25, plan=decided, duration=1.5, ttft=0.25, stream=False)
    assert (span.name, span.kind, span.parent) == ("chat m", SpanKind.CLIENT, None)
    assert (span.start_time, span.end_time) == (1_700_000_000_250_000_000, 1_700_000_001_750_000_000)
    assert span.status.status_code is StatusCode.UNSET
    found = dict(span.attributes or {})
    unit = found.pop("tempera.exchange")
    assert isinstance(unit, str)
    assert found == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "server.address": "engine",
        "server.port": 8000,
        "gen_ai.request.model": "m",
        "gen_ai.request.stream": False,
        "gen_ai.request.temperature": 1.0,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.max_tokens": 64,
        "gen_ai.request.seed": 7,
        "tempera.request.min_p": 0.1,
        "gen_ai.response.id": "chatcmpl-7",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.response.time_to_first_chunk": 0.25,
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 2,
        "http.response.status_code": 200,
        "tempera.protocol": "chat",
        "tempera.outcome": "ok",
        "tempera.preset": "creative",
        "tempera.revision": "0123456789ab",
        "tempera.adjusted": ("temperature:bound",),
        "tempera.experiment": "heat",
        "tempera.variant": "hot",
    }
    assert span.resource.attributes["service.name"] == "tempera"


@pytest.mark.parametrize(
    ("changes", "error", "name"),
    [
        ({"outcome": "upstream_timeout", "error": "upstream_timeout", "status": 504}, "upstream_timeout", "chat m"),
        ({"outcome": "upstream_error", "error": "anything the engine says"}, "upstream_error", "chat m"),
        ({"outcome": "rejected", "error": "out_of_range", "status": 400, "plan": None}, "out_of_range", "chat"),
        ({"outcome": "client_disconnect", "status": 200}, None, "chat m"),
        ({"protocol": "completions"}, None, "text_completion m"),
        ({"protocol": "messages", "reply": [b"not json"]}, None, "chat m"),
    ],
)
def test_how_it_ended(
    changes: dict[str, Any], error: str | None, name: str, spans_of: Callable[..., tuple[ReadableSpan, ...]]
) -> None:
    (span,) = spans_of(**changes)
    assert span.name == name
    assert (span.attributes or {}).get("error.type") == error
    assert span.status.status_code is (StatusCode.UNSET if error is None else StatusCode.ERROR)
    assert (span.attributes or {})["tempera.outcome"] == changes.get("outcome", "ok")


@pytest.mark.parametrize(
    ("header", "parent"),
    [
        (f"00-{TRACE}-{PARENT}-01", PARENT),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE}", None),
        (CANARY, None),
        ("", None),
    ],
)
def test_a_client_that_traces_is_the_parent(
    header: str, parent: str | None, spans_of: Callable[..., tuple[ReadableSpan, ...]]
) -> None:
    (span,) = spans_of(trace=header)
    assert (None if span.parent is None else f"{span.parent.span_id:016x}") == parent
    assert span.context is not None
    assert (f"{span.context.trace_id:032x}" == TRACE) is (parent is not None)


def test_a_client_that_does_not_sample_gets_no_span(spans_of: Callable[..., tuple[ReadableSpan, ...]]) -> None:
    assert spans_of(trace=f"00-{TRACE}-{PARENT}-00") == ()


def test_no_number_is_too_large_for_the_wire(spans_of: Callable[..., tuple[ReadableSpan, ...]]) -> None:
    reply = {"id": "r", "choices": [], "usage": {"prompt_tokens": 10**30, "completion_tokens": 1}}
    (span,) = spans_of(plan=plan(effective=Effective({"seed": 10**30, "temperature": 0.5})), reply=reply)
    assert not {"gen_ai.request.seed", "gen_ai.usage.input_tokens"} & (span.attributes or {}).keys()


@pytest.mark.parametrize(
    "endpoint", ["collector:4318", "ftp://collector", "http://", "http://collector:4318/v1/traces"]
)
def test_an_endpoint_that_cannot_be_used_is_said(endpoint: str) -> None:
    with pytest.raises(ValueError, match=r"http\(s\)://host"):
        open_tracing(endpoint, ENGINES)


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ValueError, match=r"tempera-gateway\[otel\]"):
        open_tracing("http://127.0.0.1:4318", ENGINES)
    assert open_tracing(None, ENGINES) is None


class Collector:
    """An OTLP/HTTP receiver; `spans` are name, attributes and the rest as the protobuf has them."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.bytes = b""
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.path == "/v1/traces":
                    collector.bytes += body
                    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                        for scope in resource.scope_spans:
                            collector.spans += scope.spans
                self.send_response(200 if self.path == "/v1/traces" else 404)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_a_gateway_tells_a_collector_of_every_exchange_that_is_logged(tmp_path: Path, collector: Collector) -> None:
    presets = tmp_path / "presets.yaml"
    words = {"en": "For the tests", "zh": "测试用"}
    rules = {"temperature": {"default": 0.7, "min": 0.1, "max": 0.9}}
    entries = {
        name: {"title": words, "hint": words, "parameters": rules, "log": log}
        for name, log in (("loud", "full"), ("meek", "parameters"), ("mute", "off"))
    }
    presets.write_bytes(msgspec.json.encode({"default": "loud", "presets": entries}))
    traced = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    asked = {
        "messages": [{"role": "user", "content": CANARY}],
        "temperature": 1.9,
        "stop": [f"not {CANARY}"],
        "user": CANARY,
    }
    with FakeEngine.in_thread(text=CANARY) as engine:
        flags = ("--presets", str(presets), "--upstream", engine.url)
        environment = {"TEMPERA_OTLP_ENDPOINT": collector.url, "OTEL_SERVICE_NAME": "ours"}
        with gateway(tmp_path, *flags, **environment) as url:
            path = "/v1/chat/completions"
            for name in entries:
                for stream in (False, True):
                    body = msgspec.json.encode(asked | {"model": name, "stream": stream})
                    assert send(url, "POST", path, body, traced).status == 200
            assert send(url, "POST", path, b'{"model": "nobody"}', traced).status == 404
        # The end of the process has sent what was waiting.
    found = [{pair.key: pair.value for pair in span.attributes} for span in collector.spans]
    names = sorted(span.name for span in collector.spans)
    model = names[-1].removeprefix("chat ")
    assert names == ["chat", *[f"chat {model}"] * 4], "two presets are logged, one is not"
    planned = [attributes for attributes in found if "tempera.preset" in attributes]
    assert sorted(each["tempera.preset"].string_value for each in planned) == ["loud", "loud", "meek", "meek"]
    assert {each["gen_ai.request.temperature"].double_value for each in planned} == {0.9}, "the effective one"
    assert all(each["gen_ai.usage.output_tokens"].int_value > 0 for each in planned)
    assert sum("gen_ai.response.time_to_first_chunk" in each for each in planned) == 2
    (refused,) = (each for each in found if "tempera.preset" not in each)
    assert refused["error.type"].string_value == "model_not_found"
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    assert {span.parent_span_id.hex() for span in collector.spans} == {PARENT}
    assert all(0 < span.end_time_unix_nano - span.start_time_unix_nano < 60e9 for span in collector.spans)
    assert b"ours" in collector.bytes
    assert CANARY.encode() not in collector.bytes


def test_a_collector_that_is_away_changes_nothing_for_a_client(tmp_path: Path) -> None:
    with (
        FakeEngine.in_thread() as engine,
        gateway(tmp_path, "--upstream", engine.url, TEMPERA_OTLP_ENDPOINT="http://127.0.0.1:9") as url,
    ):
        body = b'{"messages": [{"role": "user", "content": "Hi"}]}'
        assert send(url, "POST", "/v1/chat/completions", body, {}).status == 200
    # It has ended by itself, in order, or `gateway` would have failed: the end waits for the collector, not for long.
