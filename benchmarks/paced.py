"""Paced streams through one or several gateways: chunks per second, how late each chunk arrives, what each part costs.

    python benchmarks/paced.py --together [--gateways 2] [--streams 200] [--pace 20] [--reps 10] > run.json

An engine of canned bytes writes the time into every chunk; the client reads it back. Engine and client share core 1,
the gateways core 0 (two that share a core carry no more than one: what is looked at is the waiting). The same streams
are run straight to the engine, through one gateway and through all, in turns. `benchmarks/simulate.py --against
run.json` holds the simulation against what was measured here. Output is one JSON document: of each the calmest
repetition, costs in CPU microseconds, latencies in microseconds from engine to client.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import re
import shlex
import signal
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import uvloop

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks import engine as canned  # noqa: E402
from benchmarks import overhead  # noqa: E402

CHUNKS = 64  # of one stream
_STAMP = b"@T%016d"
_STAMPED = re.compile(rb"@T(\d{16})")
_TEXT = canned._CHUNK.partition(b"data: ")[2].partition(b"\n\n")[0]
_EVENT = canned._event(_TEXT.replace(b" word", b"@T" + b"0" * 16))
_BEFORE, _, _AFTER = _EVENT.partition(b"@T" + b"0" * 16)


class Engine(canned.Engine):
    """The canned engine, with the time in every chunk and a pace that does not drift.

    `together`: the chunks of all streams leave at once, as from a real engine, which makes a token for each in a step.
    """

    together = False
    _due: float | None = None

    def _step(self, left: int, pace: float) -> None:
        loop = asyncio.get_running_loop()
        if self._due is None:  # the stream begins: with all others, or now
            self._due = (loop.time() // pace + 1) * pace if Engine.together else loop.time()
        elif left == 0:
            self._due = None
            self._transport.write(canned._END)
            return
        else:
            self._transport.write(_BEFORE + _STAMP % (time.monotonic_ns() // 100) + _AFTER)
            self._due, left = self._due + pace, left - 1
        self._timer = loop.call_at(self._due, self._step, left, pace)


class Client(overhead.Client):
    """One connection, one stream after the other; latencies of chunks are kept while `recording`."""

    recording = False
    late: list[float]

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns() // 100
        if Client.recording:
            self.late += [(now - int(stamp)) / 10 for stamp in _STAMPED.findall(data)]
        super().data_received(data)


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", port)
    await server.serve_forever()


async def load(ports: list[int], options: argparse.Namespace, watched: dict[str, list[int]]) -> dict[str, Any]:
    """Streams to `ports` in turn, started over the length of one; then `seconds` in which everything is measured."""
    loop, stream = asyncio.get_running_loop(), CHUNKS * options.pace / 1000
    clients: list[Client] = []
    for number in range(options.streams):
        port = ports[number % len(ports)]
        sent = overhead.request(port, CHUNKS, options.pace)
        _, client = await loop.create_connection(lambda sent=sent: Client(sent, math.inf, True), "127.0.0.1", port)
        client.late = []
        clients.append(client)
        await asyncio.sleep(stream / options.streams)
    before = {name: overhead.cpu(pids) for name, pids in watched.items()}
    mine, began, requests = time.process_time(), time.perf_counter(), sum(len(client.times) for client in clients)
    Client.recording = True
    await asyncio.sleep(options.seconds)
    Client.recording = False
    seconds, used = time.perf_counter() - began, {"client": time.process_time() - mine}
    used |= {name: overhead.cpu(pids) - before[name] for name, pids in watched.items()}
    requests = sum(len(client.times) for client in clients) - requests
    for client in clients:
        client._until = 0.0  # its stream is the last
    await asyncio.gather(*(client.done for client in clients))
    late = sorted(value for client in clients for value in client.late)
    return {
        "chunks_per_second": round(len(late) / seconds, 1),
        "requests_per_second": round(requests / seconds, 1),
        "one_way_us": {
            "mean": round(sum(late) / len(late), 1),
            "p50": late[len(late) // 2],
            "p99": late[len(late) * 99 // 100],
        },
        "cpu_us_per_chunk": {name: round(value / len(late) * 1e6, 2) for name, value in used.items()},
    }


def calmest(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The repetition in which the machine's other work was least in the way."""
    return min(rows, key=lambda row: float(row["one_way_us"]["mean"]))


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    engine_port = overhead.free_port()
    ports = [overhead.free_port() for _ in range(options.gateways)]
    command = [sys.executable, str(Path(__file__).resolve()), "--engine", str(engine_port)]
    command += ["--together"] if options.together else []
    processes = [overhead.start(command, 1, engine_port, "/v1/models", folder)]
    try:
        for number, port in enumerate(ports):
            words = shlex.split(options.gateway.format(port=port, upstream=f"http://127.0.0.1:{engine_port}"))
            processes.append(overhead.start(words, 0, port, "/readyz", folder / str(number)))
        if (os.cpu_count() or 1) > 1:
            os.sched_setaffinity(0, {1})
        engine, *gateways = [overhead.tree(process.pid) for process in processes]
        ways = {
            "direct": ([engine_port], {"engine": engine}),
            "one": (ports[:1], {"engine": engine, "gateways": gateways[0]}),
            "through": (ports, {"engine": engine, "gateways": [pid for pids in gateways for pid in pids]}),
        }
        rows: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
        for _ in range(options.reps):
            for way, (where, watched) in ways.items():
                rows[way].append(uvloop.run(load(where, options, watched)))
    finally:
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)
            process.wait(30)
    setup = {name: getattr(options, name) for name in ("gateways", "streams", "pace", "together", "seconds", "reps")}
    return setup | {"chunks_per_stream": CHUNKS} | {way: calmest(found) for way, found in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gateways", type=int, default=2)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--pace", type=int, default=20, help="milliseconds between the chunks of a stream")
    parser.add_argument("--together", action="store_true", help="the chunks of all streams leave the engine at once")
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--reps", type=int, default=10)
    parser.add_argument("--gateway", default=overhead.GATEWAY)
    parser.add_argument("--engine", type=int, metavar="PORT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        Engine.together = options.together
        uvloop.run(serve(options.engine))
        return
    with TemporaryDirectory() as folder:
        print(json.dumps(run(options, Path(folder))))


if __name__ == "__main__":
    main()
