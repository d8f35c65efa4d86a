"""Nothing that was offered is lost, nothing is there twice, whatever happens to database, disk or process."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from gateway.log import spool, store
from gateway.log.exchange import RawExchange
from gateway.log.options import Options
from gateway.log.row import Row
from gateway.log.schema import config_snapshots, exchanges
from gateway.log.writer import Log
from tests.log import postgres
from tests.log.made import exchange, plan

Start = Callable[..., Log]


def ids(log: Log) -> list[str]:
    with log.engine.connect() as connection:
        return list(connection.scalars(select(exchanges.c.id).order_by(exchanges.c.id)))


def wait_for(what: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.01)


def offer(log: Log, number: int, pause: float = 0.0) -> list[str]:
    """Offers as fast as the log takes it: a queue that is full drops what comes, and says so."""
    offered = []
    for _ in range(number):
        while log.queued > 1024 * 1024:
            time.sleep(0.001)
        made = exchange()
        log.offer(made)
        offered.append(made.id)
        if pause:
            time.sleep(pause)
    return offered


def accounted(log: Log) -> bool:
    """Rows written, left out and dropped equal what was offered."""
    stats = log.stats()
    return stats["offered"] == stats["written"] + sum(stats["left_out"].values()) + sum(stats["dropped"].values())


def test_everything_offered_is_there_once(start_log: Start) -> None:
    log = start_log()
    offered = offer(log, 10_000)
    log.snapshot("0123456789ab", "presets: {}")
    assert log.flush(60)
    assert ids(log) == offered
    assert accounted(log)
    assert log.stats()["dropped"] == {}
    with log.engine.connect() as connection:
        assert connection.execute(select(config_snapshots)).all() == [("0123456789ab", "presets: {}")]


def test_a_burst_is_not_kept_in_memory_until_the_next_look(start_log: Start) -> None:
    log = start_log(interval=3600.0)
    for _ in range(20):
        log.offer(exchange(request={"prompt": "x" * 40_000}))
    wait_for(lambda: log.queued == 0 and log.stats()["written"] >= 10)


def test_close_writes_what_is_queued_and_refuses_the_rest(start_log: Start) -> None:
    log = start_log()
    offered = offer(log, 700)
    log.close()
    log.offer(exchange())
    assert log.stats()["dropped"] == {"closed": 1}
    assert ids(start_log()) == offered


def test_only_the_owner_may_read(tmp_path: Path) -> None:
    log = Log(Options(data_dir=tmp_path / "data", interval=0.02))
    offer(log, 3)
    assert log.flush(10)
    files = list((tmp_path / "data").glob("log.db*"))
    assert len(files) == 3
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    log.close()


def test_two_processes_share_a_database(start_log: Start) -> None:
    one, other = start_log(), start_log()
    offered = sorted([*offer(one, 300), *offer(other, 300)])
    assert one.flush(20)
    assert other.flush(20)
    assert ids(one) == ids(other) == offered


def test_left_out_by_the_operator_s_will(start_log: Start) -> None:
    log = start_log()
    for _ in range(200):
        log.offer(exchange(plan=plan(log="off")))
        log.offer(exchange(), share=0.25)
    assert log.flush(10)
    stats = log.stats()
    assert stats["left_out"]["off"] == 200
    assert 90 < stats["left_out"]["sampled"] < 190
    assert accounted(log)
    assert len(ids(log)) == stats["written"]


def test_a_full_queue_drops_and_says_so(start_log: Start) -> None:
    log = start_log(queue_limit=50_000)
    offer(log, 500)
    assert log.flush(10)
    assert log.stats()["dropped"]["queue_full"] > 0
    assert accounted(log)


def test_a_row_the_database_refuses_does_not_hold_up_the_others(start_log: Start) -> None:
    log = start_log(interval=0.3)  # nothing is late, so nothing is spooled: the row meets the database once
    poison = exchange(request_id="\ud800")  # half a character: no database holds it
    good = [exchange() for _ in range(30)]
    for made in [*good[:11], poison, *good[11:]]:
        log.offer(made)
    assert log.flush(10)
    assert ids(log) == [made.id for made in good]
    assert log.stats()["dropped"] == {"refused": 1}
    assert accounted(log)


def test_a_bug_in_reading_costs_one_row(start_log: Start) -> None:
    log = start_log()
    good = [exchange() for _ in range(5)]
    broken = exchange(plan=plan(effective=None))
    for made in (*good[:2], broken, *good[2:]):
        log.offer(made)
    assert log.flush(10)
    assert ids(log) == [made.id for made in good]
    assert log.stats()["dropped"] == {"unreadable": 1}


@pytest.fixture(scope="module")
def own_server() -> Iterator[postgres.Postgres]:
    """A server that may be stopped without anybody else noticing."""
    with postgres.running() as server:
        yield server


def test_postgresql_stopped_and_started_under_load(own_server: postgres.Postgres, tmp_path: Path) -> None:
    log = Log(Options(data_dir=tmp_path, database_url=own_server.url(), interval=0.02))
    offered: list[str] = []
    ready = threading.Event()

    def load() -> None:
        for number in range(1500):
            offered.extend(offer(log, 2, 0.002))
            if number == 300:
                ready.set()

    loading = threading.Thread(target=load)
    loading.start()
    ready.wait()
    own_server.stop()
    wait_for(lambda: log.stats()["spooled"] > 100)
    assert log.stats()["database"] == "down"
    assert log.stats()["spool_bytes"] > 0
    own_server.start()
    loading.join()
    assert log.flush(30)
    assert ids(log) == offered
    assert accounted(log)
    assert log.stats()["dropped"] == {}
    assert log.stats()["database"] == "up"
    log.close()
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_frozen_postgresql_does_not_keep_rows_in_memory(own_server: postgres.Postgres, tmp_path: Path) -> None:
    log = Log(Options(data_dir=tmp_path, database_url=own_server.url(), interval=0.02))
    before = offer(log, 50)
    assert log.flush(10)
    own_server.freeze()
    try:
        during = offer(log, 50, 0.01)
        wait_for(lambda: log.stats()["spooled"] >= 50)
    finally:
        own_server.thaw()
    assert log.flush(30)
    assert ids(log) == before + during
    log.close()


def test_a_database_that_comes_late(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    blocked = tmp_path / "elsewhere" / "deep"
    log = Log(Options(data_dir=tmp_path, database_url=f"sqlite:///{blocked}/log.db", interval=0.02))
    offered = offer(log, 40)
    wait_for(lambda: log.stats()["spooled"] == 40)
    assert log.stats()["database"] == "down"
    assert "unable to open" in log.stats()["database_error"]
    blocked.mkdir()
    assert log.flush(10)
    assert ids(log) == offered
    log.close()


def test_what_a_closed_process_could_not_write_is_adopted(start_log: Start, tmp_path: Path) -> None:
    away = Log(Options(data_dir=tmp_path, database_url=f"sqlite:///{tmp_path}/no/log.db", interval=0.02))
    offered = offer(away, 120)
    away.close(timeout=1)
    left = list((tmp_path / "spool").glob("*" + spool.SUFFIX))
    assert len(left) == 1
    heir = start_log()
    wait_for(lambda: heir.stats()["replayed"] == 120)
    assert ids(heir) == offered
    assert heir.stats()["replayed"] == 120
    wait_for(lambda: not left[0].exists())


CHILD = """
import sys, time
from pathlib import Path
sys.path[:0] = [".", "tests/log"]
from gateway.log.options import Options
from gateway.log.writer import Log
from made import exchange
log = Log(Options(data_dir=Path(sys.argv[1]), database_url=sys.argv[2], interval=0.05))
while True:
    made = exchange()
    log.offer(made)
    print(made.id, time.time(), flush=True)
    time.sleep(0.001)
"""


def killed(target: str, data_dir: Path) -> tuple[set[str], set[str]]:
    """A process offers, and is killed: (what must be on record, all that was offered)."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(data_dir), target],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert child.stdout is not None
    lines = [child.stdout.readline().split() for _ in range(1000)]
    child.send_signal(signal.SIGKILL)
    at = time.time()
    lines += [line.split() for line in child.stdout.read().splitlines() if len(line.split()) == 2]
    child.wait()
    due = {name for name, offered in lines if float(offered) < at - 0.5}  # 2 x 0.05 s and a slow machine
    assert len(due) > 100
    return due, {line[0] for line in lines}


def test_kill_9_costs_two_intervals_at_most(start_log: Start, url: str, tmp_path: Path) -> None:
    due, offered = killed(url, tmp_path)
    heir = start_log()
    wait_for(lambda: heir.stats()["database"] == "up")
    wait_for(lambda: not list((tmp_path / "spool").glob("*")))
    there = ids(heir)
    assert due <= set(there) <= offered
    assert len(there) == len(set(there))


def test_kill_9_while_the_database_is_away(tmp_path: Path) -> None:
    due, offered = killed(f"sqlite:///{tmp_path}/no/log.db", tmp_path)
    heir = Log(Options(data_dir=tmp_path))
    wait_for(lambda: heir.stats()["replayed"] >= len(due))
    wait_for(lambda: not list((tmp_path / "spool").glob("*")))
    there = ids(heir)
    assert due <= set(there) <= offered
    assert len(there) == len(set(there))
    heir.close()


def test_disk_full_serving_goes_on_and_losses_are_counted(
    start_log: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the database nor the spool takes anything; memory holds its limit; then there is room again."""
    full = True
    real_write, real_prepare = os.write, store.write

    def no_space(descriptor: int, data: bytes) -> int:
        if full and len(data) > 20:
            real_write(descriptor, data[:10])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_write(descriptor, data)

    def no_database(*args: object) -> int:
        if full:
            raise store.Away("database or disk is full")
        return real_prepare(*args)  # type: ignore[arg-type]

    monkeypatch.setattr("gateway.log.spool.os.write", no_space)
    monkeypatch.setattr("gateway.log.store.write", no_database)
    log = start_log(queue_limit=100_000)
    offered = offer(log, 400, 0.002)
    wait_for(lambda: log.stats()["dropped"].get("disk_full", 0) > 100)
    stats = log.stats()
    assert stats["spool_error"]
    assert stats["database"] == "down"
    full = False
    offered += offer(log, 50, 0.002)
    assert log.flush(20)
    there = ids(log)
    assert set(there) <= set(offered)
    assert there[-50:] == offered[-50:]
    assert accounted(log)
    assert log.stats()["spool_error"] is None


def test_whoever_asked_is_told_of_every_row(tmp_path: Path) -> None:
    """Also of those that the offering thread had to read itself, and whatever the listener does."""
    seen: list[tuple[Row, RawExchange]] = []

    def listen(row: Row, exchange: RawExchange) -> None:
        seen.append((row, exchange))
        raise RuntimeError("a fault of the listener")

    log = Log(Options(data_dir=tmp_path, queue_limit=8192, interval=0.01), on_row=listen)
    offered = [exchange() for _ in range(4)]
    for each in offered:
        log.offer(each)
    assert log.flush(10)
    log.close()
    assert [row.id for row, _ in seen] == [each.id for each in offered]
    assert [each is there for (_, each), there in zip(seen, offered, strict=True)] == [True] * 4
    assert (log.stats()["written"], log.stats()["dropped"]) == (4, {})
