"""The visitors of the soak: so many streams open at a time, and what became of every request.

A visitor asks, reads, and at random leaves: before the first token or in the middle, with an orderly end or a reset.
Every request has an id of its own, so that it can be found in the log. Knows HTTP and the contract; nothing of what is
done to the gateway meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
import struct
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks.soak_engine import FIRST, TOKENS

EARLY, MIDDLE = 0.1, 0.2  # shares of requests whose client leaves before the first token, and later
TIGHT = 0.03  # share of requests with the key that may have few in flight
PLAIN = 10  # for so many streaming visitors one that does not stream
# path, what ends its stream, weight
_STREAMED = (
    ("/v1/chat/completions", b"data: [DONE]\n\n", 70),
    ("/v1/completions", b"data: [DONE]\n\n", 10),
    ("/v1/responses", b"response.completed", 10),
    ("/v1/messages", b"message_stop", 10),
)
_WHOLE = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/generate")
_WORDS = ("the", "keeper of", "a lighthouse", "tells", "what", "happened", "灯塔", "守护人", "讲述", "昨夜的", "故事")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_EXCHANGE = re.compile(rb"\r\nx-tempera-exchange: *([0-9a-f-]+)", re.IGNORECASE)
_CODE = re.compile(rb'"code": ?"(\w+)"')
_RESET = struct.pack("ii", 1, 0)

State = Literal["open", "whole", "left", "refused", "failed"]


@dataclass(slots=True)
class Asked:
    """One request, and what its client saw."""

    id: str
    kind: str  # path, and whether it streams
    tight: bool
    began: float  # time.monotonic()
    ended: float = 0.0
    state: State = "open"
    status: int = 0
    exchange: str = ""
    code: str = ""  # why it failed


@dataclass
class Target:
    port: int
    keys: dict[str, str]  # "load" and "tight"
    presets: tuple[str, ...]


@dataclass
class Crowd:
    """All visitors. `events` counts, for every kind of stream, how many had so many events."""

    target: Target
    slowest: float  # seconds that a whole stream may take, about
    asked: list[Asked] = field(default_factory=list)
    events: dict[str, Counter[int]] = field(default_factory=dict)
    stopping: bool = False
    streaming: int = 0

    async def run(self, streams: int) -> None:
        """Returns when all have come to an end after `stopping` was set."""
        visitors = [self._visit(streamed=True, after=random.random() * 2) for _ in range(streams)]
        visitors += [self._visit(streamed=False, after=random.random() * 2) for _ in range(-(-streams // PLAIN))]
        await asyncio.gather(*visitors)

    def tally(self) -> Counter[str]:
        return Counter(each.state for each in self.asked)

    async def ask(self, line: Line, kind: tuple[str, bytes], *, tight: bool, leave: float | None) -> Asked:
        """One request on a connection, followed to its end or for `leave` seconds."""
        path, last = kind
        asked = Asked(f"soak-{len(self.asked)}", f"{path} {'stream' if last else 'whole'}", tight, time.monotonic())
        self.asked.append(asked)
        line.send(request(asked.id, path, bool(last), self.target, tight))
        try:
            await asyncio.wait_for(asyncio.shield(line.ended), leave)
        except TimeoutError:
            asked.state = "left"
            line.leave(reset=random.random() < 0.5)
        asked.ended = time.monotonic()
        self._judge(asked, line, last)
        return asked

    def _judge(self, asked: Asked, line: Line, last: bytes) -> None:
        found = _EXCHANGE.search(line.head)
        asked.exchange = found[1].decode() if found else ""
        asked.status = int(line.head[9:12] or 0)
        if asked.state == "left":
            return
        body = bytes(line.buffer)
        code = _CODE.search(body[-400:])  # of an error: no reply of the engine has one
        if line.whole and asked.status == 200 and code is None and last in body:
            asked.state = "whole"
            if last:
                self.events.setdefault(asked.kind, Counter())[body.count(b"data: ")] += 1
        elif asked.status == 429 and asked.tight:
            asked.state = "refused"
        else:
            asked.state = "failed"
            asked.code = code[1].decode() if code else f"status {asked.status}" if line.whole else "cut"

    async def _visit(self, streamed: bool, after: float) -> None:
        await asyncio.sleep(after)
        line: Line | None = None
        while not self.stopping:
            if line is None or line.lost:
                line = await connect(self.target.port)
            self.streaming += streamed
            asked = await self.ask(line, _kind(streamed), tight=random.random() < TIGHT, leave=self._patience())
            self.streaming -= streamed
            if asked.state != "whole" or random.random() < 0.3:
                line.leave(reset=False)
                line = None
            await asyncio.sleep(random.random() * (0.02 if asked.state in ("whole", "left") else 1.0))
        if line is not None:
            line.leave(reset=False)

    def _patience(self) -> float | None:
        drawn = random.random()
        if drawn < EARLY:
            return random.uniform(0.02, FIRST[1])
        return random.uniform(FIRST[1], self.slowest) if drawn < EARLY + MIDDLE else None


class Line(asyncio.Protocol):
    """One connection, one request at a time. `ended` is done when the reply is whole or the connection is lost."""

    def __init__(self) -> None:
        self.buffer, self.head, self.length = bytearray(), b"", -1
        self.lost = self.whole = False
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def send(self, data: bytes) -> None:
        self.buffer, self.head, self.length, self.whole = bytearray(), b"", -1, False
        self.ended = asyncio.get_running_loop().create_future()
        if self.lost:
            self.ended.set_result(None)
        self.transport.write(data)

    def leave(self, *, reset: bool) -> None:
        if reset and not self.lost:
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.lost = True
        self.transport.abort()

    def connection_made(self, transport: Any) -> None:
        self.transport: asyncio.Transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if not self.head:
            at = self.buffer.find(b"\r\n\r\n")
            if at < 0:
                return
            self.head = bytes(self.buffer[: at + 4])
            del self.buffer[: at + 4]
            found = _LENGTH.search(self.head)
            self.length = int(found[1]) if found else -1
        if len(self.buffer) >= self.length if self.length >= 0 else self.buffer.endswith(b"0\r\n\r\n"):
            self.whole = True
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._end()

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


async def connect(port: int) -> Line:
    _, line = await asyncio.get_running_loop().create_connection(Line, "127.0.0.1", port)
    return line


def _kind(streamed: bool) -> tuple[str, bytes]:
    """A path, and what ends its stream (nothing: it does not stream)."""
    if not streamed:
        return random.choice(_WHOLE), b""
    path, last, _ = random.choices(_STREAMED, [weight for *_, weight in _STREAMED])[0]
    return path, last


def request(number: str, path: str, stream: bool, target: Target, tight: bool) -> bytes:
    """Texts, users, conversations, parameters of every request differ, so that nothing can be remembered for ever."""
    text = f"{number} " + " ".join(random.choices(_WORDS, k=random.randint(5, 400)))
    limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    body: dict[str, Any] = {limit: TOKENS, "temperature": round(random.uniform(0, 2), 3)}
    if path == "/generate":
        body |= {"prompt": text, "preset": random.choice(target.presets)}
    else:
        body |= {"model": random.choice(target.presets), "stream": stream}
        said = [{"role": "user", "content": text}]
        field_name = {"/v1/completions": "prompt", "/v1/responses": "input"}.get(path, "messages")
        body[field_name] = said if field_name == "messages" else text
    if path in ("/v1/chat/completions", "/v1/completions"):
        body |= {"user": f"user-{random.randrange(10**6)}", "seed": random.randrange(2**31)}
    data = json.dumps(body, ensure_ascii=False).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{target.port}\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {target.keys['tight' if tight else 'load']}\r\nx-request-id: {number}\r\n"
        f"x-conversation-id: conversation-{random.randrange(10**6)}\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data
