"""Databases to test against: a SQLite file, and a real PostgreSQL where the machine has one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from gateway.log import store
from gateway.log.options import Options
from gateway.log.writer import Log
from tests.log import postgres


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.Postgres]:
    with postgres.running() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return store.default_url(tmp_path)
    server: postgres.Postgres = request.getfixturevalue("postgres_server")
    return server.url()


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    """A database with its tables."""
    engine = store.connect(url)
    store.prepare(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def start_log(url: str, tmp_path: Path) -> Iterator[Callable[..., Log]]:
    """Starts logs on the test's database; all are closed at the end."""
    logs: list[Log] = []

    def start(**options: object) -> Log:
        given = {"data_dir": tmp_path, "database_url": url, "interval": 0.02} | options
        logs.append(Log(Options(**given)))  # type: ignore[arg-type]
        return logs[-1]

    yield start
    for log in logs:
        log.close()
