"""What the gateway adds: latency and CPU per request and per streamed chunk, engine direct against through the gateway.

    python benchmarks/overhead.py [--seconds 3] [--reps 3] [--gateway 'COMMAND with {port} and {upstream}']

The engine (canned bytes) and this client share one core, the gateway has another to itself where there are two and
`taskset`. CPU is the scheduler's own count of the gateway's process tree, so idle time does not count. Direct and
through take turns; figures are medians. The last line of output is one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import uvloop

HERE = Path(__file__).resolve().parent
GATEWAY = f"{sys.executable} -m gateway.cli serve --port {{port}} --upstream {{upstream}}"
MESSAGES = [{"role": "user", "content": "lorem ipsum dolor " * 50}]
# name: connections, streamed chunks (0: one JSON body), milliseconds between chunks
WORK = {"latency": (1, 0, 0), "requests": (32, 0, 0), "streams": (100, 50, 20)}


class Client(asyncio.Protocol):
    """One connection that sends the same request again as soon as the reply is whole, until `until`."""

    def __init__(self, request: bytes, until: float, stream: bool) -> None:
        self._request, self._until, self._stream = request, until, stream
        self.times: list[float] = []
        self.chunks = 0
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._stream:
            self.chunks += data.count(b'"content":" word"')
            whole = self._buffer.endswith(b"0\r\n\r\n")
        else:
            head, found, body = self._buffer.partition(b"\r\n\r\n")
            length = next((int(h[15:]) for h in head.lower().split(b"\r\n") if h.startswith(b"content-length:")), 0)
            whole = bool(found) and len(body) >= length
        if whole:
            if not self._buffer.startswith(b"HTTP/1.1 200"):
                self.done.set_exception(RuntimeError(self._buffer[:200].decode(errors="replace")))
                return
            self.times.append(time.perf_counter() - self._began)
            self._send()

    def _send(self) -> None:
        if time.perf_counter() >= self._until:
            self.done.set_result(None)
            self._transport.close()
            return
        self._buffer = b""
        self._began = time.perf_counter()
        self._transport.write(self._request)


def request(port: int, chunks: int, pace: int) -> bytes:
    body = {"model": "bench", "messages": MESSAGES, "max_tokens": chunks or 64}
    if chunks:
        body |= {"stream": True, "seed": pace}
    data = json.dumps(body, separators=(",", ":")).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
    return head.encode() + b"content-length: %d\r\n\r\n" % len(data) + data


async def load(port: int, work: str, seconds: float) -> dict[str, float]:
    """One run of one workload: requests, chunks, median seconds per request."""
    connections, chunks, pace = WORK[work]
    until = time.perf_counter() + seconds
    loop, clients = asyncio.get_running_loop(), []
    for _ in range(connections):
        made = await loop.create_connection(
            lambda: Client(request(port, chunks, pace), until, chunks > 0), "127.0.0.1", port
        )
        clients.append(made[1])
    await asyncio.gather(*(client.done for client in clients))
    times = [t for client in clients for t in client.times]
    return {"requests": len(times), "chunks": sum(c.chunks for c in clients), "p50": statistics.median(times)}


def tree(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            parent = int(Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(entry))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def cpu(pids: list[int]) -> float:
    total = 0
    for pid in pids:
        for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            total += int(path.read_text().split()[0])
    return total / 1e9


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(command: list[str], core: int, port: int, path: str, folder: Path) -> subprocess.Popen[bytes]:
    pinned = ["taskset", "-c", str(core)] if shutil.which("taskset") and (os.cpu_count() or 1) > 1 else []
    environ = {**os.environ, "TEMPERA_DATA_DIR": str(folder), "PYTHONPATH": str(HERE.parent)}
    process = subprocess.Popen([*pinned, *command], env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(300):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2).read()
        except (urllib.error.URLError, OSError):
            if process.poll() is not None:
                sys.exit(f"{command} ended with {process.returncode}")
            time.sleep(0.1)
        else:
            return process
    sys.exit(f"{command} does not answer")


def measure(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    engine_port, port = free_port(), free_port()
    upstream = f"http://127.0.0.1:{engine_port}"
    command = shlex.split(options.gateway.format(port=port, upstream=upstream))
    engine = start([sys.executable, str(HERE / "engine.py"), str(engine_port)], 1, engine_port, "/v1/models", folder)
    gateway = start(command, 0, port, "/readyz", folder)
    if (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(0, {1})
    rows: dict[str, list[dict[str, float]]] = {work: [] for work in WORK}
    try:
        uvloop.run(load(port, "requests", 0.5))
        for _ in range(options.reps):
            for work in WORK:
                direct = uvloop.run(load(engine_port, work, options.seconds))
                pids = tree(gateway.pid)
                before = cpu(pids)
                through = uvloop.run(load(port, work, options.seconds))
                used = cpu(pids) - before
                row = {
                    "direct_p50_us": direct["p50"] * 1e6,
                    "through_p50_us": through["p50"] * 1e6,
                    "added_p50_us": (through["p50"] - direct["p50"]) * 1e6,
                    "cpu_us_per_request": used / through["requests"] * 1e6,
                }
                if through["chunks"]:
                    row["cpu_us_per_chunk"] = used / through["chunks"] * 1e6
                rows[work].append(row)
    finally:
        for process in (gateway, engine):
            process.send_signal(signal.SIGTERM)
            process.wait(30)
    return {
        work: {name: round(statistics.median(row[name] for row in found), 1) for name in found[0]}
        for work, found in rows.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--gateway", default=GATEWAY)
    options = parser.parse_args()
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        result = measure(options, Path(folder))
    for work, row in result.items():
        connections, chunks, pace = WORK[work]
        shape = f"{connections} connections" + (f", {chunks} chunks, one every {pace} ms" if chunks else "")
        print(f"{work} ({shape})")
        for name, value in row.items():
            print(f"  {name:20} {value:10.1f}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
