"""A soak: streams for a long time, clients that leave, files that change, an engine and a database that go away.

    python benchmarks/soak.py [--minutes 15] [--streams 200] [--pace 20-50] [--keep DIRECTORY]

Starts a gateway as its users do (`tempera serve`; keys with limits, log on a PostgreSQL of its own, else on SQLite),
an engine and the visitors as three processes, changes presets and keys every --reload seconds, kills the engine and
stops the database twice each, looks at the gateway every second, and at the end counts: every request against the
log, and what the gateway holds at rest against what it held before. Linux only. Nothing here is a timing.

A line of progress every 30 s, then the verdicts; the last line of output is one JSON document. Exit code 1 if a
verdict fails.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import uvloop

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import soak_process as process  # noqa: E402
from benchmarks.overhead import free_port  # noqa: E402
from benchmarks.soak_clients import Asked, Crowd, Target, connect  # noqa: E402
from benchmarks.soak_engine import FIRST, TOKENS  # noqa: E402
from benchmarks.soak_verdict import Evidence, Rest, Window, report  # noqa: E402
from gateway.serving.keyfile import Limits, add_key, revoke_key  # noqa: E402

PRESETS = """
default: plain
presets:
  plain:
    title: {{en: Plain, zh: 普通}}
    hint: {{en: Anything., zh: 随意。}}
    parameters: {{temperature: {{default: {default}, min: 0, max: 1.5}}, top_p: 0.9}}
  tried:
    title: {{en: Tried out, zh: 试验}}
    hint: {{en: With an experiment., zh: 带实验。}}
    parameters: {{temperature: {{default: 0.7, min: 0, max: 2}}}}
    when_hot: {{above: 1.0, repetition_penalty: 1.1}}
experiments:
  warmer:
    preset: tried
    state: running
    variants:
      control: {{}}
      warm: {{parameters: {{temperature: 1.1}}}}
"""
NAMES = ("plain", "tried")
DATABASE_AT, ENGINE_AT = (0.2, 0.7), (0.35, 0.85)  # shares of the run at which they go away
AT_REST = 8.0  # seconds after which no connection rests any more: the gateway keeps one to the engine for 4
SAY = 30.0


@dataclass
class Running:
    """What is running, and what was seen of it so far."""

    options: argparse.Namespace
    home: Path
    gateway: subprocess.Popen[bytes]
    port: int
    engine_port: int
    database: Any  # tests.log.postgres.Postgres, or None: SQLite
    database_url: str
    crowd: Crowd
    engine: subprocess.Popen[bytes] | None = None
    began: float = 0.0
    samples: list[process.Sample] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)
    reloads: int = 0
    stale_keys: int = 0  # changes of the keys file that were not in force in time
    scraped: dict[str, float] = field(default_factory=dict)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.began

    def metric(self, name: str) -> float:
        """The sum over all labels, as last read."""
        return sum(value for key, value in self.scraped.items() if key.partition("{")[0] == name)

    def scrape(self) -> None:
        text = get(f"http://127.0.0.1:{self.port}/metrics")[1].decode()
        lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        self.scraped = {name: float(value) for name, _, value in lines}

    def kill_engine(self) -> None:
        if self.engine is not None:
            self.engine.kill()
            self.engine.wait()

    def start_engine(self) -> None:
        low, _, high = self.options.pace.partition("-")
        command = [sys.executable, "-m", "benchmarks.soak_engine", str(self.engine_port), low, high or low]
        self.engine = subprocess.Popen(command, cwd=ROOT)
        until(lambda: answers(f"http://127.0.0.1:{self.engine_port}/health"), 30, "the engine")


def get(url: str, key: str = "") -> tuple[int, bytes]:
    asked = urllib.request.Request(url, headers={"authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(asked, timeout=20) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def answers(url: str) -> bool:
    with contextlib.suppress(OSError):
        return get(url)[0] == 200
    return False


def until(holds: Callable[[], bool], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} was not so within {seconds:g} s")
        time.sleep(0.05)


def say(text: str) -> None:
    print(text, flush=True)


# --- before


def database(stack: ExitStack) -> Any:
    """A PostgreSQL of its own, or None with the reason said."""
    import pytest

    from tests.log import postgres

    try:
        return stack.enter_context(postgres.running())
    except pytest.skip.Exception as reason:
        say(f"the log is on SQLite, no database is restarted: {reason}")
        return None


@contextmanager
def started(options: argparse.Namespace, home: Path) -> Iterator[Running]:
    """All of it, ready. What is still there at the end is ended."""
    with ExitStack() as stack:
        server = database(stack)
        url = server.url() if server else f"sqlite:///{home / 'data' / 'log.db'}"
        port, engine_port = free_port(), free_port()
        (home / "probe").mkdir()
        (home / "probe" / "sitecustomize.py").write_text(process.PROBE)
        (home / "presets.yaml").write_text(PRESETS.format(default=0.7))
        keys_file = home / "data" / "keys.yaml"
        busy = 2 * options.streams  # leases that are never given back would use these up
        keys = {
            "load": add_key(keys_file, "load", limits=Limits(rpm=10**7, tpm=10**11, concurrency=busy)),
            "tight": add_key(keys_file, "tight", limits=Limits(rpm=10**7, tpm=10**11, concurrency=2)),
        }
        environ = {name: value for name, value in os.environ.items() if not name.startswith("TEMPERA_")} | {
            "TEMPERA_UPSTREAM": f"http://127.0.0.1:{engine_port}",
            "TEMPERA_DATABASE_URL": url,
            "TEMPERA_DATA_DIR": str(home / "data"),
            "TEMPERA_PRESETS": str(home / "presets.yaml"),
            "TEMPERA_OPERATOR_KEY": secrets.token_hex(16),
            "PYTHONPATH": str(home / "probe"),
            "SOAK_PROBE": str(home / "tasks.json"),
        }
        command = [str(Path(sys.executable).with_name("tempera")), "serve", "--port", str(port)]
        with (home / "gateway.txt").open("wb") as output:
            gateway = subprocess.Popen(command, cwd=home, env=environ, stdout=output, stderr=output)
        stack.callback(gateway.wait)
        stack.callback(gateway.kill)
        slowest = FIRST[1] + TOKENS * float(options.pace.rpartition("-")[2]) / 1000
        crowd = Crowd(Target(port, keys, NAMES), slowest)
        running = Running(options, home, gateway, port, engine_port, server, url, crowd)
        stack.callback(running.kill_engine)
        running.start_engine()
        until(lambda: answers(f"http://127.0.0.1:{port}/readyz"), 60, "the gateway")
        yield running


async def at_rest(running: Running) -> Rest:
    """What the gateway holds when nobody asks, and no connection is kept any more if that takes not too long."""
    ports, pid = {running.port: "clients", running.engine_port: "the engine"}, running.gateway.pid
    end, holds = time.monotonic() + AT_REST, process.descriptors(pid, ports)
    while any(name.startswith("socket with") for name in holds) and time.monotonic() < end:
        await asyncio.sleep(0.5)
        holds = process.descriptors(pid, ports)
    tasks = await asyncio.to_thread(process.tasks, pid, running.home / "tasks.json")
    return Rest(tasks, holds, process.sample(pid, 0).threads)


async def one_each(running: Running, *, tight: bool, at_once: int) -> list[Asked]:
    """A few requests, as many at once as the tight key may have: none is refused if no lease was left behind."""
    kinds = (("/v1/chat/completions", b"data: [DONE]\n\n"), ("/v1/chat/completions", b""))
    found: list[Asked] = []
    for kind in kinds:
        lines = [await connect(running.port) for _ in range(at_once)]
        found += await asyncio.gather(*(running.crowd.ask(line, kind, tight=tight, leave=None) for line in lines))
        for line in lines:
            line.leave(reset=False)
    return found


# --- meanwhile


async def watch(running: Running) -> None:
    """Every second: what the gateway holds. Every five: its metrics. Every thirty: a line."""
    due = 0.0
    for second in range(10**9):
        running.samples.append(process.sample(running.gateway.pid, running.elapsed))
        if second % 5 == 0:
            await asyncio.to_thread(running.scrape)
        if running.elapsed >= due:
            say(progress(running))
            due += SAY
        await asyncio.sleep(max(0.0, second + 1 - running.elapsed))


def progress(running: Running) -> str:
    last, tally, crowd = running.samples[-1], running.crowd.tally(), running.crowd
    clock = "/".join(f"{int(at) // 60:02}:{int(at) % 60:02}" for at in (running.elapsed, running.options.minutes * 60))
    return (
        f"{clock}  {crowd.streaming} streams  {len(crowd.asked):,} asked: {tally['whole']:,} whole, "
        f"{tally['left']:,} left, {tally['refused']:,} refused, {tally['failed']:,} failed  "
        f"memory {last.memory:.1f} MB  files {last.files}  threads {last.threads}  "
        f"log {running.metric('tempera_log_written_total'):,.0f} rows, "
        f"spool {running.metric('tempera_log_spool_bytes') / 1e6:.1f} MB  reloads {running.reloads}"
    )


async def reload(running: Running) -> None:
    """Other presets and one key more or less, every so often; every third time a SIGHUP on top."""
    guest, keys_file, models = "", running.home / "data" / "keys.yaml", f"http://127.0.0.1:{running.port}/v1/models"
    while True:
        await asyncio.sleep(running.options.reload)
        running.reloads += 1
        fresh = running.home / "presets.new"
        fresh.write_text(PRESETS.format(default=0.7 if running.reloads % 2 == 0 else 0.8))
        fresh.replace(running.home / "presets.yaml")
        if running.reloads % 3 == 0:
            running.gateway.send_signal(signal.SIGHUP)
        wanted = 401
        if guest:
            revoke_key(keys_file, "guest")
        else:
            guest, wanted = add_key(keys_file, "guest"), 200
        for _ in range(25):
            if (await asyncio.to_thread(get, models, guest))[0] == wanted:
                break
            await asyncio.sleep(0.2)
        else:
            running.stale_keys += 1
        guest = guest if wanted == 200 else ""


async def trouble(running: Running) -> None:
    """The engine killed and the database stopped, each at its shares of the run, and started again."""
    seconds = running.options.minutes * 60
    plan = [(share * seconds, "engine") for share in ENGINE_AT]
    plan += [(share * seconds, "database") for share in DATABASE_AT if running.database]
    for at, what in sorted(plan):
        await asyncio.sleep(max(0.0, at - running.elapsed))
        window = Window(what, time.monotonic())
        running.windows.append(window)
        say(f"{running.elapsed / 60:5.1f} min  the {what} goes away")
        if what == "engine":
            await asyncio.to_thread(running.kill_engine)
            await asyncio.sleep(running.options.engine_away)
            await asyncio.to_thread(running.start_engine)
        else:
            await asyncio.to_thread(running.database.stop)
            await asyncio.sleep(running.options.database_away)
            await asyncio.to_thread(running.database.start)
        window.end = time.monotonic()
        say(f"{running.elapsed / 60:5.1f} min  the {what} is back after {window.end - window.begin:.1f} s")


# --- the whole


async def soak(running: Running) -> Evidence:
    crowd, options, pid = running.crowd, running.options, running.gateway.pid
    await one_each(running, tight=False, at_once=8)
    before = await at_rest(running)
    running.began, cpu = time.monotonic(), process.cpu(pid)
    say(f"{options.streams} streams for {options.minutes:g} minutes; gateway is process {pid}")
    load = asyncio.create_task(crowd.run(options.streams))
    beside = [asyncio.create_task(each(running)) for each in (watch, reload, trouble)]
    ends, seconds = asyncio.create_task(asyncio.sleep(options.minutes * 60)), options.minutes * 60
    done, _ = await asyncio.wait([ends, load, *beside], return_when=asyncio.FIRST_COMPLETED)
    for task in done - {ends}:
        if task is not beside[2]:
            task.result()  # none of them ends by itself
    await ends
    share = (process.cpu(pid) - cpu) / seconds
    await beside[2]
    for task in beside[:2]:
        task.cancel()
    crowd.stopping = True
    await load
    last = await one_each(running, tight=True, at_once=2)
    after = await at_rest(running)
    until(lambda: settled(running), 60, "the log")
    engine = get(f"http://127.0.0.1:{running.engine_port}/metrics")[1].decode()
    at_work = re.search(r"^vllm:num_requests_running (\S+)", engine, re.MULTILINE)
    running.gateway.send_signal(signal.SIGTERM)
    code = await asyncio.to_thread(running.gateway.wait, 60)
    return Evidence(
        options=vars(options),
        crowd=crowd,
        samples=running.samples,
        windows=running.windows,
        before=before,
        after=after,
        last=last,
        metrics=running.scraped,
        reloads=running.reloads,
        stale_keys=running.stale_keys,
        cpu=share,
        engine_at_work=float(at_work[1]) if at_work else -1.0,
        exit_code=code,
        output=(running.home / "gateway.txt").read_text(errors="replace"),
        database_url=running.database_url,
        restartable=running.database is not None,
    )


def settled(running: Running) -> bool:
    """Whether nothing is in flight, and all that was offered is in the database as far as it will ever be."""
    running.scrape()
    waiting = running.metric("tempera_log_queued_bytes") + running.metric("tempera_log_spool_bytes")
    return running.metric("tempera_in_flight") == 0 == waiting


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--streams", type=int, default=200, help="open at a time; a tenth more requests do not stream")
    parser.add_argument("--pace", default="20-50", metavar="MS[-MS]", help="between the chunks of a stream")
    parser.add_argument("--reload", type=float, default=10, help="seconds between changes of presets and keys")
    parser.add_argument("--engine-away", type=float, default=3, help="seconds, each time")
    parser.add_argument("--database-away", type=float, default=10, help="seconds, each time")
    parser.add_argument("--keep", type=Path, help="directory for the gateway's output and files; default: none is kept")
    options = parser.parse_args()
    if sys.platform != "linux":
        sys.exit("what a process holds is looked up in /proc: Linux only")
    if options.keep and options.keep.exists() and any(options.keep.iterdir()):
        parser.error(f"--keep {options.keep} is not empty")
    with TemporaryDirectory(prefix="tempera-soak-") as folder:
        home = options.keep or Path(folder)
        home.mkdir(parents=True, exist_ok=True)
        with started(options, home.resolve()) as running:
            evidence = uvloop.run(soak(running))
            found = report(evidence)
    options.keep = None
    for line in found["verdicts"]:
        say(f"{'ok    ' if line['ok'] else 'FAILED'}  {line['what']:22} {line['found']}")
    print(json.dumps(found))
    sys.exit(0 if found["ok"] else 1)


if __name__ == "__main__":
    main()
