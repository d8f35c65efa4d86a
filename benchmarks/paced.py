"""An engine and a client for benchmarks/scaleout.py that hold their pace and say how late each chunk was.

    python benchmarks/paced.py engine PORT
    python benchmarks/paced.py client PORT STREAMS PACE SECONDS

The engine writes the time into every chunk and does not slow down when chunks pile up behind it; the client reads it
back. Chunks per second are those of `SECONDS` in the middle, when all streams are under way; `chunks` are all that
came, so that CPU can be divided by it. Knows neither gateways nor cores. The client's output is one JSON document.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks import engine as canned  # noqa: E402
from benchmarks import overhead  # noqa: E402

CHUNKS = 64  # of one stream
COMMAND = f"{sys.executable} {Path(__file__).resolve()}"
ENGINE, CLIENT = f"{COMMAND} engine {{port}}", f"{COMMAND} client {{port}} {{streams}} {{pace}} {{seconds}}"
BACKLOG = 4096  # with asyncio's 100, gateways that connect at once are made to wait a second, then three
_STAMP = b"@T%016d"
_STAMPED = re.compile(rb"@T(\d{16})")
_TEXT = canned._CHUNK.partition(b"data: ")[2].partition(b"\n\n")[0]
_EVENT = canned._event(_TEXT.replace(b" word", b"@T" + b"0" * 16))
_BEFORE, _, _AFTER = _EVENT.partition(b"@T" + b"0" * 16)


class Engine(canned.Engine):
    """The canned engine, with the time in every chunk and a pace that does not drift."""

    _due: float | None = None

    def _step(self, left: int, pace: float) -> None:
        loop = asyncio.get_running_loop()
        if self._due is None:
            self._due = loop.time()
        elif left == 0:
            self._due = None
            self._transport.write(canned._END)
            return
        else:
            self._transport.write(_BEFORE + _STAMP % (time.monotonic_ns() // 100) + _AFTER)
            self._due, left = self._due + pace, left - 1
        self._timer = loop.call_at(self._due, self._step, left, pace)


class Client(overhead.Client):
    """One connection, one stream after the other; `late` gets microseconds per chunk while `recording`."""

    recording = False
    late: list[float]

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns() // 100
        found = _STAMPED.findall(data)
        self.chunks += len(found)
        if Client.recording:
            self.late += [(now - int(stamp)) / 10 for stamp in found]
        super().data_received(data)
        if not self._buffer.startswith(b"HTTP/1.1 200"[: len(self._buffer)]) and not self.done.done():
            self.done.set_exception(RuntimeError(self._buffer[:200].decode(errors="replace")))


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", port, backlog=BACKLOG)
    await server.serve_forever()


async def load(port: int, streams: int, pace: int, seconds: float) -> dict[str, Any]:
    """Streams begun over the length of one, then `seconds` that count, then the streams end."""
    loop, length = asyncio.get_running_loop(), CHUNKS * pace / 1000
    sent, begun, clients = overhead.request(port, CHUNKS, pace), time.perf_counter(), []
    for number in range(streams):
        await asyncio.sleep(max(0.0, begun + length * number / streams - time.perf_counter()))
        _, client = await loop.create_connection(lambda: Client(sent, math.inf, True), "127.0.0.1", port)
        client.late = []
        clients.append(client)
    whole = asyncio.gather(*(client.done for client in clients))
    await asyncio.wait([whole], timeout=length)  # ends early for an error only
    Client.recording, began = True, time.perf_counter()
    await asyncio.wait([whole], timeout=seconds)
    Client.recording, took = False, time.perf_counter() - began
    for client in clients:
        client._until = 0.0  # its stream is the last
    await whole
    late = sorted(value for client in clients for value in client.late)
    return {
        "chunks": sum(client.chunks for client in clients),
        "cps": len(late) / took,
        "ow50": late[len(late) // 2],
        "ow99": late[len(late) * 99 // 100],
    }


def main() -> None:
    what, port, *rest = sys.argv[1:]
    if what == "engine":
        uvloop.run(serve(int(port)))
    else:
        print(json.dumps(uvloop.run(load(int(port), int(rest[0]), int(rest[1]), float(rest[2])))))


if __name__ == "__main__":
    main()
