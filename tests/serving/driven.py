"""The data path driven by hand: an ASGI client and an engine whose every step the test decides. No sockets, no clocks.

`ask(...)` gives a Driven: start it, let it run until it can do nothing more (`settle`), look, push it further.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gateway.log.exchange import RawExchange
from gateway.policy.choice import Facts
from gateway.policy.config import Config
from gateway.serving.access import Access
from gateway.serving.client import client_of
from gateway.serving.relay import Turn
from gateway.serving.routes import find
from gateway.serving.state import State
from gateway.settings import Settings
from tests.policy.made import config_of, facts_of

Header = tuple[bytes, bytes]
STREAM: tuple[Header, ...] = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"server", b"uvicorn"))
JSON: tuple[Header, ...] = ((b"content-type", b"application/json"), (b"server", b"uvicorn"), (b"content-length", b"9"))
CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "input": "Hi", "prompt": "Hi", "max_tokens": 9}


class Hang:
    """A step that never ends by itself."""


class FakeReply:
    """An engine's reply in steps: bytes, an exception to raise, an Event to wait for, or Hang. The last ends it.

    `late_end`: that it is complete is only known when there is nothing more to read, as with a chunked body.
    """

    def __init__(self, steps: Iterable[Any], status: int, headers: Iterable[Header], late_end: bool = False) -> None:
        self.status, self.headers = status, list(headers)
        self.steps = list(steps)
        self.late_end = late_end
        self.complete = False
        self.reads = 0
        self.closed = 0
        self._room = asyncio.Event()

    async def read(self) -> bytes:
        self.reads += 1
        step = self.steps.pop(0) if self.steps else b""
        if step is Hang:
            await asyncio.get_running_loop().create_future()
        if isinstance(step, asyncio.Event):
            await step.wait()
            return await self.read()
        if isinstance(step, BaseException):
            raise step
        await asyncio.sleep(0)
        self.complete = not self.steps and (not self.late_end or step == b"")
        assert isinstance(step, bytes)
        return step

    def take(self) -> bytes:
        return b""

    async def pour(self, sink: Callable[[bytes, bool], bool]) -> None:
        while not self.complete:
            raw = await self.read()
            self._room.clear()
            if not sink(raw, self.complete):
                await self._room.wait()

    def resume(self) -> None:
        self._room.set()

    def close(self) -> None:
        self.closed += 1


class FakePool:
    """The way to an engine: `answer` is a FakeReply, an exception, or Hang."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.sent: list[tuple[bytes, bytes, dict[bytes, bytes], bytes]] = []
        self.cancelled = False

    async def send(
        self, method: bytes, path: bytes, headers: tuple[Header, ...], body: bytes, own: bytes = b""
    ) -> FakeReply:
        lines = [line.partition(b": ") for line in own.splitlines()]
        every = [*headers, *((name, value) for name, _, value in lines)]
        assert len(every) == len(dict(every))
        self.sent.append((method, path, dict(every), body))
        await asyncio.sleep(0)
        if self.answer is Hang:
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                self.cancelled = True
                raise
        if isinstance(self.answer, BaseException):
            raise self.answer
        assert isinstance(self.answer, FakeReply)
        return self.answer


class Driven:
    """One request on its way. `sent` are the ASGI messages the client got."""

    def __init__(self, state: State, pool: FakePool, scope: dict[str, Any], messages: Iterable[dict[str, Any]]) -> None:
        self.state, self.pool, self.scope = state, pool, scope
        self.offered: list[RawExchange] = []
        state.offer = self.offered.append
        self.sent: list[dict[str, Any]] = []
        self.reading = asyncio.Event()  # cleared: a client that does not read, so that `send` waits
        self.reading.set()
        self.waiting = False  # `send` waits
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        for message in messages:
            self._inbox.put_nowait(message)
        self.task: asyncio.Task[None] | None = None

    async def _send(self, message: Any) -> None:
        self.waiting = True
        await self.reading.wait()
        self.waiting = False
        self.sent.append(dict(message))

    def start(self) -> Driven:
        prepare = find(self.scope["method"], self.scope["path"])
        assert prepare is not None

        async def run() -> None:
            await Turn(self.state, self.scope, client_of(self.scope, self._inbox.get, self._send)).run(prepare)

        self.task = asyncio.create_task(run())
        return self

    def say(self, message: dict[str, Any]) -> None:
        self._inbox.put_nowait(message)

    def leave(self) -> None:
        self.say({"type": "http.disconnect"})

    async def settle(self) -> Driven:
        """Let everything run until only the test can move it."""
        for _ in range(300):
            await asyncio.sleep(0)
        return self

    async def finish(self) -> Driven:
        """Run to the end."""
        assert self.task is not None
        async with asyncio.timeout(5):
            await self.task
        await self.settle()
        return self

    @property
    def exchange(self) -> RawExchange:
        """What was offered: exactly one exchange, always."""
        assert len(self.offered) == 1
        return self.offered[0]

    @property
    def status(self) -> int:
        starts = [message for message in self.sent if message["type"] == "http.response.start"]
        assert len(starts) == 1
        assert self.sent[0] is starts[0]
        return int(starts[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        pairs = self.sent[0]["headers"]
        names = [name for name, _ in pairs]
        assert len(names) == len(set(names)), "no header twice"
        return dict(pairs)

    @property
    def body(self) -> bytes:
        """The whole body; it must have been ended, once."""
        bodies = [message for message in self.sent[1:] if message["type"] == "http.response.body"]
        assert [message.get("more_body", False) for message in bodies] == [True] * (len(bodies) - 1) + [False]
        return self.so_far

    @property
    def so_far(self) -> bytes:
        return b"".join(message["body"] for message in self.sent[1:])

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)["error"]
        assert found.keys() == {"message", "type", "param", "code"}
        return found


def ask(
    answer: Any,
    *,
    path: str = CHAT,
    method: str = "POST",
    body: bytes | Mapping[str, Any] | None = None,
    headers: Iterable[Header] = (),
    messages: Iterable[dict[str, Any]] | None = None,
    config: Config | None = None,
    facts: Facts | None = None,
    settings: Settings | None = None,
    query: bytes = b"",
) -> Driven:
    """A request that has not started. `messages` replace the body, which else arrives whole."""
    if not isinstance(body, bytes):
        body = json.dumps({**BODY, **(body or {})}).encode()
    pool = FakePool(answer)
    asked: list[int] = []

    async def refresh() -> None:
        asked.append(1)

    state = State(
        settings=settings or Settings(),
        config=config or config_of(),
        facts=facts or facts_of(),
        pools={"default": pool},  # type: ignore[dict-item]
        models=SimpleNamespace(refresh=refresh, asked=asked),  # type: ignore[arg-type]
        access=Access(Path("/nonexistent")),
        log=None,  # type: ignore[arg-type]
        offer=lambda exchange: None,
    )
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "headers": [(b"host", b"x"), (b"content-type", b"application/json"), *headers],
    }
    whole = [{"type": "http.request", "body": body, "more_body": False}]
    return Driven(state, pool, scope, whole if messages is None else messages)


def stream(*steps: Any, late_end: bool = False, headers: Iterable[Header] = STREAM) -> FakeReply:
    return FakeReply(steps, 200, headers, late_end)


def plain(*steps: Any, status: int = 200, headers: Iterable[Header] = JSON) -> FakeReply:
    return FakeReply(steps, status, headers)
