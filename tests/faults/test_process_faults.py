"""What can happen to the process itself: it is told to stop, its presets break, too many come at once."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults import rows
from tests.faults.conftest import Start, write_presets
from tests.faults.engine import DONE, END_CHUNK, STREAM_HEAD, Hold, ScriptedEngine, Until, completion, event, whole
from tests.faults.house import CHAT, GENERATION, RESPONSES, Client, Gateway, Ledger, asking, eventually, running

# --- told to stop


@pytest.mark.fault(rows.STOP)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_open_requests_are_finished(start: Start, engine: ScriptedEngine, number: signal.Signals) -> None:
    """Streams and whole replies alike; meanwhile nobody else is let in, and whoever asks is told so."""
    go = threading.Event()
    with start() as gateway, contextlib.ExitStack() as stack:
        for path in GENERATION:
            engine.plays(STREAM_HEAD, event("Hel", path), Until(go), event("lo.", path), DONE, END_CHUNK)
        streams = []
        for path in GENERATION:
            client = stack.enter_context(Client(gateway))
            streams.append((client, client.ask(path, asking(path, model="balanced", stream=True))))
            client.until(b"Hel")
        engine.plays(Until(go), whole(completion()))
        plain = stack.enter_context(Client(gateway))
        waiting = plain.ask(CHAT, asking(model="balanced"))
        engine.seen(4)
        gateway.signal(number)
        assert eventually(lambda: gateway.get("/readyz").status == 503)
        assert gateway.get("/readyz").json["status"] == "draining"
        refused = gateway.ask(model="balanced")
        assert (refused.status, refused.error["code"]) == (503, "shutting_down")
        assert refused.headers["retry-after"]
        assert refused.headers["connection"] == "close"
        assert len(engine.requests) == 5
        go.set()
        for client, _ in streams:
            answer = client.answer()
            assert (answer.ended, b"lo." in answer.body, b"error" in answer.body) == (True, True, False)
        assert plain.answer().status == 200
        assert gateway.process.wait(10) == 0
        assert {gateway.outcome(each) for each in (waiting, *(each for _, each in streams))} == {"ok"}
        assert gateway.outcome(refused.exchange) == "rejected"


@pytest.mark.fault(rows.STOP)
@pytest.mark.parametrize("stream", [False, True])
def test_the_deadline_ends_what_does_not_end(start: Start, engine: ScriptedEngine, stream: bool) -> None:
    """Exit code 0 all the same, the engine is freed, and the row is there."""
    engine.plays(*((STREAM_HEAD, event("Hel"), Hold()) if stream else (Hold(),)))
    with start(TEMPERA_SHUTDOWN_TIMEOUT="0.4") as gateway, Client(gateway) as client:
        identifier = client.ask(CHAT, asking(model="balanced", stream=stream))
        seen = engine.seen()
        if stream:
            client.until(b"Hel")
        gateway.signal(signal.SIGTERM)
        assert gateway.process.wait(10) == 0
        assert seen.left()
        said = client.rest()
        assert b"[DONE]" not in said
        assert gateway.outcome(identifier) != "ok"


@pytest.mark.fault(rows.STOP)
def test_a_hundred_rows_are_written_before_the_end(start: Start) -> None:
    with start() as gateway:
        with ThreadPoolExecutor(8) as threads:
            asked = [threads.submit(gateway.ask, model="balanced", stream=bool(n % 2)) for n in range(100)]
            assert {each.result().status for each in asked} == {200}
        gateway.signal(signal.SIGTERM)
        assert gateway.process.wait(10) == 0
        assert len(gateway.offered) == 100
        assert gateway.lost() == []


@pytest.mark.fault(rows.STOP)
def test_a_hangup_while_the_log_is_written_ends_nothing(start: Start) -> None:
    """Whoever asks for a reload in that moment asks a process that has nothing to read again for."""
    with start() as gateway:
        gateway.outcome(gateway.ask(model="balanced").exchange)
        with contextlib.closing(sqlite3.connect(gateway.home / "data/log.db")) as database:
            database.execute("BEGIN EXCLUSIVE")
            answers = [gateway.ask(model="balanced") for _ in range(5)]
            gateway.signal(signal.SIGTERM)
            for _ in range(20):
                time.sleep(0.05)
                gateway.signal(signal.SIGHUP)
            database.rollback()
        assert gateway.process.wait(20) == 0
        assert {gateway.outcome(each.exchange) for each in answers} == {"ok"}


# --- presets that break

WORDS = "title: {en: x, zh: x}, hint: {en: x, zh: x}"
BROKEN: dict[str, str] = {
    "not YAML": "presets: [\n",
    "nothing": "",
    "an unknown field": f"presets: {{balanced: {{{WORDS}, tempreature: 1}}}}\n",
    "no default preset": f"presets: {{other: {{{WORDS}}}}}\n",
    "a temperature of 9": f"presets: {{balanced: {{{WORDS}, parameters: {{temperature: 9}}}}}}\n",
    "a prompt that is not there": f"presets: {{balanced: {{{WORDS}, system_prompt: no.md}}}}\n",
    "another engine": "",  # a good file, whose upstreams need a restart
    "gone": "",
    "not UTF-8": "",
}


@pytest.fixture(scope="module")
def reloading(tmp_path_factory: pytest.TempPathFactory, scripted: ScriptedEngine, ledger: Ledger) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("reloading")
    presets = write_presets(home / "presets.yaml", scripted)
    with running(home, ledger, "--presets", str(presets)) as gateway:
        yield gateway


@pytest.mark.fault(rows.RELOAD)
@pytest.mark.parametrize(
    ("name", "how"),
    [*((name, "SIGHUP") for name in BROKEN), ("not YAML", "the file's time"), ("gone", "the file's time")],
)
def test_a_broken_file_changes_nothing(reloading: Gateway, engine: ScriptedEngine, name: str, how: str) -> None:
    """Said in the log, the metric and /readyz, which stays ready; a good file ends the trouble."""
    gateway, path = reloading, reloading.home / "presets.yaml"
    good, revision = path.read_bytes(), gateway.get("/readyz").json["revision"]
    refusals, lines = (
        gateway.metrics().get('tempera_reloads_total{outcome="refused"}', 0),
        gateway.said.count("was refused"),
    )
    engine.plays(STREAM_HEAD, event("Hel"), Until(go := threading.Event()), event("lo."), DONE, END_CHUNK)
    with Client(gateway) as under_way:
        under_way.ask(CHAT, asking(model="balanced", stream=True))
        under_way.until(b"Hel")
        try:
            if name == "gone":
                path.unlink()
            elif name == "not UTF-8":
                path.write_bytes(b"# \xff\n" + good)
            elif name == "another engine":
                path.write_bytes(good.replace(engine.url.encode(), b"http://127.0.0.1:1"))
            else:
                path.write_text(BROKEN[name])
            if how == "SIGHUP":
                gateway.signal(signal.SIGHUP)
            trouble = eventually(lambda: (said := gateway.get("/readyz").json["presets"]) != "ok" and said)
            assert revision in trouble and "presets.yaml" in trouble
            ready = gateway.get("/readyz")
            assert (ready.status, ready.json["revision"]) == (200, revision)
            assert gateway.metrics()['tempera_reloads_total{outcome="refused"}'] > refusals
            assert gateway.said.count("was refused") > lines
            answer = gateway.ask(model="balanced")
            assert (answer.status, answer.headers["x-tempera-revision"]) == (200, revision)
        finally:
            path.write_bytes(good)
        gateway.signal(signal.SIGHUP)
        assert eventually(lambda: gateway.get("/readyz").json["presets"] == "ok")
        go.set()
        assert under_way.answer().ended


@pytest.mark.fault(rows.RELOAD)
def test_a_request_ends_under_the_revision_it_began_with(reloading: Gateway, engine: ScriptedEngine) -> None:
    gateway, path = reloading, reloading.home / "presets.yaml"
    good, revision = path.read_bytes(), gateway.get("/readyz").json["revision"]
    engine.plays(STREAM_HEAD, event("Hel"), Until(go := threading.Event()), event("lo."), DONE, END_CHUNK)
    with Client(gateway) as under_way:
        identifier = under_way.ask(CHAT, asking(model="balanced", stream=True))
        under_way.until(b"Hel")
        try:
            path.write_bytes(good + b"# changed\n")
            gateway.signal(signal.SIGHUP)
            assert eventually(lambda: gateway.get("/readyz").json["revision"] != revision)
            assert gateway.ask(model="balanced").headers["x-tempera-revision"] != revision
            go.set()
            assert under_way.answer().ended
        finally:
            path.write_bytes(good)
    assert gateway.row(identifier)["revision"] == revision


@pytest.mark.fault(rows.RELOAD)
def test_broken_keys_change_nothing(start: Start, tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    with start(TEMPERA_KEYS=str(keys), TEMPERA_API_KEY="the-key-of-the-tests") as gateway:
        keys.write_text("keys: [{name: x}]\n")
        gateway.signal(signal.SIGHUP)
        assert eventually(lambda: gateway.get("/readyz").json["keys"] != "ok")
        assert gateway.ask(model="balanced").status == 401
        assert gateway.ask(headers={"authorization": "Bearer the-key-of-the-tests"}, model="balanced").status == 200
        keys.write_text("keys: []\n")
        gateway.signal(signal.SIGHUP)
        assert eventually(lambda: gateway.get("/readyz").json["keys"] == "ok")


# --- a crowd


@pytest.mark.fault(rows.CROWD)
def test_too_many_in_flight(start: Start, engine: ScriptedEngine) -> None:
    """Two places and a queue of two: the fifth is told when to come again, and the four get their replies in turn."""
    go = threading.Event()
    limits = {"TEMPERA_MAX_IN_FLIGHT": "2", "TEMPERA_MAX_QUEUED": "2", "TEMPERA_MAX_QUEUE_WAIT": "30"}
    with start(**limits) as gateway, contextlib.ExitStack() as stack:
        engine.plays(Until(go), whole(completion()), times=4)
        clients = [stack.enter_context(Client(gateway)) for _ in range(4)]
        asked = [client.ask(CHAT, asking(model="balanced")) for client in clients]
        engine.seen(1)
        for path in GENERATION:
            answer = eventually(
                lambda path=path: (found := gateway.ask(path, model="balanced")).status == 429 and found
            )
            assert answer.error["type"] == "rate_limit_error"
            assert answer.error["code"] == "too_many_requests"
            assert int(answer.headers["retry-after"]) >= 1
            assert gateway.outcome(answer.exchange) == "rejected"
        assert len(engine.requests) == 2
        assert gateway.get("/healthz").status == gateway.get("/metrics").status == 200
        go.set()
        assert [client.answer().status for client in clients] == [200] * 4
        assert {gateway.outcome(each) for each in asked} == {"ok"}


@pytest.mark.fault(rows.CROWD)
def test_a_wait_in_the_queue_ends(start: Start, engine: ScriptedEngine) -> None:
    limits = {"TEMPERA_MAX_IN_FLIGHT": "1", "TEMPERA_MAX_QUEUED": "9", "TEMPERA_MAX_QUEUE_WAIT": "0.3"}
    with start(**limits) as gateway, Client(gateway) as client:
        engine.plays(Hold())
        client.ask(CHAT, asking(model="balanced", stream=True))
        engine.seen()
        answer = gateway.ask(RESPONSES, model="balanced", stream=True)
        assert (answer.status, answer.error["code"]) == (429, "too_many_requests")
        assert answer.headers["retry-after"]
        client.leave()
        assert eventually(lambda: gateway.ask(model="balanced").status == 200)  # the place is free again


@pytest.mark.fault(rows.CROWD)
def test_who_leaves_the_queue_takes_no_place(start: Start, engine: ScriptedEngine) -> None:
    limits = {"TEMPERA_MAX_IN_FLIGHT": "1", "TEMPERA_MAX_QUEUED": "1", "TEMPERA_MAX_QUEUE_WAIT": "30"}
    go = threading.Event()
    with start(**limits) as gateway, Client(gateway) as first:
        engine.plays(Until(go), whole(completion()))
        first.ask(CHAT, asking(model="balanced"))
        engine.seen()
        with Client(gateway) as second:
            identifier = second.ask(CHAT, asking(model="balanced"))
            assert eventually(lambda: gateway.ask(model="balanced").status == 429)
        assert gateway.outcome(identifier) == "client_disconnect"
        go.set()
        assert first.answer().status == 200
        assert gateway.ask(model="balanced").status == 200
        assert len(engine.requests) == 2
