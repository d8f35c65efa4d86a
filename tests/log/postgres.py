"""A private PostgreSQL from the machine's own package: unix socket only, in a directory of its own, gone afterwards."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from signal import SIGCONT, SIGINT, SIGQUIT, SIGSTOP
from typing import Any

import pytest


def _binaries() -> Path | None:
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None, key=lambda path: int(path.parent.name))


def _account() -> dict[str, Any]:
    """PostgreSQL refuses to run as root: another account's arguments for Popen, or none where we are not root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    pytest.skip("PostgreSQL does not run as root, and there is neither a postgres nor a nobody account")


class Postgres:
    """A server that can be stopped, started, frozen and thawed. `url()` makes a fresh database."""

    def __init__(self, directory: Path, binaries: Path, account: dict[str, Any]) -> None:
        self.directory = directory
        self._binaries = binaries
        self._account = account
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = count()

    def start(self) -> None:
        command = [self._binaries / "postgres", "-D", self.directory / "data", "-k", self.directory, "-h", ""]
        with open(self.directory / "log", "ab") as log:
            self._process = subprocess.Popen(
                [*map(str, command), "-c", "fsync=off"], stdout=log, stderr=log, cwd="/", **self._account
            )
        for _ in range(600):
            if self._ask("SELECT 1").returncode == 0:
                return
            time.sleep(0.05)
        raise RuntimeError((self.directory / "log").read_text()[-2000:])

    def _ask(self, sql: str) -> subprocess.CompletedProcess[bytes]:
        command = [self._binaries / "psql", "-h", self.directory, "-U", "tempera", "-Atc", sql, "postgres"]
        return subprocess.run([str(part) for part in command], capture_output=True, check=False)

    def url(self) -> str:
        name = f"log{next(self._numbers)}"
        done = self._ask(f"CREATE DATABASE {name}")
        assert done.returncode == 0, done.stderr
        return f"postgresql://tempera@/{name}?host={self.directory}"

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self, number: int = SIGINT) -> None:
        """As an operator does: connections are cut. SIGQUIT is quicker, and leaves a server that must recover."""
        if self._process is not None:
            self.signal(number)
            self._process.wait(60)
            self._process = None

    def freeze(self) -> None:
        """Every process of the server stops answering; connections stay open."""
        for pid in self._family():
            os.kill(pid, SIGSTOP)

    def thaw(self) -> None:
        for pid in self._family():
            os.kill(pid, SIGCONT)

    def _family(self) -> list[int]:
        assert self._process is not None
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *map(int, children)]


@contextmanager
def running() -> Iterator[Postgres]:
    """A running server, or a skip with the reason."""
    binaries = _binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL here (Debian: apt-get install postgresql)")
    pytest.importorskip("psycopg")
    account = _account()
    directory = Path(tempfile.mkdtemp(prefix="tempera-pg-"))
    if account:
        os.chown(directory, account["user"], account["group"])
    server = Postgres(directory, binaries, account)
    try:
        initdb = [binaries / "initdb", "-D", directory / "data", "-A", "trust", "-U", "tempera", "--no-sync"]
        subprocess.run([str(part) for part in initdb], check=True, capture_output=True, cwd="/", **account)
        server.start()
        yield server
    finally:
        server.stop(SIGQUIT)
        shutil.rmtree(directory, ignore_errors=True)
