"""What 1,000, 10,000 and 100,000 concurrent streams need, computed from what was measured: docs/scale.md, "The plan".

    python benchmarks/plan.py            prints the page's tables in Markdown
    python benchmarks/plan.py --write    puts them into docs/scale.md

FIGURES is the one place to edit when something was measured anew; a test holds the page to this output. The CPU per
chunk and per request is that of the newest run which `benchmarks/simulate.py --all` kept; the rest is edited by hand:
memory and rows after benchmarks/capacity.py, the router after a comparison with it. Knows arithmetic; measures nothing.
The last line of output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "scale.md"
RUNS = Path(__file__).resolve().parent / "runs"
BEGIN, END = "<!-- computed by benchmarks/plan.py --write -->", "<!-- end of what is computed -->"
STREAMS = (1_000, 10_000, 100_000)
# An event of vLLM 0.32 as it leaves it, chunk framing included.
EVENT = (
    b'f8\r\ndata: {"id":"chatcmpl-8f1d3e0c5b6a4c7d9e0f1a2b3c4d5e6f","object":"chat.completion.chunk",'
    b'"created":1795000000,'
    b'"model":"qwen2.5-7b-instruct","choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,'
    b'"finish_reason":null,"token_ids":null}]}\n\n\r\n'
)
HEADERS = 66  # bytes of Ethernet, IPv4 and TCP (with timestamps) around a chunk that travels alone


@dataclass(frozen=True)
class Figure:
    """A number with its unit and where it is from."""

    value: float
    unit: str
    source: str


def measured() -> tuple[Figure, Figure]:
    """CPU of a gateway per chunk and per request, from the newest run: its calmest step, where chunks share nothing."""
    path = max(RUNS.glob("scaleout-*.json"))
    run = json.loads(path.read_text(encoding="utf-8"))
    row = min((row for row in run["rows"] if row["gateways"] == 1), key=lambda row: float(row["streams"]))
    request = round(run["request_us"])
    chunk = round(row["cpu_us_per_chunk"]["gateways"] - request / run["chunks_per_stream"], 1)
    where = f"measured, log on: benchmarks/runs/{path.name}"
    return Figure(chunk, "us of one core", where), Figure(request, "us of one core", where)


_chunk, _request = measured()
FIGURES = {
    "chunk_cpu": _chunk,
    "request_cpu": _request,
    "idle_memory": Figure(74.2, "MB per worker", "measured: benchmarks/capacity.py, 2026-11-23"),
    "stream_memory": Figure(46.5, "kB per open stream", "measured: benchmarks/capacity.py (500 and 1,000 streams)"),
    "row_rate": Figure(41_675, "rows/s by one writer", "measured: benchmarks/capacity.py (PostgreSQL, fsync off)"),
    "row_size": Figure(2_221, "bytes per row", "measured: benchmarks/capacity.py (1 KB prompts), indexes included"),
    "router_cpu": Figure(28, "us of one core per chunk", "measured, vllm-router 0.1.17: docs/performance.md"),
    "chunk_size": Figure(len(EVENT) + HEADERS, "bytes per chunk", "counted: an event of vLLM 0.32 and its headers"),
    "chunk_rate": Figure(20, "chunks/s per stream", "assumed: a token every 50 ms on a busy engine"),
    "reply": Figure(400, "chunks per reply", "assumed"),
    "busy": Figure(
        0.6, "of a core", "chosen: a queue with constant service (M/D/1) waits 0.75 services there, 2 at 80%"
    ),
    "router_cores": Figure(8, "cores per router", "assumed"),
    "connections": Figure(
        2, "database connections per worker", "by design: the log's writer, and readers now and then"
    ),
    "connection_limit": Figure(100, "connections", "PostgreSQL's default max_connections"),
    "disk": Figure(1e12, "bytes", "assumed: a disk of 1 TB for the log"),
    "retention": Figure(30, "days", "assumed: TEMPERA_LOG_RETENTION_DAYS=30"),
    "link": Figure(10e9, "bit/s", "assumed: the balancer's network card, each direction"),
    "places": Figure(1000, "requests under way per worker", "the default of TEMPERA_MAX_IN_FLIGHT"),
    "descriptors": Figure(
        524_288,
        "open files",
        "the usual hard limit (systemd): a gateway raises its own to that at its start; containers vary",
    ),
}
_v = {name: figure.value for name, figure in FIGURES.items()}


@dataclass(frozen=True)
class Limit:
    """A part, the number of streams that fill one of it as it comes, and what moves that."""

    part: str
    streams: float
    moves: str


def requests_per_second(streams: float) -> float:
    """Every stream that ends is followed by another one."""
    return streams * _v["chunk_rate"] / _v["reply"]


def cores(streams: float) -> float:
    """CPU of the gateways, in cores."""
    return streams * (_v["chunk_rate"] * _v["chunk_cpu"] + requests_per_second(1) * _v["request_cpu"]) / 1e6


def streams_per_worker() -> int:
    return math.floor(_v["busy"] / cores(1))


def rows_per_day(streams: float) -> float:
    return requests_per_second(streams) * 86_400


def limits() -> list[Limit]:
    """What is full first comes first."""
    per_stream = _v["chunk_rate"] * _v["chunk_size"] * 8
    found = [
        Limit("one worker's core", streams_per_worker(), "more workers and gateways: they share nothing"),
        Limit(
            "1 TB for the log, rows kept 30 days",
            _v["disk"] / _v["retention"] / rows_per_day(1) / _v["row_size"],
            "`log_share` or `log: parameters` in a preset, fewer days, a larger disk",
        ),
        Limit(
            "one vllm-router with 8 cores",
            _v["router_cores"] * _v["busy"] / (_v["chunk_rate"] * _v["router_cpu"] / 1e6),
            "more cores; several routers with engines of their own, and a balancer that keeps `x-session-id` together",
        ),
        Limit("the places of one worker", _v["places"], "TEMPERA_MAX_IN_FLIGHT; its core is full first"),
        Limit(
            "open files of a worker at the usual hard limit",
            _v["descriptors"] / 2,
            "`ulimit -Hn` (systemd: LimitNOFILE); a stream has two",
        ),
        Limit(
            "PostgreSQL's connections",
            _v["connection_limit"] / _v["connections"] * streams_per_worker(),
            "max_connections, or PgBouncer in session mode",
        ),
        Limit("the balancer's 10 Gbit/s", _v["link"] * _v["busy"] / per_stream, "more balancers (DNS, anycast)"),
        Limit(
            "rows into PostgreSQL by one connection",
            _v["row_rate"] * _v["busy"] / requests_per_second(1),
            "nothing to move: every worker has a connection of its own",
        ),
    ]
    return sorted(found, key=lambda limit: limit.streams)


def needs(streams: int) -> dict[str, float]:
    """What so many streams need, as numbers."""
    workers = max(2, math.ceil(streams / streams_per_worker()))
    each = streams / workers
    return {
        "chunks_per_second": streams * _v["chunk_rate"],
        "requests_per_second": requests_per_second(streams),
        "cores_used": round(cores(streams), 2),
        "workers": workers,
        "memory_mb_per_worker": round(_v["idle_memory"] + each * _v["stream_memory"] / 1000),
        "open_files_per_worker": math.ceil(2 * each),
        "router_cores": round(streams * _v["chunk_rate"] * _v["router_cpu"] / 1e6 / _v["busy"], 1),
        "rows_per_second": requests_per_second(streams),
        "log_gb_per_day": round(rows_per_day(streams) * _v["row_size"] / 1e9, 1),
        "database_connections": math.ceil(workers * _v["connections"]),
        "gbit_per_second_each_way": round(streams * _v["chunk_rate"] * _v["chunk_size"] * 8 / 1e9, 2),
    }


ROWS = {
    "chunks_per_second": "chunks per second",
    "requests_per_second": "requests per second",
    "cores_used": "CPU of the gateways, cores",
    "workers": "workers (one core each, 60% busy; at least two)",
    "memory_mb_per_worker": "memory of a worker, MB",
    "open_files_per_worker": "open files of a worker",
    "router_cores": "cores for vllm-router, 60% busy",
    "rows_per_second": "rows per second into PostgreSQL",
    "log_gb_per_day": "log per day, GB",
    "database_connections": "database connections",
    "gbit_per_second_each_way": "network, Gbit/s from the engines and again to the clients",
}


def markdown() -> Iterator[str]:
    yield "| concurrent streams | " + " | ".join(f"{streams:,}" for streams in STREAMS) + " |"
    yield "|---|" + "---:|" * len(STREAMS)
    columns = [needs(streams) for streams in STREAMS]
    for name, words in ROWS.items():
        yield f"| {words} | " + " | ".join(f"{column[name]:,.10g}" for column in columns) + " |"
    yield ""
    yield "| full first | at so many streams | what moves it |"
    yield "|---|---:|---|"
    for limit in limits():
        yield f"| {limit.part} | {float(f'{limit.streams:.2g}'):,.0f} | {limit.moves} |"
    yield ""
    yield "| computed from | | source |"
    yield "|---|---:|---|"
    for name, figure in FIGURES.items():
        yield f"| {name.replace('_', ' ')} | {figure.value:,.10g} {figure.unit} | {figure.source} |"


def page(text: str) -> str:
    """The page with these tables in their place. Raises ValueError for a page without the two marks."""
    before, rest = text[: text.index(BEGIN)], text[text.index(END) :]
    return f"{before}{BEGIN}\n\n" + "\n".join(markdown()) + f"\n\n{rest}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/scale.md")
    if parser.parse_args().write:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print("\n".join(markdown()))
    print(json.dumps({str(streams): needs(streams) for streams in STREAMS}))


if __name__ == "__main__":
    main()
