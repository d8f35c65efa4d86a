"""The soak itself, small and for some seconds; and that its verdicts can fail."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from benchmarks.soak_clients import Asked, Crowd, Target
from benchmarks.soak_process import Sample
from benchmarks.soak_verdict import Evidence, Rest, Window, report
from gateway.log import store
from gateway.log.schema import exchanges, metadata

ROOT = Path(__file__).parents[2]
AWAY = Window("engine", 500.0, 503.0)


def asked(number: int, state: Any, code: str = "", ended: float = 100.0) -> Asked:
    kind = "/v1/chat/completions stream"
    return Asked(f"soak-{number}", kind, False, ended - 1, ended, state, 200, f"exchange-{number}", code)


def good(folder: Path) -> Evidence:
    """A soak in which all went well: the log on disk holds what the clients saw."""
    all_asked = [asked(0, "whole"), asked(1, "left"), asked(2, "refused"), asked(3, "failed", "upstream_reset", 501.0)]
    outcomes = ("ok", "client_disconnect", "rejected", "upstream_reset")
    url = f"sqlite:///{folder / 'log.db'}"
    engine = store.connect(url)
    with engine.begin() as connection:
        metadata.create_all(connection)
        for each, outcome in zip(all_asked, outcomes, strict=True):
            row = {"id": each.exchange, "request_id": each.id, "outcome": outcome, "revision": f"r{outcome == 'ok'}"}
            rest = {"time": 0.0, "protocol": "chat", "duration_ms": 1.0, "truncated": False}
            connection.execute(exchanges.insert().values(row | rest))
    engine.dispose()
    crowd = Crowd(Target(0, {}, ()), 1.0, all_asked, {all_asked[0].kind: Counter({67: 1})})
    rest_ = Rest(Counter(serve=1), Counter({"socket listening clients": 1}), 4)
    return Evidence(
        options={"minutes": 15},
        crowd=crowd,
        samples=[Sample(float(at), 80.0, 20, 4) for at in range(900)],
        windows=[AWAY, replace_window(AWAY, 700.0)],
        before=rest_,
        after=rest_,
        last=[all_asked[0]],
        metrics={"tempera_log_offered_total": 4.0, 'tempera_reloads_total{outcome="ok"}': 2.0},
        reloads=2,
        stale_keys=0,
        cpu=0.2,
        engine_at_work=0.0,
        exit_code=0,
        output="",
        database_url=url,
        restartable=False,
    )


def replace_window(window: Window, begin: float) -> Window:
    return Window(window.what, begin, begin + 3)


def sql(statement: str) -> Callable[[Evidence], Evidence]:
    def change(found: Evidence) -> Evidence:
        engine = store.connect(found.database_url)
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text(statement))
        engine.dispose()
        return found

    return change


def another(crowd: Crowd, last: Asked) -> Crowd:
    return replace(crowd, asked=[*crowd.asked[:-1], last])


def more(rest: Rest, field: str, name: str) -> Rest:
    return replace(rest, **{field: getattr(rest, field) + Counter({name: 1})})


WRONG: dict[str, tuple[set[str], Callable[[Evidence], Evidence]]] = {
    "a row is missing": (
        {"nothing lost", "every request a row", "every id in the log"},
        sql("DELETE FROM exchanges WHERE id = 'exchange-1'"),
    ),
    "a row is of another exchange": (
        {"every id in the log"},
        sql("UPDATE exchanges SET id = 'exchange-x' WHERE id = 'exchange-1'"),
    ),
    "a row is there twice": (
        {"nothing lost", "every request a row"},
        sql(
            "INSERT INTO exchanges (id, request_id, time, protocol, duration_ms, truncated, outcome) "
            "SELECT 'again', request_id, time, protocol, duration_ms, truncated, outcome FROM exchanges "
            "WHERE id = 'exchange-0'"
        ),
    ),
    "an outcome that the client did not see": (
        {"outcomes agree"},
        sql("UPDATE exchanges SET outcome = 'client_disconnect' WHERE id = 'exchange-0'"),
    ),
    "one was dropped": (
        {"nothing lost"},
        lambda e: replace(e, metrics=e.metrics | {'tempera_log_dropped_total{reason="queue_full"}': 1.0}),
    ),
    "a failure while the engine was there": (
        {"failures explained"},
        lambda e: replace(e, crowd=another(e.crowd, asked(3, "failed", "upstream_reset", 600.0))),
    ),
    "a failure of another kind": (
        {"failures explained"},
        lambda e: replace(e, crowd=another(e.crowd, asked(3, "failed", "internal_error", 501.0))),
    ),
    "a shorter stream": (
        {"no event lost"},
        lambda e: replace(e, crowd=replace(e.crowd, events={"stream": Counter({67: 1, 66: 1})})),
    ),
    "memory grows": (
        {"memory flat"},
        lambda e: replace(e, samples=[*e.samples[:600], *(replace(s, memory=84.1) for s in e.samples[600:])]),
    ),
    "a task": ({"no task left"}, lambda e: replace(e, after=more(e.after, "tasks", "Turn.run"))),
    "a file": ({"no descriptor left"}, lambda e: replace(e, after=more(e.after, "descriptors", "file log.db"))),
    "a socket": (
        {"no descriptor left", "no socket left"},
        lambda e: replace(e, after=more(e.after, "descriptors", "socket with the engine")),
    ),
    "a stream in flight": (
        {"nothing in flight"},
        lambda e: replace(e, metrics=e.metrics | {"tempera_in_flight": 1.0}),
    ),
    "the engine works for nobody": ({"nothing in flight"}, lambda e: replace(e, engine_at_work=1.0)),
    "a lease": ({"no lease left"}, lambda e: replace(e, last=[asked(0, "refused")])),
    "a file that was not read": ({"presets reloaded"}, lambda e: replace(e, reloads=5)),
    "a key out of date": ({"keys reloaded"}, lambda e: replace(e, stale_keys=1)),
    "no trouble was made": ({"engine restarted"}, lambda e: replace(e, windows=[AWAY])),
    "an exit code": ({"exit code"}, lambda e: replace(e, exit_code=1)),
    "an error in the log": (
        {"no error logged"},
        lambda e: replace(e, output="INFO fine\nTask exception was never retrieved\n"),
    ),
}


def failing(found: Evidence) -> set[str]:
    said = report(found)
    wrong = {line["what"] for line in said["verdicts"] if not line["ok"]}
    assert said["ok"] == (not wrong)
    return wrong


def test_a_good_soak_is_good(tmp_path: Path) -> None:
    assert failing(good(tmp_path)) == set()


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(name: str, tmp_path: Path) -> None:
    verdicts, change = WRONG[name]
    assert failing(change(good(tmp_path))) == verdicts


@pytest.mark.skipif(sys.platform != "linux", reason="what a process holds is looked up in /proc: Linux only")
def test_a_short_soak(tmp_path: Path) -> None:
    options = {"minutes": "0.2", "streams": "12", "reload": "3", "engine-away": "0.5", "database-away": "1"}
    command = [sys.executable, str(ROOT / "benchmarks" / "soak.py"), "--keep", str(tmp_path), "--pace", "5-10"]
    command += [word for name, value in options.items() for word in (f"--{name}", value)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ok"]
    assert found["requests"]["whole"] > 20
    assert found["rows"] == found["requests"]["asked"]
