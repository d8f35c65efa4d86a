"""Chunks per second at saturation, one gateway against several, and what was in the way.

    python benchmarks/scaleout.py [--gateways 1,2] [--streams 800,1600,2400,3200] [--pace 20] [--seconds 5] [--reps 3]
        [--engine 'COMMAND with {port}'] [--client 'COMMAND with {port} {streams} {chunks} {pace} {seconds}']

Paced streams, more of them in every step. What an installation carries is the most chunks per second it delivered in
any step. A gateway has a core to itself; engine and clients share the cores that are left, or all of them where none
is: then they take from the gateways what `cpu_us_per_chunk` says they take, and no ratio can be read off the machine.
So what was in the way is computed too: the ceiling is what these cores carry at these costs when they do nothing else,
and so the highest ratio that can be seen here; and how many cores it takes before two gateways can show their worth.
A step that others disturbed (0.3 of a core or more) is run again, at most twice.

Engine and client are our own unless told otherwise; a client's last line of output is a JSON document with `chunks` and
`cps` (a second), and may say how late they were (`ow99`, microseconds). The last line of output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import uvloop

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks import overhead  # noqa: E402

CORES = sorted(os.sched_getaffinity(0))
CHUNKS = 64  # of one stream
ENGINE = f"{sys.executable} {HERE / 'engine.py'} {{port}}"
CLIENT = f"{sys.executable} {HERE / 'scaleout.py'} --as-client {{port}} {{streams}} {{pace}} {{seconds}}"
PARTS = ("gateways", "engine", "clients")


def as_client(port: int, streams: int, pace: int, seconds: float) -> None:
    """The client of our own: closed-loop streams, and the chunks that came."""
    overhead.WORK["scaleout"] = (streams, CHUNKS, pace)
    began = time.perf_counter()
    chunks = uvloop.run(overhead.load(port, "scaleout", seconds))["chunks"]
    print(json.dumps({"chunks": chunks, "cps": chunks / (time.perf_counter() - began)}))


def busy() -> float:
    """Seconds that this process's cores were not idle, since the machine started."""
    rows = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    found = [[int(n) for n in row[1:9]] for row in rows if row[0] in {f"cpu{core}" for core in CORES}]
    return sum(sum(row) - row[3] - row[4] for row in found) / os.sysconf("SC_CLK_TCK")


def user_and_system(pids: list[int]) -> tuple[int, int]:
    """Ticks that processes ran their own code, and the kernel's for them."""
    rows = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(row[11]) for row in rows), sum(int(row[12]) for row in rows)


@contextmanager
def installation(options: argparse.Namespace, count: int) -> Iterator[tuple[list[int], dict[str, list[int]], str]]:
    """The gateways' ports, the pids of gateways and engine, and the cores that are left for the clients."""
    rest = ",".join(map(str, CORES[count:] or CORES))
    with TemporaryDirectory() as folder, ExitStack() as stack:

        def start(command: str, cores: str, path: str, upstream: str = "") -> tuple[int, int]:
            port, home = overhead.free_port(), Path(folder) / str(len(os.listdir(folder)))
            home.mkdir()
            words = ["taskset", "-c", cores, *shlex.split(command.format(port=port, upstream=upstream))]
            process = overhead.start(words, CORES[0], port, path, home)
            stack.callback(process.wait)
            stack.callback(process.send_signal, signal.SIGTERM)
            return port, process.pid

        port, engine = start(options.engine, rest, "/v1/models")
        upstream = f"http://127.0.0.1:{port}"
        found = [start(options.gateway, str(CORES[n % len(CORES)]), "/readyz", upstream) for n in range(count)]
        yield [port for port, _ in found], {"gateways": [pid for _, pid in found], "engine": [engine]}, rest


def step(options: argparse.Namespace, count: int, streams: int) -> dict[str, Any]:
    """One number of streams through so many gateways: chunks per second and who used the processors for them."""
    with installation(options, count) as (ports, pids, rest):
        run(options, ports, streams, rest, 1.0)  # connections, caches, the learnt models
        trees = {name: [each for pid in found for each in overhead.tree(pid)] for name, found in pids.items()}
        before, all_before, began = {name: overhead.cpu(found) for name, found in trees.items()}, busy(), time.time()
        modes = user_and_system(trees["gateways"])
        outputs, clients = run(options, ports, streams, rest, options.seconds)
        wall = time.time() - began
        used = {name: overhead.cpu(found) - before[name] for name, found in trees.items()} | {"clients": clients}
        others = busy() - all_before - sum(used.values())
        user, system = (after - was for after, was in zip(user_and_system(trees["gateways"]), modes, strict=True))
    chunks = sum(output["chunks"] for output in outputs)
    late = [output["ow99"] for output in outputs if "ow99" in output]
    return {
        "gateways": count,
        "streams": streams,
        "chunks_per_second": round(sum(output["cps"] for output in outputs)),
        "cpu_us_per_chunk": {name: round(used[name] / chunks * 1e6, 1) for name in PARTS},
        "cores_used": {name: round(used[name] / wall, 2) for name in PARTS} | {"others": round(others / wall, 2)},
        "gateways_in_kernel": round(system / (user + system or 1.0), 2),
        "late_p99_ms": round(max(late) / 1000, 1) if late else None,
    }


def undisturbed(options: argparse.Namespace, count: int, streams: int) -> dict[str, Any]:
    """The first step that others left alone, or the one of three that they disturbed least."""
    found = []
    for _ in range(3):
        found.append(step(options, count, streams))
        if found[-1]["cores_used"]["others"] < 0.3:
            break
    return min(found, key=lambda row: row["cores_used"]["others"])


def run(
    options: argparse.Namespace, ports: list[int], streams: int, cores: str, seconds: float
) -> tuple[list[dict[str, Any]], float]:
    """What the clients say, one to each gateway, and the CPU seconds they used."""
    before = os.times()
    told = {"streams": streams // len(ports), "chunks": CHUNKS, "pace": options.pace, "seconds": seconds}
    commands = [["taskset", "-c", cores, *shlex.split(options.client.format(port=port, **told))] for port in ports]
    clients = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    outputs = [json.loads(client.communicate()[0].splitlines()[-1]) for client in clients]
    after = os.times()
    return outputs, sum(after[2:4]) - sum(before[2:4])


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The best of each number of gateways, their ratio, and what the machine could carry at these costs."""
    best = {
        count: max((row for row in rows if row["gateways"] == count), key=lambda row: row["chunks_per_second"])
        for count in dict.fromkeys(row["gateways"] for row in rows)
    }
    one = best[min(best)]
    all_parts = sum(one["cpu_us_per_chunk"].values())
    ceiling = len(CORES) / all_parts * 1e6
    return {
        "cores": len(CORES),
        "best": {str(count): row for count, row in best.items()},
        "ratio": {
            str(count): round(row["chunks_per_second"] / one["chunks_per_second"], 2) for count, row in best.items()
        },
        "ceiling_chunks_per_second": round(ceiling),
        "highest_ratio_here": round(min(max(best), ceiling / one["chunks_per_second"]), 2),
        "cores_needed_for_two": round(2 * all_parts / one["cpu_us_per_chunk"]["gateways"], 1),
    }


def main() -> None:
    if sys.argv[1:2] == ["--as-client"]:
        port, streams, pace = map(int, sys.argv[2:5])
        return as_client(port, streams, pace, float(sys.argv[5]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gateways", default="1,2")
    parser.add_argument("--streams", default="800,1600,2400,3200")
    parser.add_argument("--pace", type=int, default=20, help="milliseconds between the chunks of a stream")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--gateway", default=overhead.GATEWAY)
    parser.add_argument("--engine", default=ENGINE)
    parser.add_argument("--client", default=CLIENT)
    options = parser.parse_args()
    os.environ["TEMPERA_MAX_IN_FLIGHT"] = "0"  # the machine is to be the limit
    counts, steps = ([int(n) for n in text.split(",")] for text in (options.gateways, options.streams))
    rows = []
    for streams in steps:
        for count in counts:
            found = [undisturbed(options, count, streams) for _ in range(options.reps)]
            middle = statistics.median_low(row["chunks_per_second"] for row in found)
            rows.append(next(row for row in found if row["chunks_per_second"] == middle))
            print(json.dumps(rows[-1]), flush=True)
    print(json.dumps(summary(rows)))


if __name__ == "__main__":
    main()
