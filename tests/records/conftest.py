"""Databases of the log for whole gateways: SQLite in the data directory, and a real PostgreSQL where there is one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.log import postgres


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.Postgres]:
    with postgres.running() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> dict[str, str]:
    """The environment of a gateway that keeps its log there."""
    if request.param == "sqlite":
        return {}
    server: postgres.Postgres = request.getfixturevalue("postgres_server")
    return {"TEMPERA_DATABASE_URL": server.url()}
