"""The database: tables as declared, pages, filters, bins, exports, forgetting; the same on SQLite and PostgreSQL."""

from __future__ import annotations

import csv
import io
import threading
from typing import Any

import msgspec
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, Text, cast, func, insert, select

from gateway.log import bins, export, queries, retention, schema, store
from gateway.log.digest import digest
from gateway.log.queries import Filters
from gateway.log.row import COLUMNS, Row, Snapshot, new_id
from gateway.policy.params import Effective
from tests.log.made import REPLY, assigned, exchange, plan

NOW = 1_790_000_000.0


@pytest.mark.parametrize("how", ["_create", "_migrate"])
def test_a_new_and_a_migrated_database_have_the_declared_tables(url: str, how: str) -> None:
    engine = store.connect(url)
    with engine.begin() as connection:
        getattr(store, how)(connection)
    store.prepare(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, schema.metadata) == []
        assert context.get_current_revision() == schema.REVISION
    engine.dispose()
    assert ScriptDirectory("gateway/log/migrations").get_current_head() == schema.REVISION
    assert tuple(column.name for column in schema.exchanges.columns) == COLUMNS


def test_several_processes_prepare_at_once(url: str) -> None:
    engines = [store.connect(url) for _ in range(4)]
    failures: list[BaseException] = []

    def prepare(engine: Engine) -> None:
        try:
            store.prepare(engine)
        except store.Away as error:
            failures.append(error)

    threads = [threading.Thread(target=prepare, args=(engine,)) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [str(failure) for failure in failures if "locked" not in str(failure)] == []
    store.prepare(engines[0])
    assert store.write(engines[1], [digest(exchange())]) == 1
    for engine in engines:
        engine.dispose()


def test_tables_of_a_newer_release_are_left_alone(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(store.Away, match="another version"):
        store.prepare(engine)


@pytest.mark.parametrize("url", ["nonsense", "mysql://x/y", "oracle+nothing://x"])
def test_a_bad_url_is_said_plainly(url: str) -> None:
    with pytest.raises(ValueError, match="database URL"):
        store.connect(url)


def test_writing_twice_is_writing_once(engine: Engine) -> None:
    rows = [digest(exchange()) for _ in range(123)]
    assert store.write(engine, [Snapshot("r1", "a: 1"), *rows[:70]]) == 70
    assert store.write(engine, [Snapshot("r1", "changed"), *rows]) == 53
    assert store.write(engine, []) == 0
    assert queries.snapshot(engine, "r1") == "a: 1"
    assert queries.snapshot(engine, "r2") is None


def test_every_value_survives(engine: Engine) -> None:
    made = exchange(
        at=NOW,
        plan=plan(assignment=assigned("warmer", "b", "ann")),
        request={"messages": [{"role": "user", "content": '温度 \0 \\u0000 \u2028 "quoted" \t'}, {"n": 10**30}]},
        reply=REPLY | {"id": "tab\t\\N"},
        ttft=0.25,
    )
    row = digest(made)
    store.write(engine, [row])
    found = queries.one(engine, made.id)
    assert found is not None
    assert found.pop("feedback") == []
    expected = {name: getattr(row, name) for name in COLUMNS}
    for name in ("asked", "effective", "adjustments", "messages", "usage"):
        expected[name] = msgspec.json.decode(expected[name])
    assert found == expected
    assert found["time"] == NOW
    assert found["messages"][0]["content"] == '温度 \ufffd \\u0000 \u2028 "quoted" \t'
    with engine.connect() as connection:  # for whoever reads the tables: text, not a blob
        as_text = select(cast(schema.exchanges.c.messages, Text).like("%温度%"))
        assert connection.execute(as_text).scalar_one()
        if engine.dialect.name == "sqlite":
            assert connection.execute(select(func.typeof(schema.exchanges.c.messages))).scalar_one() == "text"


def test_one_odd_row_hides_no_other(engine: Engine) -> None:
    """A client's number that no double holds, and what an earlier version cut into half a pair."""
    huge = exchange(request=b'{"messages":[{"role":"user","content":"hi","n":1e999,"m":' + b"9" * 5000 + b"}]}")
    half = Row(**{**msgspec.structs.asdict(digest(exchange())), "messages": b'[{"content":"\\ud83d"}]'})
    store.write(engine, [digest(huge), half, digest(exchange())])
    rows = queries.page(engine, Filters())[0]
    assert [row["messages"] for row in rows[1:]] == [
        '[{"content":"\\ud83d"}]',
        [{"role": "user", "content": "hi", "n": "1e999", "m": "9" * 5000}],
    ]
    for form in ("jsonl", "csv", "parquet"):
        assert b"".join(export.export(engine, form, Filters()))


def test_rows_keep_their_own_gaps(engine: Engine) -> None:
    """Whether many rows, some or none beside it have a value there."""
    keys = [None] * 60 + ["bob", None] * 35 + [None, "ann"]
    rows = [digest(exchange(key=key, ttft=None if key else 0.5)) for key in keys]
    assert store.write(engine, rows) == len(rows)
    columns = schema.exchanges.c
    with engine.connect() as connection:
        found = connection.execute(select(columns.key, columns.ttft_ms, columns.text).order_by(columns.id)).all()
    assert found == [(row.key, row.ttft_ms, row.text) for row in rows]


def filled(engine: Engine) -> list[Row]:
    """Six hours of exchanges, one a minute, at four temperatures, in two presets."""
    rows = []
    for minute in range(360):
        temperature = (0.3, 0.52, 0.7, 1.1)[minute % 4]
        preset = "creative" if minute % 2 else "balanced"
        made = exchange(
            at=NOW + minute * 60,
            plan=plan(preset=preset, effective=Effective({"temperature": temperature})),
            outcome="upstream_error" if minute % 10 == 0 else "ok",
            key=None if minute % 3 else "bob",
        )
        rows.append(digest(made))
    store.write(engine, rows)
    return rows


def test_pages_run_from_the_newest_without_gap_or_repeat(engine: Engine) -> None:
    rows = filled(engine)
    got: list[str] = []
    before: str | None = None
    while True:
        page, before = queries.page(engine, Filters(), before, 77)
        got += [row["id"] for row in page]
        if before is None:
            break
        store.write(engine, [digest(exchange(at=NOW + 1e6))])  # newer rows do not disturb
    assert got == [row.id for row in reversed(rows)]
    assert [row["id"] for row in queries.every(engine, Filters(until=NOW + 1e5), 50)] == [row.id for row in rows]


@pytest.mark.parametrize(
    ("filters", "keep"),
    [
        ({"preset": "creative"}, lambda n: n % 2),
        ({"outcome": "upstream_error"}, lambda n: n % 10 == 0),
        ({"key": "bob", "preset": "balanced"}, lambda n: n % 3 == 0 and n % 2 == 0),
        ({"since": NOW + 600, "until": NOW + 1200}, lambda n: 10 <= n < 20),
        ({"min_temperature": 0.6, "max_temperature": 0.7}, lambda n: n % 4 == 2),
        ({"revision": "nothing"}, lambda n: False),
    ],
)
def test_filters(engine: Engine, filters: dict[str, Any], keep: Any) -> None:
    rows = filled(engine)
    got, _ = queries.page(engine, Filters(**filters), limit=500)
    assert [row["id"] for row in got] == [row.id for n, row in reversed(list(enumerate(rows))) if keep(n)]


def test_by_temperature(engine: Engine) -> None:
    rows = filled(engine)
    said = [
        {"id": new_id(NOW), "exchange_id": row.id, "time": NOW, "name": "thumb", "value": 1.0 if n % 8 else -1.0}
        for n, row in enumerate(rows)
        if n % 4 == 0
    ]
    with engine.begin() as connection:
        connection.execute(insert(schema.feedback), said)
    found = bins.by_temperature(engine, Filters(), degenerate=lambda text: text == "Once.")
    assert [(b.preset, b.temperature, b.exchanges) for b in found] == [
        ("balanced", 0.3, 90),
        ("balanced", 0.7, 90),
        ("creative", 0.5, 90),
        ("creative", 1.1, 90),
    ]
    cold = found[0]
    assert (cold.votes, cold.feedback, cold.tokens, cold.duration_ms) == (90, 0.0, 2.0, 100.0)
    assert cold.feedback_interval is not None
    assert cold.feedback_interval[0] < 0 < cold.feedback_interval[1]
    assert (cold.judged, cold.degenerate) == (90, 1.0)
    assert (found[1].votes, found[1].feedback) == (0, None)
    assert sum(b.errors for b in found) == 36
    coarse = bins.by_temperature(engine, Filters(preset="creative"), width=1.0)
    assert [(b.temperature, b.exchanges, b.judged) for b in coarse] == [(1.0, 180, 0)]


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_exports_hold_every_row_and_its_vote(engine: Engine, form: export.Format) -> None:
    rows = [digest(exchange(at=NOW + n, reply=REPLY | {"id": f"r{n}"})) for n in range(1203)]
    rows[5] = msgspec.structs.replace(rows[5], text="=1+1", messages=None)
    store.write(engine, rows)
    with engine.begin() as connection:
        vote = {"id": new_id(NOW), "exchange_id": rows[7].id, "time": NOW, "name": "thumb", "value": -0.5}
        connection.execute(insert(schema.feedback).values(vote))
    if form == "parquet":
        pytest.importorskip("pyarrow")
    pieces = list(export.export(engine, form, Filters()))
    assert len(pieces) >= 3
    got = read(form, b"".join(pieces))
    assert [row["id"] for row in got] == [row.id for row in rows]
    assert list(got[0]) == [*COLUMNS, "feedback"]
    assert float(got[7]["feedback"]) == -0.5
    assert not got[6]["feedback"]
    assert got[5]["text"] == ("'=1+1" if form == "csv" else "=1+1")
    usage = got[0]["usage"] if form == "jsonl" else msgspec.json.decode(got[0]["usage"])
    assert usage == REPLY["usage"]
    assert list(export.export(engine, "jsonl", Filters(preset="none"))) == []


def read(form: str, data: bytes) -> list[dict[str, Any]]:
    if form == "jsonl":
        return [msgspec.json.decode(line) for line in data.splitlines()]
    if form == "csv":
        return list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    import pyarrow.parquet as pq

    return pq.read_table(io.BytesIO(data)).to_pylist()  # type: ignore[no-any-return]


def test_forgetting(engine: Engine) -> None:
    rows = filled(engine)
    with engine.begin() as connection:
        said = [{"id": new_id(NOW), "exchange_id": row.id, "time": NOW, "name": "thumb", "value": 1} for row in rows]
        connection.execute(insert(schema.feedback), said)
    assert retention.purge(engine, NOW + 60 * 100, most=64) == 128
    assert retention.purge(engine, NOW + 60 * 100) == 72
    assert retention.purge(engine, NOW + 60 * 100) == 0
    with engine.connect() as connection:
        left = connection.scalar(select(func.count()).select_from(schema.feedback))
    assert left == len(list(queries.every(engine, Filters()))) == 260


def test_a_log_forgets_by_itself(start_log: Any) -> None:
    log = start_log(retention_days=1.0)
    old, young = exchange(at=1.6e9), exchange()
    log.offer(old)
    log.offer(young)
    assert log.flush(10)
    again = start_log(retention_days=1.0)
    for _ in range(1000):
        if queries.one(again.engine, old.id) is None:
            break
        threading.Event().wait(0.01)
    assert [row["id"] for row in queries.every(log.engine, Filters())] == [young.id]
