"""The database of the log: opening it, bringing its tables up to date, and writing batches, each row once.

SQLite (WAL) and PostgreSQL (psycopg) behind one Engine; the two places where they differ, opening and the bulk insert,
are here. Knows nothing about queues, files or what rows mean.
"""

from __future__ import annotations

import json
import math
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain, compress
from pathlib import Path
from typing import Any, Final

import msgspec
from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from gateway.log.row import COLUMNS, Item, Row, Snapshot
from gateway.log.schema import REVISION, config_snapshots, metadata


class Away(Exception):
    """The database cannot take anything now: gone, full, locked, or without its tables."""


class Refused(Exception):
    """The database does not take these items, now or later."""


_CHUNK: Final = 50  # rows per SQLite statement: each statement lets go of the interpreter once, each row costs 12 us
_PG_LOCK: Final = 0x74656D70  # the advisory lock that one migration at a time holds
_alembic = threading.Lock()  # Alembic keeps its context in module globals


def default_path(data_dir: Path) -> Path:
    return data_dir / "log.db"


def default_url(data_dir: Path) -> str:
    return f"sqlite:///{default_path(data_dir)}"


def connect(url: str) -> Engine:
    """An Engine for `sqlite:///PATH` or `postgresql://...`; opens nothing yet.

    Raises ValueError for what is not a database URL or needs a driver that is not installed.
    """
    try:
        return _connect(make_url(url))
    except ArgumentError as error:
        raise ValueError(f"the database URL is not one: {error}") from error
    except ModuleNotFoundError as error:
        raise ValueError(f"the database URL needs a package that is not installed: {error.name}") from error


def _connect(parsed: URL) -> Engine:
    if parsed.drivername in ("postgres", "postgresql"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    codec: dict[str, Any] = {
        "json_serializer": lambda value: msgspec.json.encode(value).decode(),
        "json_deserializer": read_json,
    }
    if parsed.get_backend_name() != "sqlite":
        patience = {"connect_timeout": 3, "keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3}
        return create_engine(parsed, pool_pre_ping=True, connect_args=patience | {"tcp_user_timeout": 10_000}, **codec)
    engine = create_engine(parsed, **codec)
    event.listen(engine, "connect", _open_sqlite)
    return engine


def _open_sqlite(connection: Any, _: object) -> None:
    """WAL lets readers and the writer work at once; FULL makes every commit survive a power cut."""
    connection.execute("PRAGMA busy_timeout = 5000")
    connection.execute("PRAGMA page_size = 8192")  # of a new file: a row has 2 KB, and 4 KB pages would hold one each
    if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA cache_size = -1000")  # KiB; rows are appended, and the system caches too


def read_json(text: str | bytes) -> Any:
    """A stored JSON value. Never raises: one row that is odd must not hide the others.

    Messages are the client's own bytes, in which numbers may stand that no double holds: those are texts then.
    """
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        text = text.decode(errors="replace") if isinstance(text, bytes) else text
    try:
        value = json.loads(text, parse_int=_number, parse_float=_number, parse_constant=str)
        msgspec.json.encode(value)
    except (ValueError, RecursionError):
        return text
    return value


def _number(text: str) -> float | str:
    return value if math.isfinite(value := float(text)) else text


@contextmanager
def border(engine: Engine) -> Iterator[None]:
    """Foreign exceptions become Away or Refused here, and nowhere else."""
    driver: Any = engine.dialect.loaded_dbapi
    try:
        yield
    except UnicodeEncodeError as error:
        raise Refused(str(error)) from error
    except PoolTimeout as error:
        raise Away("all connections are in use") from error
    except (DBAPIError, driver.Error) as error:
        raise _translate(error.orig if isinstance(error, DBAPIError) else error) from error


def _translate(error: BaseException | None) -> Away | Refused:
    """Refused is what lies in the row (by SQLSTATE: data, constraint, size); all else may be better later."""
    state = getattr(error, "sqlstate", None) or ""
    message = str(error).partition("\n")[0]  # PostgreSQL's further lines quote the row
    if state[:2] in ("22", "23", "54") or isinstance(error, sqlite3.IntegrityError | sqlite3.DataError):
        return Refused(message)
    return Away(message)


def ping(engine: Engine) -> None:
    """Raises Away when the database does not answer."""
    with border(engine), engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")


def prepare(engine: Engine) -> None:
    """Creates the tables or brings them up to date; of several processes one does it and the others wait.

    Raises Away, also when the tables are newer than this code.
    """
    with border(engine), engine.begin() as connection:
        if _revision(connection) == REVISION:
            return
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_PG_LOCK})")
        found = _revision(connection)
        if found is None:
            _create(connection)
        elif found != REVISION:
            _migrate(connection)


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()


def _create(connection: Connection) -> None:
    """A new database gets today's tables at once, as if it had been through every migration (a test compares the two):
    that spares each new process the 9 MB of Alembic.
    """
    metadata.create_all(connection)
    connection.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
    connection.exec_driver_sql(f"INSERT INTO alembic_version VALUES ('{REVISION}')")  # noqa: S608 - our own name


def _migrate(connection: Connection) -> None:
    from alembic import command  # here: 9 MB that only an old database needs
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    with _alembic:
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise Away(f"the log's tables are of another version: {error}") from error


def write(engine: Engine, items: Sequence[Item]) -> int:
    """Writes items in one transaction and returns how many rows were new; what is there already is left alone.

    Raises Away when the database takes nothing now, Refused when it does not take these items.
    """
    rows = [item for item in items if isinstance(item, Row)]
    insert = _insert_sqlite if engine.dialect.name == "sqlite" else _insert_postgresql
    with border(engine), engine.begin() as connection:
        for item in items:
            if isinstance(item, Snapshot):
                statement = upsert(connection, config_snapshots).values(revision=item.revision, yaml=item.yaml)
                connection.execute(statement.on_conflict_do_nothing())
        return insert(connection, rows) if rows else 0


_NAMES: Final = ", ".join(f'"{name}"' for name in COLUMNS)


@lru_cache(maxsize=64)
def _sqlite_statement(told: tuple[bool, ...], rows: int) -> str:
    """The INSERT of as many rows that names the columns which are `told`; the others are NULL.

    Messages come as bytes in UTF-8, and are text from there on: the cast changes the name of their type and no byte.
    """
    columns = list(compress(COLUMNS, told))
    names = ", ".join(f'"{name}"' for name in columns)
    values = ", ".join("CAST(? AS TEXT)" if name == "messages" else "?" for name in columns)
    places = ", ".join([f"({values})"] * rows)
    return f"INSERT INTO exchanges ({names}) VALUES {places} ON CONFLICT (id) DO NOTHING"  # noqa: S608 - our own names


def _chunks(rows: list[Row]) -> Iterator[list[tuple[Any, ...]]]:
    """The rows as tuples, a chunk at a time; the database's own work between them leaves the interpreter to others."""
    for start in range(0, len(rows), _CHUNK):
        yield [msgspec.structs.astuple(row) for row in rows[start : start + _CHUNK]]


def _insert_sqlite(connection: Connection, rows: list[Row]) -> int:
    """A column that nobody in a chunk has a value for is left out: to bind a None costs more than to bind a text."""
    driver: Any = connection.connection.driver_connection
    new = 0
    for chunk in _chunks(rows):
        columns = list(zip(*chunk, strict=True))
        told = tuple(values.count(None) < len(chunk) for values in columns)
        values = zip(*compress(columns, told), strict=True)
        if len(chunk) == _CHUNK:
            new += driver.execute(_sqlite_statement(told, _CHUNK), tuple(chain.from_iterable(values))).rowcount
        else:
            new += driver.executemany(_sqlite_statement(told, 1), values).rowcount
    return new


_FROM_INCOMING: Final = f"INSERT INTO exchanges ({_NAMES}) SELECT {_NAMES} FROM incoming ON CONFLICT (id) DO NOTHING"  # noqa: S608


def _insert_postgresql(connection: Connection, rows: list[Row]) -> int:
    """COPY into a table of the session, then one INSERT: a third of the client's time of any other way."""
    connection.exec_driver_sql("CREATE TEMP TABLE IF NOT EXISTS incoming (LIKE exchanges) ON COMMIT DELETE ROWS")
    driver: Any = connection.connection.driver_connection
    with driver.cursor() as cursor:
        with cursor.copy(f"COPY incoming ({_NAMES}) FROM STDIN") as copy:
            for chunk in _chunks(rows):
                for row in chunk:
                    copy.write_row([value.decode() if isinstance(value, bytes) else value for value in row])
        cursor.execute(_FROM_INCOMING)
        return int(cursor.rowcount)


def upsert(connection: Connection, table: Any) -> Any:
    """The database's own INSERT, which knows ON CONFLICT (the same words in both)."""
    return (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(table)
