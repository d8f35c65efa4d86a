"""Many visitors of a gateway at once: kept connections, streamed replies read to their end, ids noted.

Raw HTTP/1.1 over asyncio streams, because ten thousand replies have to be read beside the gateway on two cores. Knows
the contract's headers; nothing of the gateway's own code.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

VISITORS = 16
_END = b"\r\n0\r\n\r\n"
_LONGEST = 4 * 1024 * 1024


@dataclass(frozen=True)
class Answer:
    """A reply that was read to its end. `began` and `ended` are time.monotonic()."""

    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes
    began: float
    ended: float

    @property
    def exchange(self) -> str:
        return self.headers["x-tempera-exchange"]

    @property
    def whole(self) -> bool:
        """A stream that ran to its regular end."""
        return self.status == 200 and b"data: [DONE]" in self.body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Visitor:
    """One connection, opened again when the server has closed it between two requests."""

    def __init__(self, url: str) -> None:
        self._host, port = url.removeprefix("http://").split(":")
        self._port = int(port)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> Answer:
        """Raises OSError or asyncio.IncompleteReadError when the connection ends before the reply does."""
        raw = json.dumps(body).encode()
        lines = [f"POST {path} HTTP/1.1", f"host: {self._host}", "content-type: application/json"]
        lines += [f"content-length: {len(raw)}", *(f"{name}: {value}" for name, value in (headers or {}).items())]
        began = time.monotonic()
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port, limit=_LONGEST)
        reader, writer = self._streams
        writer.write("\r\n".join([*lines, "", ""]).encode() + raw)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        told = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        if "content-length" in told:
            read = await reader.readexactly(int(told["content-length"]))
        else:
            read = await reader.readuntil(_END)
        answer = Answer(int(head[0].split()[1]), told, read, began, time.monotonic())
        if told.get("connection") == "close":
            await self.leave()
        return answer

    async def chat(self, text: str, headers: dict[str, str] | None = None, **fields: Any) -> Answer:
        """A streamed chat request."""
        body = {"messages": [{"role": "user", "content": text}], "stream": True} | fields
        return await self.post("/v1/chat/completions", body, headers)

    async def vote(self, exchange: str, value: float) -> Answer:
        return await self.post("/v1/feedback", {"exchange_id": exchange, "value": value})

    async def leave(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def crowd(
    url: str, jobs: Iterable[Any], do: Callable[[Visitor, Any], Awaitable[None]], visitors: int = VISITORS
) -> None:
    """`do(visitor, job)` for every job, by so many visitors at once; the first failure ends it."""
    waiting = iter(jobs)

    async def work() -> None:
        visitor = Visitor(url)
        try:
            for job in waiting:
                await do(visitor, job)
        finally:
            await visitor.leave()

    async with asyncio.TaskGroup() as group:
        for _ in range(visitors):
            group.create_task(work())
