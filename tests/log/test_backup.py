"""Backup and restore as docs/operations.md has them, while a gateway writes; the page's own commands are run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from sqlalchemy import func, select

from gateway.log import store
from gateway.log.schema import exchanges
from tests.fakes import FakeEngine
from tests.log import postgres

ROOT = Path(__file__).parents[2]
OPERATOR = "the-operator-key"
BODY = {"model": "balanced", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}


def commands(name: str) -> list[str]:
    """The commands of the page's block that follows `<!-- NAME -->`, without their comments."""
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    block = re.search(rf"<!-- {name} -->\n+```bash\n(.*?)```", page, re.DOTALL)
    assert block is not None, f"docs/operations.md has no block {name}"
    return [line.split("  #")[0].strip() for line in block[1].splitlines() if line.strip()]


def run(name: str, folder: Path, **variables: str) -> None:
    """Runs a block's commands in a shell in `folder`."""
    tools = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for command in commands(name):
        done = subprocess.run(
            ["sh", "-ec", command],
            cwd=folder,
            env=os.environ | {"PATH": tools} | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"


def count(url: str) -> int:
    engine = store.connect(url)
    try:
        with engine.connect() as connection:
            return int(connection.scalar(select(func.count()).select_from(exchanges)) or 0)
    finally:
        engine.dispose()


def wait_for(what: Callable[[], object], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)


@contextmanager
def gateway(folder: Path, url: str, engine: FakeEngine) -> Iterator[httpx.Client]:
    """A gateway as a process of its own, and a client of it; it ends in order."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environ = os.environ | {
        "TEMPERA_DATA_DIR": str(folder / "data"),
        "TEMPERA_DATABASE_URL": url,
        "TEMPERA_UPSTREAM": engine.url,
        "TEMPERA_OPERATOR_KEY": OPERATOR,
        "TEMPERA_PRESETS": str(ROOT / "presets.yaml"),
        "PYTHONPATH": str(ROOT),
    }
    said = (folder / "gateway.log").open("ab")
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway.cli", "serve", "--port", str(port)], env=environ, stdout=said, stderr=said
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:

            def ready() -> bool:
                assert process.poll() is None, (folder / "gateway.log").read_text()[-2000:]
                try:
                    found = client.get("/readyz")
                    return found.status_code == 200 and found.json()["log"] == "ok"
                except httpx.TransportError:
                    return False

            wait_for(ready)
            yield client
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        said.close()
        if process.poll() is None:
            process.kill()
            process.wait()


@contextmanager
def busy(client: httpx.Client) -> Iterator[None]:
    """Requests one after the other, for as long as it lasts."""
    stop, failed = threading.Event(), list[str]()

    def ask() -> None:
        while not stop.is_set():
            reply = client.post("/v1/chat/completions", json=BODY)
            if reply.status_code != 200:
                failed.append(reply.text)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert failed == []


def restored_works(folder: Path, url: str, rows: int, engine: FakeEngine) -> None:
    """A gateway on the restored log shows what was in it, and goes on from there."""
    with gateway(folder, url, engine) as client:
        page = client.get("/v1/exchanges", headers={"authorization": f"Bearer {OPERATOR}"})
        assert page.status_code == 200 and page.json()["data"], page.text
        assert client.post("/v1/chat/completions", json=BODY).status_code == 200
    assert count(url) == rows + 1


def test_sqlite_while_a_gateway_writes(tmp_path: Path) -> None:
    url = store.default_url(tmp_path / "data")
    with FakeEngine.in_thread() as engine:
        with gateway(tmp_path, url, engine) as client, busy(client):
            wait_for(lambda: count(url) >= 50)
            before = count(url)
            run("backup-sqlite", tmp_path)
            after = count(url)
            wait_for(lambda: count(url) > after)  # the gateway went on writing
        run("restore-sqlite", tmp_path)
        rows = count(url)
        assert before <= rows <= after
        restored_works(tmp_path, url, rows, engine)


def test_postgresql_while_a_gateway_writes(tmp_path: Path, postgres_server: postgres.Postgres) -> None:
    if shutil.which("pg_dump") is None:
        pytest.skip("no pg_dump here (Debian: apt-get install postgresql-client)")
    url, other = postgres_server.url(), postgres_server.url()
    with FakeEngine.in_thread() as engine:
        with gateway(tmp_path, url, engine) as client, busy(client):
            wait_for(lambda: count(url) >= 50)
            before = count(url)
            run("backup-postgresql", tmp_path, TEMPERA_DATABASE_URL=url)
            after = count(url)
            wait_for(lambda: count(url) > after)
        run("restore-postgresql", tmp_path, NEW_DATABASE_URL=other)
        rows = count(other)
        assert before <= rows <= after
        restored_works(tmp_path, other, rows, engine)


def test_the_blocks_are_commands_that_a_shell_splits() -> None:
    for name in ("backup-sqlite", "restore-sqlite", "backup-postgresql", "restore-postgresql"):
        assert all(shlex.split(command) for command in commands(name))
