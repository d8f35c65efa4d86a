"""A discrete-event simulation of paced streams through gateways: chunks per second, and where delivery falls behind.

    python benchmarks/simulate.py --all                     measure, keep the run, check, rewrite docs/scale.md
    python benchmarks/simulate.py --check RUN.json [...]    simulated against measured; exit code 1 above 15%
    python benchmarks/simulate.py --page RUN.json           the page again, from a run that was kept

Steps with one gateway calibrate: CPU of gateway, engine and client per chunk, per visit to a stream and per waking up;
the busier a part is, the more chunks share the latter two. Steps with more gateways are the test, and nothing about
them is used. Larger numbers are foretold only by a run whose test passed.

Every part is a process with an event loop: it visits what is ready, stream by stream, and takes all that came for the
stream by then. Processes share cores as a fair scheduler has them: whoever ran least goes next, for a slice. Knows
nothing about bytes, losses, interrupts, or what else runs on the machine. Own heap rather than simpy: a visit that
takes everything at once is neither its Resource nor its Store. Times are microseconds.
The last line of output is one JSON document.
"""

from __future__ import annotations

import argparse
import heapq
import math
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from pathlib import Path
from typing import Any

from scipy.optimize import lsq_linear

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

SECOND = 1e6
TOLERANCE = 0.15
BEHIND = 0.95  # of what the engines offer; what delivers less has fallen behind
SLICE = 3000.0  # what Linux lets a process keep while another waits
ROUNDS = 3  # of calibration
WAKE = 20.0  # the most that waking up may be said to cost: a turn of the loop, its poll, the switch to the process
PARTS = ("gateways", "engine", "clients")


@dataclass(frozen=True)
class Cost:
    """CPU of a part: to wake up when something comes, of every visit to a stream, of every chunk taken there."""

    wake: float
    visit: float
    chunk: float


@dataclass(frozen=True)
class Costs:
    """What the parts take of a core. `request`: of a gateway, for a request and its row in the log."""

    gateway: Cost
    engine: Cost
    client: Cost
    request: float


@dataclass(frozen=True)
class Setup:
    """What is simulated. One client per gateway; `rest`: cores of engine and clients, none: they cost nothing."""

    streams: int
    pace: float  # between the chunks of a stream
    costs: Costs
    gateways: tuple[int, ...]  # the core of each
    rest: tuple[int, ...] = ()
    chunks: int = 64  # of one stream; the next one begins when it ends
    seconds: float = 2.0


class Process:
    """An event loop. `work(key, items)` says what a visit costs; `done(key, items, now)` is called at its end."""

    def __init__(
        self,
        cores: Sequence[int],
        wake: float,
        work: Callable[[int, list[float]], float],
        done: Callable[[int, list[float], float], None],
    ) -> None:
        self.cores, self.wake, self.work, self.done = frozenset(cores), wake, work, done
        self.ready: deque[int] = deque()
        self.items: dict[int, list[float]] = {}
        self.awake = False
        self.ran = self.used = self.woken = 0.0
        self.wakes = self.visits = self.taken = 0


class Machine:
    """Time, and cores that are shared by processes."""

    def __init__(self, cores: int) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._running: list[Process | None] = [None] * cores
        self._until = [0.0] * cores
        self._waiting: list[Process] = []

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), what))

    def play(self, end: float) -> None:
        events = self._events
        while events and events[0][0] <= end:
            self.now, _, what = heapq.heappop(events)
            what()

    def give(self, process: Process, key: int, item: float) -> None:
        """Something for a process to take, when its turn comes, with all that came under the same key by then."""
        if key in process.items:
            process.items[key].append(item)
            return
        process.items[key] = [item]
        process.ready.append(key)
        if process.awake:
            return
        process.awake, process.woken = True, process.wake
        process.wakes += 1
        others = [other.ran for other in (*self._running, *self._waiting) if other is not None]
        process.ran = max(process.ran, min(others, default=0.0) - SLICE)  # who slept is early, but not for ever
        idle = [core for core in process.cores if self._running[core] is None]
        if idle:
            self._start(idle[0], process)
        else:
            self._waiting.append(process)

    def _start(self, core: int, process: Process) -> None:
        self._running[core], self._until[core] = process, self.now + SLICE
        self._visit(core, process)

    def _visit(self, core: int, process: Process) -> None:
        key = process.ready.popleft()
        items = process.items.pop(key)
        cost, process.woken = process.woken + process.work(key, items), 0.0
        process.ran += cost
        process.used += cost
        process.visits += 1
        process.taken += len(items)
        self.at(self.now + cost, lambda: self._visited(core, process, key, items))

    def _visited(self, core: int, process: Process, key: int, items: list[float]) -> None:
        process.done(key, items, self.now)
        fitting = [other for other in self._waiting if core in other.cores]
        if process.ready and not (fitting and self.now >= self._until[core]):
            self._visit(core, process)
            return
        self._running[core] = None
        process.awake = bool(process.ready)
        if process.awake:
            self._waiting.append(process)
            fitting.append(process)
        if fitting:
            chosen = min(fitting, key=lambda other: other.ran)
            self._waiting.remove(chosen)
            self._start(core, chosen)


END = -1.0  # instead of the time at which a chunk was made: its stream is over


class Simulation:
    """`run` plays a Setup as benchmarks/paced.py measures it: streams begun over the length of one, then the window."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.machine = Machine(max((*setup.gateways, *setup.rest), default=0) + 1)
        self.late: list[float] = []
        costs = setup.costs
        self.counting = False
        self.engine = self._process(setup.rest, costs.engine, self._made)
        self.gateways = [self._process((core,), costs.gateway, self._passed) for core in setup.gateways]
        self.clients = [self._process(setup.rest, costs.client, self._read) for _ in setup.gateways]
        self._left = [0] * setup.streams
        self._due = [0.0] * setup.streams

    def _process(self, cores: Sequence[int], cost: Cost, done: Callable[[int, list[float], float], None]) -> Process:
        visit, chunk, request = cost.visit, cost.chunk, self.setup.costs.request

        def work(key: int, items: list[float]) -> float:
            return visit + chunk * len(items) if key >= 0 else request  # ~stream: a request

        return Process(cores, cost.wake, work, done)

    def run(self) -> dict[str, Any]:
        """Chunks per second, how late they were, chunks taken per visit and the share of a core each part used."""
        setup, machine = self.setup, self.machine
        length = setup.chunks * setup.pace
        for stream in range(setup.streams):
            machine.at(length * stream / setup.streams, lambda stream=stream: self._ask(stream))  # type: ignore[misc]
        machine.play(2 * length)
        self.counting = True
        machine.play(2 * length + setup.seconds * SECOND)
        late, took = sorted(self.late), machine.now
        parts = {"gateways": self.gateways, "engine": [self.engine], "clients": self.clients}
        return {
            "chunks_per_second": len(late) / setup.seconds,
            "p50": late[len(late) // 2] if late else math.inf,
            "p99": late[len(late) * 99 // 100] if late else math.inf,
            "per_chunk": {name: per_chunk(found) for name, found in parts.items()},
            "cores_used": {name: sum(p.used for p in found) / took for name, found in parts.items()},
        }

    def _gateway(self, stream: int) -> Process:
        return self.gateways[stream % len(self.gateways)]

    def _ask(self, stream: int) -> None:
        self.machine.give(self._gateway(stream), ~stream, 0.0)

    def _passed(self, key: int, items: list[float], now: float) -> None:
        """A gateway is done: a request goes to the engine, chunks go to their client."""
        if key < 0:
            self._left[~key], self._due[~key] = self.setup.chunks, now
            self._step(~key)
            return
        client = self.clients[key % len(self.clients)]
        for item in items:
            if client.cores:
                self.machine.give(client, key, item)
            else:
                self._read(key, [item], now)

    def _step(self, stream: int) -> None:
        """The engine's timer for a stream."""
        if self.engine.cores:
            self.machine.give(self.engine, stream, 0.0)
        else:
            self._made(stream, [0.0], self.machine.now)

    def _made(self, stream: int, _: list[float], now: float) -> None:
        left = self._left[stream]
        if left:
            self._left[stream] = left - 1
            self._due[stream] += self.setup.pace
            self.machine.at(max(now, self._due[stream]), lambda: self._step(stream))
        self.machine.give(self._gateway(stream), stream, now if left else END)

    def _read(self, stream: int, items: list[float], now: float) -> None:
        if self.counting:
            self.late += [now - item for item in items if item != END]
        if items[-1] == END:
            self._ask(stream)


def per_chunk(found: Sequence[Process]) -> tuple[float, float, float]:
    """How often a part woke up, and visited a stream, for each chunk; and 1."""
    taken = max(1, sum(process.taken for process in found))
    return sum(p.wakes for p in found) / taken, sum(p.visits for p in found) / taken, 1.0


def simulate(setup: Setup) -> dict[str, Any]:
    return Simulation(setup).run()


def placed(run: Mapping[str, Any], gateways: int, streams: int, costs: Costs) -> Setup:
    """A step of benchmarks/scaleout.py: a core for each gateway, the others or else all for engine and clients."""
    cores = range(run["cores"])
    return Setup(
        streams=streams,
        pace=run["pace"] * 1000.0,
        costs=costs,
        gateways=tuple(n % len(cores) for n in range(gateways)),
        rest=tuple(cores[gateways:]) or tuple(cores),
        chunks=run["chunks_per_stream"],
    )


def rows_of(run: Mapping[str, Any], one: bool) -> Iterator[Mapping[str, Any]]:
    return (row for row in run["rows"] if (row["gateways"] == 1) == one)


def explained(counts: Sequence[tuple[float, float, float]], used: Sequence[float]) -> Cost:
    """The Cost that explains the CPU per chunk by how often a part woke up and visited streams, as well as any does."""
    return Cost(*map(float, lsq_linear(counts, used, bounds=([0.0] * 3, [WAKE, math.inf, math.inf])).x))


def calibrated(run: Mapping[str, Any]) -> Costs:
    """The costs of the parts, from the steps with one gateway alone: least squares, none below zero.

    How often parts wake up, and for how many chunks, is not measured: it is simulated, beginning with costs that know
    neither, until costs and simulation agree.
    """
    rows = list(rows_of(run, one=True))
    if not rows:
        raise ValueError("rows: no step with one gateway to calibrate from")
    chunks, request = run["chunks_per_stream"], run["request_us"]
    whole = chunks / (chunks + 1)  # the end of a stream is passed on as a chunk is, but not counted as one
    used = {
        part: [(row["cpu_us_per_chunk"][part] - share) * whole for row in rows]
        for part, share in (("gateways", request / chunks), ("engine", 0.0), ("clients", 0.0))
    }
    found = {part: Cost(0.0, 0.0, sum(values) / len(values)) for part, values in used.items()}
    for _ in range(ROUNDS):
        costs = Costs(found["gateways"], found["engine"], found["clients"], request)
        counts = [simulate(placed(run, 1, row["streams"], costs))["per_chunk"] for row in rows]
        found = {part: explained([each[part] for each in counts], used[part]) for part in PARTS}
    return Costs(found["gateways"], found["engine"], found["clients"], request)


def falls_behind(steps: Sequence[tuple[int, float]], per_stream: float) -> float | None:
    """Streams at which less than BEHIND of the offered chunks come, on a line between two steps. None: at no step."""
    shares = [(streams, rate / (streams * per_stream)) for streams, rate in sorted(steps)]
    for (few, before), (many, after) in pairwise(shares):
        if before >= BEHIND > after:
            return few + (many - few) * (before - BEHIND) / (before - after)
    return None


@dataclass(frozen=True)
class Line:
    """One thing that was measured and simulated. Only what is `judged` decides; `gateways` says where."""

    name: str
    gateways: int
    measured: float
    simulated: float
    judged: bool

    @property
    def error(self) -> float:
        return self.simulated / self.measured - 1 if self.measured else math.inf


def compare(run: Mapping[str, Any], costs: Costs) -> list[Line]:
    """Every step, and where delivery falls behind. Steps with one gateway calibrated and are not judged."""
    lines, steps = [], []
    for row in run["rows"]:
        gateways, streams = row["gateways"], row["streams"]
        found = simulate(placed(run, gateways, streams, costs))
        rate = found["chunks_per_second"]
        lines.append(Line(f"{streams} streams, chunks/s", gateways, row["chunks_per_second"], rate, gateways > 1))
        if row.get("late_p99_ms"):
            lines.append(
                Line(f"{streams} streams, p99 ms late", gateways, row["late_p99_ms"], found["p99"] / 1e3, False)
            )
        steps.append((gateways, streams, row["chunks_per_second"], rate))
    for gateways in dict.fromkeys(row["gateways"] for row in run["rows"]):
        measured = falls_behind([(n, rate) for g, n, rate, _ in steps if g == gateways], 1000 / run["pace"])
        simulated = falls_behind([(n, rate) for g, n, _, rate in steps if g == gateways], 1000 / run["pace"])
        if measured is not None or simulated is not None:
            name = "falls behind at, streams"
            lines.append(Line(name, gateways, measured or math.nan, simulated or math.nan, gateways > 1))
    return sorted(lines, key=lambda line: line.gateways)


def passed(lines: Sequence[Line]) -> bool:
    """Whether everything that is judged is within TOLERANCE; a step that is missing on one side is not."""
    judged = [line for line in lines if line.judged]
    return bool(judged) and all(abs(line.error) <= TOLERANCE for line in judged)


def main(arguments: list[str] | None = None) -> int:
    from benchmarks import foretold

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--check", type=Path, metavar="RUN.json", nargs="+", help="changes nothing")
    what.add_argument("--page", type=Path, metavar="RUN.json", help="check, and write docs/scale.md anew")
    what.add_argument("--all", action="store_true", help="measure (a quiet machine, six minutes), keep, and --page")
    parser.add_argument("--streams", default="600,1000,1400,2000,3000", help="steps to measure")
    parser.add_argument("--seconds", type=float, default=5, help="of each step")
    parser.add_argument("--reps", type=int, default=3, help="of each step; the median is kept")
    options = parser.parse_args(arguments)
    if options.all:  # the page in a process of its own: benchmarks/plan.py reads its figures when it is imported
        return subprocess.run([sys.executable, __file__, "--page", str(foretold.keep(options))]).returncode
    if options.page:
        return 0 if foretold.page(options.page) else 1
    results = [foretold.check(path) for path in options.check]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
