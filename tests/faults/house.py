"""A gateway under fault: its process, raw clients that count what they asked, and what its log has in the end.

Knows the contract and the log's table; nothing of the gateway's code.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.contract.targets import ROOT, Reply, await_ready, free_port, send

CHAT, TEXT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
GENERATION = (CHAT, TEXT, RESPONSES, MESSAGES)
RECORDED = (*GENERATION, "/generate")
WAIT = 10.0  # seconds; a bound for what takes milliseconds, not an expectation
_TALK = [{"role": "user", "content": "Hi"}]


def asking(path: str = CHAT, **fields: Any) -> dict[str, Any]:
    """The smallest request of a protocol, with more fields."""
    least: dict[str, Any] = {
        CHAT: {"messages": _TALK},
        TEXT: {"prompt": "Hi"},
        RESPONSES: {"input": "Hi"},
        MESSAGES: {"messages": _TALK, "max_tokens": 9},
        "/generate": {"prompt": "Hi"},
    }[path]
    return least | fields


@dataclass
class Ledger:
    """What the end of a run tells."""

    tried: int = 0
    as_expected: int = 0  # but for `surprises`
    lost: int = 0
    surprises: set[str] = field(default_factory=set)  # tests whose rows say otherwise than they expected


@dataclass
class Gateway:
    """One `tempera serve`. `offered` are the ids of all requests that must have a row in the end."""

    home: Path
    process: subprocess.Popen[bytes]
    port: int
    offered: list[str] = field(default_factory=list)
    dropped: int = 0  # rows that the log said it dropped
    expected: list[tuple[str, str, str]] = field(default_factory=list)  # test, id, outcome

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def said(self) -> str:
        """Its stdout and stderr so far."""
        return (self.home / "output.txt").read_text(errors="replace")

    def get(self, path: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> Reply:
        return send(self.url, method, path, None, headers or {})

    def ask(
        self, path: str = CHAT, body: Any = None, headers: Mapping[str, str] | None = None, **fields: Any
    ) -> Answer:
        """One request on a connection of its own, and all of its reply."""
        with Client(self) as client:
            client.ask(path, asking(path, **fields) if body is None else body, headers)
            return client.answer()

    def metrics(self) -> dict[str, float]:
        lines = self.get("/metrics").body.decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def rows(self) -> dict[str, dict[str, Any]]:
        """Every row of its log, by the request id and by its own."""
        with contextlib.closing(sqlite3.connect(f"file:{self.home / 'data/log.db'}?mode=ro", uri=True)) as database:
            database.row_factory = sqlite3.Row
            found = [dict(row) for row in database.execute("SELECT * FROM exchanges")]
        return {row["request_id"]: row for row in found} | {row["id"]: row for row in found}

    def row(self, identifier: str) -> dict[str, Any]:
        """The row of one request, once it is there."""
        found = eventually(lambda: self.rows().get(identifier))
        assert found, f"no row of {identifier}"
        return dict(found)

    def outcome(self, identifier: str) -> str:
        return str(self.row(identifier)["outcome"])

    def expect(self, identifier: str, outcome: str) -> None:
        """Holds a row against this at the end: waiting for each one would take longer than all the faults."""
        test = os.environ.get("PYTEST_CURRENT_TEST", "").partition(" ")[0]
        self.expected.append((test, identifier, outcome))

    def surprises(self) -> list[tuple[str, str]]:
        """(test, what its row says) where that is not what was expected."""
        rows = self.rows()
        found = (
            (test, rows.get(identifier, {}).get("outcome"), outcome) for test, identifier, outcome in self.expected
        )
        return [(test, f"{said}, not {outcome}") for test, said, outcome in found if said != outcome]

    def memory(self) -> int:
        """Bytes resident."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) * 1024

    def sockets(self) -> int:
        """How many sockets it holds."""
        found = 0
        for each in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found += os.readlink(each).startswith("socket:")
        return found

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        """Its exit code, after SIGTERM unless it ended already."""
        if self.process.poll() is None:
            with contextlib.suppress(OSError):
                pages = self.metrics()
                self.dropped = int(sum(n for name, n in pages.items() if name.startswith("tempera_log_dropped_total")))
            self.process.terminate()
        try:
            return self.process.wait(WAIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def lost(self) -> list[str]:
        """Requests without a row, after the end; as many as the log said to have dropped are not lost."""
        rows = self.rows()
        missing = [identifier for identifier in self.offered if identifier not in rows]
        return missing[self.dropped :]


@contextlib.contextmanager
def running(
    home: Path, ledger: Ledger, *arguments: str, program: tuple[str, ...] = ("-m", "gateway.cli"), **more: str
) -> Iterator[Gateway]:
    """A gateway, ready. It must end with 0, without a traceback, and with a row of every request."""
    port, said = free_port(), home / "output.txt"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TEMPERA_")}
    command = [sys.executable, *program, "serve", "--host", "127.0.0.1", "--port", str(port), *arguments]
    with said.open("wb") as output:
        environment = {**kept, "TEMPERA_DATA_DIR": str(home / "data"), **more}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
    gateway, ready = Gateway(home, process, port), False
    try:
        await_ready(process, port, said)
        ready = True
        yield gateway
    finally:
        code = gateway.stop()
        lost = gateway.lost() if ready else []
        surprises = gateway.surprises() if ready else []
        ledger.lost += len(lost)
        ledger.surprises |= {test for test, _ in surprises}
    assert (code, "Traceback" in gateway.said) == (0, False), gateway.said[-4000:]
    assert not lost, f"{len(lost)} of {len(gateway.offered)} requests have no row"
    assert not surprises, surprises[:20]


@dataclass(frozen=True)
class Answer(Reply):
    """A whole reply. `ended`: its body came to the end that its framing promised."""

    ended: bool = True

    @property
    def events(self) -> list[bytes]:
        return [event for event in self.body.split(b"\n\n") if event]


class Client:
    """One raw connection to a gateway. Sends any bytes, reads a reply as it comes, and leaves as it likes."""

    def __init__(self, gateway: Gateway, buffer: int | None = None) -> None:
        self.gateway = gateway
        self.sock = socket.socket()
        if buffer is not None:  # a small window, so that a reader who stops is noticed soon
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.sock.settimeout(WAIT)
        self.sock.connect(("127.0.0.1", gateway.port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reply: http.client.HTTPResponse | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def raw(self, data: bytes) -> None:
        self.sock.sendall(data)

    def head(
        self, path: str, length: int | None, headers: Mapping[str, str] | None = None, method: str = "POST"
    ) -> str:
        """The head of a request, sent; returns its id. A recorded path counts as a request to be found in the log."""
        identifier = f"fault-{uuid.uuid4()}"
        own = {"host": "gateway", "content-type": "application/json", "x-request-id": identifier, **(headers or {})}
        own |= {} if length is None else {"content-length": str(length)}
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in own.items()), "", ""]
        if path in RECORDED:
            self.gateway.offered.append(identifier)
        self.raw("\r\n".join(lines).encode("latin-1"))
        return identifier

    def ask(self, path: str, body: Any, headers: Mapping[str, str] | None = None, method: str = "POST") -> str:
        """A whole request, sent, unless the gateway answers before that; returns its id."""
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        identifier = self.head(path, len(data), headers, method)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.raw(data)
        return identifier

    def begin(self) -> http.client.HTTPResponse:
        """The head of the reply, once it is there."""
        if self._reply is None:
            self._reply = http.client.HTTPResponse(self.sock)
            self._reply.begin()
        return self._reply

    def more(self, size: int = 65536) -> bytes:
        """The next bytes of the body; b"" at its end."""
        return self.begin().read1(size)

    def until(self, mark: bytes) -> bytes:
        """The body so far, once it holds the mark."""
        body = b""
        while mark not in body:
            piece = self.more()
            assert piece, f"the body ended without {mark!r}: {body[-500:]!r}"
            body += piece
        return body

    def answer(self) -> Answer:
        """All of the reply that is still to come."""
        reply, body, ended = self.begin(), b"", True
        try:
            while piece := reply.read1(65536):
                body += piece
        except (http.client.IncompleteRead, ConnectionResetError):
            ended = False
        headers = {name.lower(): value for name, value in reply.getheaders()}
        return Answer(reply.status, headers, body, ended and not reply.length)

    def next(self) -> None:
        """The reply is read; another request may follow on this connection."""
        self._reply = None

    def rest(self) -> bytes:
        """Every byte until the gateway ends the connection, without reading them as HTTP."""
        said = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := self.sock.recv(65536):
                said += piece
        return said

    def finish(self) -> None:
        """Says that nothing more will be sent."""
        self.sock.shutdown(socket.SHUT_WR)

    def leave(self) -> None:
        if self._reply is not None:
            self._reply.close()
        self.sock.close()

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.leave()


def eventually(look: Callable[[], Any], seconds: float = WAIT) -> Any:
    """What `look` gives once it is true; at the end of the patience what it gives then."""
    end = time.monotonic() + seconds
    while not (found := look()) and time.monotonic() < end:
        time.sleep(0.05)
    return found
