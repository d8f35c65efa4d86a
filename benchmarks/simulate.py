"""A discrete-event simulation of paced streams through gateways: what waits where, and for how long.

    python benchmarks/simulate.py --against run.json [...]    simulated against measured (benchmarks/paced.py)
        [--streams 10000 --gateways 12]                       then what that many would do

Exit code 1 when any run is missed by more than 15%; then it says nothing about more streams either.

A chunk is made by its engine, passes its hops one after the other and is read by its client. Each of these is an event
loop: it takes all that is ready, works through it, and then writes, one chunk after the other. Loops that share a core
take turns, first come, first served. Every pass costs CPU time: for chunks gamma distributed around the measured mean,
for requests the measured mean; a gateway's log works ten times a second, in slices as the interpreter cuts them. Knows
nothing about bytes and losses, nor about what else runs on the machine.

Written here rather than with simpy (4.1.2, well kept): a loop that takes everything at once is neither its Resource nor
its Store, so what it would do for us is the heap. Times are microseconds. The last line of output is one JSON document.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

SECOND = 1e6
TOLERANCE = 0.15
COMPARED = ("chunks_per_second", "p50")  # the mean is ruled by a tail that is not modelled
LOG_EVERY = 0.1 * SECOND
SLICE = 1000.0  # what the interpreter lets a log thread keep at a time
REQUEST_US = 110.0  # CPU of a gateway per request, its row in the log included: see benchmarks/plan.py
LOG_US = 31.0  # of these, reading and writing the row
CHUNK_US = 34.0
WRITING = 0.4  # which part of the CPU per chunk is spent writing it, after all that was ready has been read (a guess)


@dataclass(frozen=True)
class Hop:
    """Event loops that do the same: stream i passes loop i % len(cores), which runs on that core. No cores: no wait."""

    cores: tuple[int, ...]
    chunk: float  # CPU per chunk
    request: float = 0.0  # CPU per request, on its way
    log: float = 0.0  # CPU per request for the log, in the background
    writing: float = WRITING


NOWHERE = Hop((), 0.0)


@dataclass(frozen=True)
class Setup:
    """What is simulated. `wire` is what a passage between two processes takes beside all CPU that is counted."""

    streams: int
    pace: float  # between the chunks of a stream
    hops: tuple[Hop, ...]
    engine: Hop = NOWHERE
    client: Hop = NOWHERE
    chunks: int = 64  # of one stream; the next one begins when it ends
    together: bool = False  # the chunks of all streams leave at once, as from a real engine
    wire: float = 0.0
    spread: float = 0.5  # coefficient of variation of the CPU per chunk
    tick: float = 1000.0  # the grain of the engine's clock
    warm: float = 1 * SECOND
    seconds: float = 3.0
    seed: int = 1


Job = tuple[float, float, Callable[[float], None] | None]  # CPU before anything is written, to write it, what then


class Core:
    """Runs one iteration of one loop at a time."""

    def __init__(self) -> None:
        self.free = 0.0
        self.busy = 0.0


class Loop:
    """An event loop on a core. `begun` of a job is called with the time at which its turn came."""

    def __init__(self, core: Core, at: Callable[..., None]) -> None:
        self.core = core
        self._at = at
        self._ready: list[tuple[Callable[[float], None] | None, Job]] = []
        self._waiting = False

    def add(self, now: float, job: Job, begun: Callable[[float], None] | None = None) -> None:
        self._ready.append((begun, job))
        if not self._waiting:
            self._waiting = True
            self._at(max(now, self.core.free), self._iterate)

    def _iterate(self, now: float) -> None:
        if self.core.free > now:  # another loop was first
            self._at(self.core.free, self._iterate)
            return
        jobs, self._ready, self._waiting = self._ready, [], False
        clock = now
        for begun, (reading, _, _) in jobs:
            if begun is not None:
                begun(clock)
            clock += reading
        for _, (_, writing, then) in jobs:
            clock += writing
            if then is not None:
                self._at(clock, then)
        self.core.busy += clock - now
        self.core.free = clock


class Simulation:
    """`run` plays a Setup from beginning to end, once."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.late: list[float] = []
        self.requests = 0
        self._random = Random(setup.seed)
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._numbers = count()
        self.cores: dict[int, Core] = {}
        self._loops = [self._made(hop) for hop in (setup.engine, *setup.hops, setup.client)]
        self._rows = [[0.0] * len(hop.cores) for hop in setup.hops]  # CPU that each log has before it
        self._end = setup.warm + setup.seconds * SECOND

    def _made(self, hop: Hop) -> list[Loop]:
        return [Loop(self.cores.setdefault(core, Core()), self.at) for core in hop.cores]

    def run(self) -> dict[str, float]:
        """Chunks per second and how late they were, under the names of benchmarks/paced.py."""
        setup = self.setup
        for stream in range(setup.streams):
            # As if all had been under way for long: anywhere in a stream, at any phase of its pace.
            begun = self._random.random() * setup.pace * setup.chunks
            first = 0.0 if setup.together else self._grain(begun % setup.pace)
            self._due(first, stream, setup.chunks - int(begun // setup.pace))
        for number, hop in enumerate(setup.hops):
            for loop in range(len(hop.cores) if hop.log else 0):
                self.at(self._random.random() * LOG_EVERY, partial(self._log, number=number, loop=loop))
        self.play(self._end)
        ordered = sorted(self.late)
        return {
            "chunks_per_second": len(ordered) / setup.seconds,
            "mean": sum(ordered) / len(ordered),
            "p50": ordered[len(ordered) // 2],
            "p99": ordered[len(ordered) * 99 // 100],
            "busiest": max((core.busy / self._end for core in self.cores.values()), default=0.0),
        }

    def at(self, when: float, what: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), what))

    def play(self, end: float) -> None:
        while self._events and self._events[0][0] <= end:
            when, _, what = heapq.heappop(self._events)
            what(when)

    def _pass(
        self, now: float, place: int, stream: int, job: Job, begun: Callable[[float], None] | None = None
    ) -> None:
        """A job for the loop of a stream at a place: 0 is the engine, then the hops, then the client."""
        loops = self._loops[place]
        if loops:
            loops[stream % len(loops)].add(now, job, begun)
            return
        if begun is not None:
            begun(now)
        if job[2] is not None:
            self.at(now, job[2])

    def _chunk(self, hop: Hop, then: Callable[[float], None] | None) -> Job:
        cost = hop.chunk
        if cost and self.setup.spread:
            shape = self.setup.spread**-2
            cost = self._random.gammavariate(shape, cost / shape)
        return cost * (1 - hop.writing), cost * hop.writing, then

    def _grain(self, when: float) -> float:
        tick = self.setup.tick
        return math.ceil(when / tick) * tick if tick else when

    def _due(self, when: float, stream: int, left: int) -> None:
        self.at(when, lambda now: self._step(now, stream, left))

    def _step(self, now: float, stream: int, left: int) -> None:
        """The engine's timer: a chunk, or the end of the stream, after which the next one begins."""
        setup = self.setup
        sent = [now]

        def written(when: float) -> None:
            if left > 0:
                self._arrive(when + setup.wire, stream, 1, sent[0])
            else:
                self._ask(when + setup.wire, stream, 1)

        self._pass(now, 0, stream, self._chunk(setup.engine, written), lambda t: sent.__setitem__(0, t))
        if left > 0:
            self._due(now + setup.pace, stream, left - 1)

    def _arrive(self, when: float, stream: int, place: int, sent: float) -> None:
        """A chunk at its next hop, or at its client."""
        setup = self.setup

        def here(now: float) -> None:
            if place <= len(setup.hops):
                onward = self._chunk(
                    setup.hops[place - 1], lambda t: self._arrive(t + setup.wire, stream, place + 1, sent)
                )
                self._pass(now, place, stream, onward)
            else:
                self._pass(now, place, stream, self._chunk(setup.client, None), lambda t: self._read(t, sent))

        self.at(when, here)

    def _read(self, now: float, sent: float) -> None:
        if now >= self.setup.warm:
            self.late.append(now - sent)

    def _ask(self, when: float, stream: int, place: int) -> None:
        """A request on its way through the hops to the engine, whose first chunk is due at once or at its next step."""
        setup = self.setup

        def here(now: float) -> None:
            if place > len(setup.hops):
                self.requests += now >= setup.warm
                first = (now // setup.pace + 1) * setup.pace if setup.together else self._grain(now)
                self._due(first, stream, setup.chunks)
                return
            hop = setup.hops[place - 1]
            if hop.cores:
                self._rows[place - 1][stream % len(hop.cores)] += hop.log
            self._pass(now, place, stream, (hop.request, 0.0, lambda t: self._ask(t + setup.wire, stream, place + 1)))

        self.at(when, here)

    def _log(self, now: float, number: int, loop: int) -> None:
        work, self._rows[number][loop] = self._rows[number][loop], 0.0
        self._slice(now, self.cores[self.setup.hops[number].cores[loop]], work)
        self.at(now + LOG_EVERY, partial(self._log, number=number, loop=loop))

    def _slice(self, now: float, core: Core, work: float) -> None:
        """A part of the log's work; what became ready meanwhile goes before the next part."""
        if work <= 0:
            return
        cost = min(work, SLICE)
        core.free = max(now, core.free) + cost
        core.busy += cost
        # In two steps, so that whoever began to wait during this slice is first in line at its end.
        self.at(core.free, lambda then: self.at(then, lambda again: self._slice(again, core, work - cost)))


def simulate(setup: Setup) -> dict[str, float]:
    return Simulation(setup).run()


@dataclass(frozen=True)
class Fit:
    """Which part of the measured CPU per chunk a chunk waits for. Found from the runs without and with one gateway.

    The rest is spent when nothing waits: on waking up, on timers, on the ends of streams.
    """

    ends: float = 1.0
    gateways: float = 1.0


def of_run(run: Mapping[str, Any], way: str, fit: Fit) -> Setup:
    """The Setup of a run by benchmarks/paced.py: its gateways share core 0, engine and client core 1.

    Nothing that was measured through all gateways is in it: their costs are those of one.
    """
    used = run["direct" if way == "direct" else "one"]["cpu_us_per_chunk"]
    hops: tuple[Hop, ...] = ()
    if way != "direct":
        chunk = (used["gateways"] - REQUEST_US / run["chunks_per_stream"]) * fit.gateways
        cores = (0,) * (run["gateways"] if way == "through" else 1)
        hops = (Hop(cores, chunk, REQUEST_US - LOG_US, LOG_US),)
    return Setup(
        streams=run["streams"],
        pace=run["pace"] * 1000.0,
        hops=hops,
        engine=Hop((1,), used["engine"] * fit.ends),
        client=Hop((1,), used["client"] * fit.ends, writing=0.0),
        chunks=run["chunks_per_stream"],
        together=run["together"],
    )


def fitted(run: Mapping[str, Any]) -> Fit:
    """The Fit by which the simulation has the measured median without a gateway, and with one."""

    def solve(way: str, fit: Callable[[float], Fit]) -> Fit:
        low, high = 0.1, 3.0
        for _ in range(12):
            middle = (low + high) / 2
            short = simulate(of_run(run, way, fit(middle)))["p50"] < run[way]["one_way_us"]["p50"]
            low, high = (middle, high) if short else (low, middle)
        return fit(low)

    ends = solve("direct", lambda part: Fit(ends=part)).ends
    return solve("one", lambda part: Fit(ends, part))


def compare(run: Mapping[str, Any], fit: Fit) -> list[tuple[str, float, float, float]]:
    """Name, measured, simulated and relative error of what is measured with all gateways in between."""
    measured = {"chunks_per_second": run["through"]["chunks_per_second"], **run["through"]["one_way_us"]}
    simulated = simulate(of_run(run, "through", fit))
    return [(name, value, simulated[name], simulated[name] / value - 1) for name, value in measured.items()]


def against(path: Path) -> float:
    """The largest relative error of what is judged, told line by line."""
    run = json.loads(path.read_text())
    fit = fitted(run)
    rows = compare(run, fit)
    print(f"{path.name}: {run['gateways']} gateways, {run['streams']} streams, every {run['pace']} ms; fitted: {fit}")
    for name, measured, simulated, error in rows:
        judged = "" if name in COMPARED else "  (not judged)"
        print(f"{name:18} measured {measured:9.1f}  simulated {simulated:9.1f}  error {error:+7.1%}{judged}")
    return max(abs(error) for name, _, _, error in rows if name in COMPARED)


def many(options: argparse.Namespace) -> Setup:
    """Gateways on a core each, one worker per core; engines and clients have no limit."""
    chunk = options.chunk_us
    return Setup(
        streams=options.streams,
        pace=options.pace * 1000.0,
        hops=(Hop(tuple(range(options.gateways)), chunk, REQUEST_US - LOG_US, LOG_US),),
        chunks=options.chunks,
        together=options.together,
        seconds=options.seconds,
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, metavar="RUN.json", nargs="+", required=True)
    parser.add_argument("--streams", type=int, help="then simulate so many")
    parser.add_argument("--gateways", type=int, default=2, help="workers, each with a core")
    parser.add_argument("--pace", type=float, default=50, help="milliseconds between the chunks of a stream")
    parser.add_argument("--chunks", type=int, default=400, help="of one stream")
    parser.add_argument("--chunk-us", type=float, default=CHUNK_US, help="CPU of a gateway per chunk")
    parser.add_argument("--together", action="store_true", help="the chunks of all streams leave their engine at once")
    parser.add_argument("--seconds", type=float, default=2)
    options = parser.parse_args(arguments)
    worst = max(against(path) for path in options.against)
    result: dict[str, Any] = {"worst_error": round(worst, 4), "tolerance": TOLERANCE, "good": worst <= TOLERANCE}
    if options.streams and result["good"]:
        result["simulated"] = {name: round(value, 3) for name, value in simulate(many(options)).items()}
    elif options.streams:
        print("It did not reproduce what was measured, so it says nothing about what was not.")
    print(json.dumps(result))
    return 0 if result["good"] else 1


if __name__ == "__main__":
    sys.exit(main())
