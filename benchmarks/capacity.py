"""What one gateway takes: memory per open stream, rows per second into the log's database, bytes per row and per chunk.

    python benchmarks/capacity.py [--streams 0,500,1000] [--rows 20000]

Streams are open for ten seconds, a chunk every 100 ms, so that memory and not CPU is what is looked at. Rows are
copies of one that these streams left in the log, written by one thread in batches as the log writes them: into SQLite,
and into a private PostgreSQL where the machine has one (fsync off: a commit of 500 rows adds one flush of the disk).
What is found here goes into benchmarks/plan.py by hand. The last line of output is one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import signal
import socket
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import uvloop

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks.overhead import GATEWAY, Client, free_port, request, start, tree  # noqa: E402
from gateway.log import store  # noqa: E402
from gateway.log.row import COLUMNS, Row, new_id  # noqa: E402

PACE = 100  # milliseconds between chunks
SECONDS = 10
BATCH = 500  # rows per transaction, as in the log


def resident(pids: list[int]) -> int:
    """Bytes of memory that processes hold."""
    total = 0
    for pid in pids:
        text = Path(f"/proc/{pid}/status").read_text()
        total += next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS:")) * 1024
    return total


async def streams(port: int, count: int, pids: list[int]) -> int:
    """The most bytes that `pids` held while `count` streams were open."""
    until, loop = time.perf_counter() + 1, asyncio.get_running_loop()
    sent = request(port, SECONDS * 1000 // PACE, PACE)
    clients = [
        (await loop.create_connection(lambda: Client(sent, until, True), "127.0.0.1", port))[1] for _ in range(count)
    ]
    open_streams = asyncio.gather(*(client.done for client in clients))
    most = resident(pids)
    while not open_streams.done() and count:
        await asyncio.sleep(0.5)
        most = max(most, resident(pids))
    await open_streams
    return most


def chunk_bytes(port: int) -> float:
    """Bytes of one more chunk of a stream, as they leave the gateway."""

    def whole(chunks: int) -> int:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(request(port, chunks, 0))
            received = b""
            while not received.endswith(b"0\r\n\r\n"):
                received += connection.recv(65536)
        return len(received)

    return (whole(110) - whole(10)) / 100


def rows_like(path: Path, count: int) -> list[Row]:
    """Rows with ids of their own and the contents of the newest one in a SQLite log."""
    names = ", ".join(f'"{name}"' for name in COLUMNS)
    with sqlite3.connect(path) as database:
        (found,) = database.execute(f"SELECT {names} FROM exchanges ORDER BY id DESC LIMIT 1")
    like = dict(zip(COLUMNS, found, strict=True)) | {"truncated": False}
    rows = []
    for _ in range(count):
        name = new_id(time.time())
        rows.append(Row(**like | {"id": name, "request_id": name}))
    return rows


def write(url: str, rows: list[Row]) -> dict[str, float]:
    """Rows per second and CPU microseconds per row of one writer; bytes on disk per row, indexes included."""
    engine = store.connect(url)
    store.prepare(engine)
    store.write(engine, rows[:BATCH])
    before, size = (time.perf_counter(), time.thread_time()), _size(engine)
    for at in range(BATCH, len(rows), BATCH):
        store.write(engine, rows[at : at + BATCH])
    seconds, cpu = time.perf_counter() - before[0], time.thread_time() - before[1]
    count = len(rows) - BATCH
    result = {
        "rows_per_second": round(count / seconds),
        "writer_cpu_us_per_row": round(cpu / count * 1e6, 1),
        "bytes_per_row": round((_size(engine) - size) / count),
    }
    engine.dispose()
    return result


def _size(engine: store.Engine) -> int:
    sizes = {
        "sqlite": "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()",
        "postgresql": "SELECT pg_total_relation_size('exchanges')",
    }
    with engine.connect() as connection:
        return int(connection.exec_driver_sql(sizes[engine.dialect.name]).scalar_one())


def databases(folder: Path) -> Iterator[tuple[str, str]]:
    """Names and URLs of what there is to write to."""
    yield "sqlite", store.default_url(folder)
    import pytest

    from tests.log import postgres

    try:
        with postgres.running() as server:
            yield "postgresql", server.url()
    except pytest.skip.Exception as reason:
        print(f"postgresql: {reason}")


def measure(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    engine_port, port = free_port(), free_port()
    engine = start([sys.executable, str(HERE / "engine.py"), str(engine_port)], 1, engine_port, "/v1/models", folder)
    command = shlex.split(options.gateway.format(port=port, upstream=f"http://127.0.0.1:{engine_port}"))
    gateway = start(command, 0, port, "/readyz", folder)
    memory = {}
    try:
        per_chunk = chunk_bytes(port)
        for count in map(int, options.streams.split(",")):
            memory[count] = round(uvloop.run(streams(port, count, tree(gateway.pid))) / 1e6, 1)
            print(f"{count:6} streams {memory[count]:8.1f} MB", flush=True)
    finally:
        for process in (gateway, engine):
            process.send_signal(signal.SIGTERM)
            process.wait(30)
    rows = rows_like(folder / "log.db", options.rows)
    written = {}
    with TemporaryDirectory() as other:
        for name, url in databases(Path(other)):
            written[name] = write(url, rows)
            print(f"{name:10} {written[name]}", flush=True)
    (least, *_, most) = sorted(memory)
    each = round((memory[most] - memory[least]) / max(1, most - least) * 1e6)
    return {"memory_mb": memory, "bytes_per_stream": each, "bytes_per_chunk": per_chunk, "rows": written}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", default="0,500,1000", help="how many are open, smallest first")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--gateway", default=GATEWAY)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        print(json.dumps(measure(options, Path(folder))))


if __name__ == "__main__":
    main()
