"""What must hold at the end of a soak, and whether it did: requests against the log, the end against the beginning.

Everything is decided from `Evidence`; only the log's rows are looked up here. Knows nothing of how a soak is run.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy

from benchmarks.soak_clients import Asked, Crowd
from benchmarks.soak_process import Sample
from gateway.log import store

FLAT = 0.05  # the last third's memory against the second's
LONG_ENOUGH = 300  # seconds of samples from which on memory is judged: a young process still grows
GRACE = 2.0  # seconds after the engine is back in which a failure may still be from before
POOL = 6  # threads that asyncio.to_thread may keep on two cores
_GONE = ("upstream_unavailable", "upstream_reset", "client_disconnect", "ok")
# What the client saw -> what the row may say. Who leaves may cross the end of the reply, or the engine's.
_OUTCOMES = {
    "whole": ("ok",),
    "left": ("client_disconnect", "ok", "rejected"),
    "refused": ("rejected",),
    "failed": ("upstream_unavailable", "upstream_reset"),
}


@dataclass
class Window:
    """When something was away, in time.monotonic() seconds."""

    what: str
    begin: float
    end: float = 0.0


@dataclass(frozen=True)
class Rest:
    """What the gateway holds when nobody asks."""

    tasks: Counter[str]
    descriptors: Counter[str]
    threads: int


@dataclass(frozen=True, kw_only=True)
class Evidence:
    options: dict[str, Any]
    crowd: Crowd
    samples: list[Sample]
    windows: list[Window]
    before: Rest
    after: Rest
    last: list[Asked]  # the tight key's, as many at once as it may have, after all others had ended
    metrics: dict[str, float]
    reloads: int
    stale_keys: int
    cpu: float  # cores, of the gateway
    engine_at_work: float
    exit_code: int
    output: str  # of the gateway
    database_url: str
    restartable: bool

    def metric(self, name: str, *labels: str) -> float:
        parts = ((key.partition("{"), value) for key, value in self.metrics.items())
        return sum(value for (key, _, rest), value in parts if key == name and all(each in rest for each in labels))

    def away(self, what: str) -> list[Window]:
        return [window for window in self.windows if window.what == what]


Row = tuple[str, str, str, str]  # exchange, request id, outcome, revision
Verdict = tuple[str, bool, str]


def rows_of(url: str) -> list[Row]:
    engine = store.connect(url)
    try:
        with engine.connect() as connection:
            query = sqlalchemy.text("SELECT id, request_id, outcome, revision FROM exchanges")
            return [tuple(row) for row in connection.execute(query)]
    finally:
        engine.dispose()


def report(found: Evidence) -> dict[str, Any]:
    """The verdicts and the figures; `ok` if every verdict is."""
    rows = rows_of(found.database_url)
    verdicts = [
        *_requests(found),
        *_log(found, rows),
        *_memory(found),
        *_left_behind(found),
        *_operation(found, rows),
    ]
    tally, samples = found.crowd.tally(), found.samples
    return {
        "ok": all(ok for _, ok, _ in verdicts),
        "setup": {name: value for name, value in found.options.items() if name != "keep"}
        | {"log": found.database_url.partition(":")[0]},
        "requests": {"asked": len(found.crowd.asked), **tally},
        "failed_by": dict(Counter(each.code for each in found.crowd.asked if each.state == "failed")),
        "kinds": dict(Counter(each.kind for each in found.crowd.asked)),
        "rows": len(rows),
        "spooled": found.metric("tempera_log_spooled_total"),
        "reloads": found.reloads,
        "away_seconds": {
            what: [round(w.end - w.begin, 1) for w in found.away(what)] for what in ("engine", "database")
        },
        "memory_mb": {"thirds": _thirds(samples), "minutes": _minutes(samples)}
        | {"peak": round(max(s.memory for s in samples), 1)},
        "files": {"at_rest": [found.before.descriptors.total(), found.after.descriptors.total()]}
        | {"peak": max(s.files for s in samples)},
        "threads": {"at_rest": [found.before.threads, found.after.threads], "peak": max(s.threads for s in samples)},
        "tasks_at_rest": [found.before.tasks.total(), found.after.tasks.total()],
        "cpu_cores": round(found.cpu, 3),
        "verdicts": [{"what": what, "ok": ok, "found": text} for what, ok, text in verdicts],
    }


def _requests(found: Evidence) -> Iterator[Verdict]:
    asked, tally = found.crowd.asked, found.crowd.tally()
    ends = ", ".join(f"{tally[state]:,} {state}" for state in ("whole", "left", "refused", "failed"))
    yield "requests ended", tally["open"] == 0, f"{len(asked):,} asked: {ends}; {tally['open']} without an end"
    failed = [each for each in asked if each.state == "failed"]
    strange = [each for each in failed if not _explained(each, found.away("engine"))]
    text = f"{len(failed)} failed, {len(failed) - len(strange)} of them because the engine was away"
    yield "failures explained", not strange, f"{text}{_first(strange)}"
    uneven = {kind: dict(numbers) for kind, numbers in found.crowd.events.items() if len(numbers) > 1}
    whole = sum(numbers.total() for numbers in found.crowd.events.values())
    yield (
        "no event lost",
        not uneven and whole > 0,
        f"{whole:,} whole streams, all of a kind equally long {uneven or ''}",
    )


def _explained(each: Asked, away: list[Window]) -> bool:
    known = each.code in _OUTCOMES["failed"]
    return known and any(window.begin <= each.ended and each.began <= window.end + GRACE for window in away)


def _first(several: list[Any]) -> str:
    return f"; e.g. {several[:3]}" if several else ""


def _log(found: Evidence, rows: list[Row]) -> Iterator[Verdict]:
    asked = found.crowd.asked
    offered, dropped = found.metric("tempera_log_offered_total"), found.metric("tempera_log_dropped_total")
    text = f"{len(asked):,} asked, {offered:,.0f} offered, {len(rows):,} rows, {dropped:,.0f} dropped"
    yield "nothing lost", len(rows) + dropped == offered == len(asked) and dropped == 0, text
    requests = Counter(request for _, request, _, _ in rows)
    missing = [each for each in asked if not requests[each.id]]
    twice = [request for request, number in requests.items() if number > 1]
    yield (
        "every request a row",
        not missing and not twice,
        (f"{len(missing)} without, {len(twice)} with two{_first(missing or twice)}"),
    )
    ids = {exchange: request for exchange, request, _, _ in rows}
    seen = [each for each in asked if each.exchange]
    wrong = [each for each in seen if ids.get(each.exchange) != each.id]
    text = f"{len(seen):,} exchange ids seen by clients, {len(wrong)} not with their request in the log"
    yield "every id in the log", not wrong and len({each.exchange for each in seen}) == len(seen), text + _first(wrong)
    outcomes = {request: outcome for _, request, outcome, _ in rows}
    agree = Counter((each.state, outcomes.get(each.id, "no row")) for each in asked)
    odd = [
        (each, outcomes[each.id])
        for each in asked
        if each.id in outcomes
        and outcomes[each.id] not in _OUTCOMES.get(each.state, ())
        and not (each.state == "left" and outcomes[each.id] in _GONE and _near(each, found.away("engine")))
    ]
    text = ", ".join(f"{state}: {outcome} {number:,}" for (state, outcome), number in sorted(agree.items()))
    yield "outcomes agree", not odd, text + _first(odd)


def _near(each: Asked, away: list[Window]) -> bool:
    return any(window.begin - GRACE <= each.ended and each.began <= window.end + GRACE for window in away)


def _thirds(samples: list[Sample]) -> list[float]:
    end = samples[-1].at
    thirds = [[s.memory for s in samples if n <= 3 * s.at / end <= n + 1] for n in range(3)]
    return [round(statistics.mean(third), 2) if third else 0.0 for third in thirds]


def _minutes(samples: list[Sample]) -> list[float]:
    """The mean of each minute, the last one perhaps a short one."""
    by_minute: dict[int, list[float]] = {}
    for each in samples:
        by_minute.setdefault(int(each.at // 60), []).append(each.memory)
    return [round(statistics.mean(minute), 1) for minute in by_minute.values()]


def _memory(found: Evidence) -> Iterator[Verdict]:
    first, second, third = _thirds(found.samples)
    change = third / second - 1 if second else 0.0
    text = f"{first:.1f}, {second:.1f}, {third:.1f} MB in the thirds of the run: {change:+.1%}"
    if found.samples[-1].at < LONG_ENOUGH:
        yield "memory flat", True, f"{text} (not judged: shorter than {LONG_ENOUGH} s)"
    else:
        yield "memory flat", change <= FLAT, text


def _left_behind(found: Evidence) -> Iterator[Verdict]:
    before, after = found.before, found.after
    tasks = after.tasks - before.tasks
    yield "no task left", not tasks, f"{before.tasks.total()} before, {after.tasks.total()} after {dict(tasks) or ''}"
    files = after.descriptors - before.descriptors
    spool = files.pop("file *.spool", 0)  # made when the database first goes away, and kept open
    text = f"{before.descriptors.total()} before, {after.descriptors.total()} after {dict(files) or ''}"
    yield "no descriptor left", not files and spool <= 1, text + (" (one is the spool's)" if spool else "")
    sockets = sum(number for name, number in after.descriptors.items() if name.startswith("socket with"))
    yield "no socket left", sockets == 0, f"{sockets} with clients or the engine"
    threads = after.threads - before.threads
    yield "no thread left", threads < POOL, f"{before.threads} before, {after.threads} after"
    flying, waiting = found.metric("tempera_in_flight"), found.metric("tempera_waiting")
    text = f"{flying:g} in flight, {waiting:g} waiting, {found.engine_at_work:g} at work in the engine"
    yield "nothing in flight", flying == waiting == found.engine_at_work == 0, text
    states = Counter(each.state for each in found.last)
    yield "no lease left", states == {"whole": len(found.last)}, f"the key for two at once, two at once: {dict(states)}"


def _operation(found: Evidence, rows: list[Row]) -> Iterator[Verdict]:
    ok, refused = (found.metric("tempera_reloads_total", f'outcome="{name}"') for name in ("ok", "refused"))
    revisions = len({revision for *_, revision in rows if revision})
    text = f"{found.reloads} changes, {ok:g} readings, {refused:g} refused, {revisions} revisions in the log"
    good = ok >= found.reloads - 1 and refused == 0 and revisions == min(2, found.reloads + 1)
    yield "presets reloaded", good, text  # the last change may come too late to be read
    yield "keys reloaded", found.stale_keys == 0, f"{found.stale_keys} of {found.reloads} changes not in force in 5 s"
    for what, wanted in (("engine", 2), ("database", 2 if found.restartable else 0)):
        times = len(found.away(what))
        yield f"{what} restarted", times == wanted, f"{times} times"
    yield "exit code", found.exit_code == 0, str(found.exit_code)
    errors = re.findall(
        r"^.*(?:\bERROR\b|\bCRITICAL\b|Traceback|tripped|never retrieved).*$", found.output, re.MULTILINE
    )
    yield "no error logged", not errors, f"{len(errors)} lines{_first(errors)}"
