"""Two ways to ask: kept connections, one to each serving process; and a load that knows what became of each request.

A line's process is looked up in the kernel's own tables (Linux), so nothing has to be believed. The load takes a
connection for each request and does what a balancer does: a gateway that takes no connection is passed over.
"""

from __future__ import annotations

import asyncio
import http.client
import itertools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.contract.targets import Reply
from tests.scale.parts import Installation, Part

MESSAGES = [{"role": "user", "content": "Where are you?"}]


class Line:
    """A kept connection to one process of one gateway."""

    def __init__(self, gateway: Part) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
        self.send("GET", "/healthz")
        self.pid = _server_of(self._connection.sock.getsockname()[1], gateway)

    def send(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Reply:
        raw = None if body is None else json.dumps(body).encode()
        self._connection.request(method, path, raw, {"content-type": "application/json", **(headers or {})})
        reply = self._connection.getresponse()
        return Reply(reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read())

    def chat(self, key: str, headers: Mapping[str, str] | None = None, **fields: Any) -> Reply:
        body = {"model": "plain", "messages": MESSAGES, "max_tokens": 1} | fields
        return self.send("POST", "/v1/chat/completions", body, {"authorization": f"Bearer {key}", **(headers or {})})

    def close(self) -> None:
        self._connection.close()


def lines(gateway: Part, processes: int) -> list[Line]:
    """One line to each of a gateway's serving processes."""
    found: dict[int, Line] = {}
    for _ in range(200):
        line = Line(gateway)
        if found.setdefault(line.pid, line) is not line:
            line.close()
        if len(found) == processes:
            return list(found.values())
    raise AssertionError(f"{gateway.name}: {len(found)} of {processes} processes answered 200 connections")


def _server_of(client_port: int, gateway: Part) -> int:
    """The pid of the process that holds the other end of a connection."""
    wanted = f":{gateway.port:04X}", f":{client_port:04X}"
    rows = (row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:])
    inode = next(row[9] for row in rows if (row[1][-5:], row[2][-5:]) == wanted)
    for pid in gateway.family():
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if os.readlink(link) == f"socket:[{inode}]":
                    return pid
            except FileNotFoundError:
                continue
    raise AssertionError(f"no process of {gateway.name} holds the connection")


@dataclass
class Asked:
    """One request of the load, and what became of it."""

    id: str
    stream: bool
    gateway: str = ""  # that took it
    passed_over: int = 0  # gateways that took no connection
    state: Literal["waiting", "sent", "whole", "lost"] = "waiting"
    ended: float = 0.0  # the loop's time
    reply: bytes = b""


@dataclass
class Load:
    """So many requests at a time, in turns to each gateway, every fourth not streamed."""

    at: Installation
    prefix: str
    asked: list[Asked] = field(default_factory=list)
    stopping: bool = False

    async def run(self, at_a_time: int) -> None:
        numbers = itertools.count()
        await asyncio.gather(*(self._go_on(numbers) for _ in range(at_a_time)))

    def in_flight(self, gateway: Part) -> set[str]:
        return {each.id for each in self.asked if each.state == "sent" and each.gateway == gateway.name}

    @property
    def lost(self) -> list[Asked]:
        return [each for each in self.asked if each.state == "lost"]

    async def _go_on(self, numbers: itertools.count[int]) -> None:
        while not self.stopping:
            number = next(numbers)
            each = Asked(f"{self.prefix}-{number}", stream=number % 4 != 3)
            self.asked.append(each)
            first = number % len(self.at.gateways)
            for gateway in (*self.at.gateways[first:], *self.at.gateways[:first]):
                try:
                    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
                except OSError:
                    each.passed_over += 1
                    continue
                await self._ask(each, gateway, reader, writer)
                break
            else:
                each.state = "lost"

    async def _ask(
        self, each: Asked, gateway: Part, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        body = {"model": "plain", "messages": MESSAGES, "max_tokens": 24, "stream": each.stream}
        raw = json.dumps(body).encode()
        head = [
            "POST /v1/chat/completions HTTP/1.1",
            "host: gateway",
            "connection: close",
            "content-type: application/json",
            f"content-length: {len(raw)}",
            f"authorization: Bearer {self.at.keys['load']}",
            f"x-request-id: {each.id}",
            f"x-conversation-id: {each.id}",
        ]
        each.gateway, each.state = gateway.name, "sent"
        whole = False
        try:
            writer.write("\r\n".join([*head, "", ""]).encode() + raw)
            each.reply = await asyncio.wait_for(reader.read(-1), 60)
            whole = _whole(each.reply, each.stream)
        except OSError:  # reset
            pass
        finally:
            writer.close()
        each.ended = asyncio.get_running_loop().time()
        each.state = "whole" if whole else "lost"


def _whole(reply: bytes, stream: bool) -> bool:
    """Whether this is a complete good reply: a stream to its last event, a body of the length it promised."""
    head, _, body = reply.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        return False
    if stream:
        return b"data: [DONE]\n\n" in body and body.endswith(b"0\r\n\r\n") and b'data: {"error"' not in body
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return len(body) == int(length.partition(b":")[2])
