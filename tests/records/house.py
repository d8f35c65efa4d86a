"""Gateways that may be killed, and looks at what they have on record."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy

from gateway.log import store
from tests.contract.targets import ROOT, await_ready, free_port, send

SECRET = "the same in every process of an installation"


def environment(home: Path, **more: str) -> dict[str, str]:
    """Nothing from outside but what a process needs; the data directory lies in `home`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TEMPERA_")}
    return {**kept, "TEMPERA_DATA_DIR": str(home / "data"), "TEMPERA_SECRET": SECRET, **more}


@contextmanager
def mortal(home: Path, *arguments: str, **more: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """The URL of a gateway, and what ends it with SIGKILL; it is killed at the end in any case."""
    port, said = free_port(), home / "mortal.txt"
    command = [sys.executable, "-m", "gateway.cli", "serve", "--host", "127.0.0.1", "--port", str(port), *arguments]
    with said.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(home, **more), stdout=output, stderr=subprocess.STDOUT
        )

    def kill() -> None:
        process.kill()
        process.wait()

    try:
        await_ready(process, port, said)
        yield f"http://127.0.0.1:{port}", kill
    finally:
        kill()


def tempera(home: Path, *arguments: str, **more: str) -> bytes:
    """What a command prints; it must succeed and complain about nothing."""
    command = [sys.executable, "-m", "gateway.cli", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment(home, **more), capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, b""), done
    return done.stdout


def exported(url: str, **filters: str) -> list[dict[str, Any]]:
    """Every exchange on record, oldest first, over HTTP; none as long as the log says that it is opening."""
    query = "&".join(f"{name}={value}" for name, value in {"format": "jsonl", **filters}.items())
    reply = send(url, "GET", f"/v1/exchanges?{query}", None, {})
    if reply.status == 503:
        return []
    assert reply.status == 200, reply.body
    return [json.loads(line) for line in reply.body.splitlines()]


def metrics(url: str) -> dict[str, float]:
    """The samples of /metrics by their full names."""
    lines = send(url, "GET", "/metrics", None, {}).body.decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def rows(database: dict[str, str], home: Path, columns: str = "id, request_id") -> list[Any]:
    """Columns of the table itself, in the order of time."""
    engine = store.connect(database.get("TEMPERA_DATABASE_URL") or store.default_url(home / "data"))
    try:
        with engine.connect() as connection:
            found = connection.execute(sqlalchemy.text(f"SELECT {columns} FROM exchanges ORDER BY id"))
            return [tuple(row) for row in found]
    finally:
        engine.dispose()


def eventually(look: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What `look` gives once it is true; at the end of the patience what it gives then."""
    end = time.monotonic() + seconds
    while not (found := look()) and time.monotonic() < end:
        time.sleep(0.1)
    return found
