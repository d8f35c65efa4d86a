"""A gateway of several workers as its users start it, clients that count bytes, and a look at its processes.

Knows /proc for its children, so it runs on Linux; nothing of the gateway's own code.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.contract.targets import ROOT, await_ready, free_port
from tests.fakes import FakeEngine

linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at children through /proc")
WORDS = {"en": "For the tests", "zh": "测试用"}


@dataclass
class Crew:
    """A running `tempera serve`."""

    process: subprocess.Popen[bytes]
    port: int
    home: Path

    @property
    def workers(self) -> list[int]:
        """Their process ids."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    @property
    def said(self) -> str:
        return (self.home / "output.txt").read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def end(self, timeout: float = 30.0) -> int:
        """Its exit code."""
        return await asyncio.to_thread(self.process.wait, timeout)

    def rows(self, what: str = "count(*)") -> list[Any]:
        with closing(sqlite3.connect(self.home / "data" / "log.db")) as database:
            return [row[0] if len(row) == 1 else row for row in database.execute(f"SELECT {what} FROM exchanges")]

    async def get(self, path: str) -> Answer:
        return await Request.open(self.port, path, None).whole()

    async def chat(self, key: str = "", **fields: Any) -> Answer:
        return await Request.open(self.port, "/v1/chat/completions", chat(**fields), key).whole()

    async def everywhere(self, path: str, body: bytes | None = None) -> list[Answer]:
        """The answers of every worker: connections that are open at the same time are spread."""
        requests = [Request.open(self.port, path, body) for _ in range(24)]
        await asyncio.gather(*(request.connect() for request in requests))
        await asyncio.sleep(0.05)  # they are accepted
        return [await request.whole() for request in requests]

    async def revisions(self) -> set[str]:
        """In force on the workers."""
        return {answer.json["revision"] for answer in await self.everywhere("/readyz")}

    async def new_key(self, name: str, *flags: str) -> str:
        """A key, known to every worker."""
        command = [sys.executable, "-m", "gateway.cli", "keys", "new", name, *flags]
        command += ["--data-dir", str(self.home / "data")]
        made = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, capture_output=True, text=True, check=True)
        for _ in range(200):
            if {answer.status for answer in await self.everywhere("/v1/chat/completions", chat())} == {401}:
                return str(made.stdout.strip())
            await asyncio.sleep(0.05)
        raise AssertionError("a worker still lets anybody in")

    async def numbers(self) -> dict[str, float]:
        """The metrics page."""
        page = (await self.get("/metrics")).body.decode()
        lines = [line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#")]
        assert len({name for name, _ in lines}) == len(lines), "a series comes twice"
        return {name: float(value) for name, value in lines}


def chat(preset: str = "plain", **fields: Any) -> bytes:
    messages = [{"role": "user", "content": "Say something."}]
    return json.dumps({"model": preset, "messages": messages, **fields}).encode()


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    complete: bool  # framed to its end

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Request:
    """One request on a connection of its own."""

    port: int
    path: str
    body: bytes | None
    key: str = ""
    reader: asyncio.StreamReader = field(init=False)
    writer: asyncio.StreamWriter = field(init=False)

    @classmethod
    def open(cls, port: int, path: str, body: bytes | None, key: str = "") -> Request:
        return cls(port, path, body, key)

    async def connect(self) -> None:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)

    async def send(self) -> Request:
        await self.connect()
        self.again()
        return self

    def again(self) -> None:
        """The same request on the same connection."""
        method, body = ("GET", b"") if self.body is None else ("POST", self.body)
        head = f"{method} {self.path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        head += f"authorization: Bearer {self.key}\r\n" if self.key else ""
        self.writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)

    async def head(self) -> tuple[int, dict[str, str]]:
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        return int(lines[0].split()[1]), dict(line.lower().split(": ", 1) for line in lines[1:] if line)

    async def begun(self) -> tuple[int, dict[str, str]]:
        """Its head, once the first event of its body has come."""
        head = await self.head()
        await self.reader.readuntil(b"\n\n")
        return head

    async def rest(self, headers: dict[str, str]) -> tuple[bytes, bool]:
        """The remaining body, and whether it is framed to its end."""
        if "content-length" in headers:
            return await self.reader.readexactly(int(headers["content-length"])), True
        body = b""
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while not body.endswith(b"0\r\n\r\n"):
                body += await self.reader.readuntil(b"\r\n")
        return body, body.endswith(b"0\r\n\r\n")

    async def whole(self) -> Answer:
        """Its answer, on a connection that may be there already."""
        if not hasattr(self, "writer"):
            await self.connect()
        self.again()
        try:
            status, headers = await self.head()
            body, complete = await self.rest(headers)
            return Answer(status, headers, body, complete)
        finally:
            self.close()

    def close(self) -> None:
        self.writer.close()


def presets(path: Path, temperature: float = 0.5, **more: Any) -> None:
    """Write a presets file at once, as a careful operator does."""
    entry = {"title": WORDS, "hint": WORDS, "parameters": {"temperature": temperature}, **more}
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({"default": "plain", "presets": {"plain": entry}}), "utf-8")
    fresh.replace(path)


@contextmanager
def crew(home: Path, engine: FakeEngine, workers: int, *flags: str) -> Iterator[Crew]:
    """`tempera serve --workers N`, all of them up; it is killed at the end if it still runs."""
    port = free_port()
    if not (home / "presets.yaml").exists():
        presets(home / "presets.yaml")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TEMPERA_")}
    command = [sys.executable, "-m", "gateway.cli", "serve", "--port", str(port), "--workers", str(workers)]
    command += ["--upstream", engine.url, "--data-dir", str(home / "data"), "--presets", str(home / "presets.yaml")]
    with (home / "output.txt").open("wb") as output:
        process = subprocess.Popen([*command, *flags], cwd=ROOT, env=kept, stdout=output, stderr=output)
    found = Crew(process, port, home)
    try:
        await_ready(process, port, home / "output.txt")
        until(lambda: "listening on" in found.said)
        yield found
    finally:
        children = found.workers if process.poll() is None else []
        process.kill()
        process.wait()
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


def until(true: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.02)
