"""What a Turn says to whoever asked: plain calls, so that a piece of a stream costs no task and no future.

`Client` is the seam. Our own server's cycle (wire, cycle) is one; `AsgiClient` makes one of any ASGI server's `receive`
and `send`, at the price of a task for each. Knows nothing of what is asked or answered.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, Protocol

from gateway.protocol.errors import TooLarge

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = tuple[tuple[bytes, bytes], ...]

EXTENSION: Final = "tempera.client"  # where a server of ours puts its cycle in the scope


class ClientGoneError(Exception):
    """The client left before its request was complete."""


class Client(Protocol):
    """One request's client. `task` runs the Turn; the two callbacks are the Turn's to set."""

    task: asyncio.Task[None] | None
    on_gone: Callable[[], None] | None  # called once when the client leaves before its reply is complete
    on_room: Callable[[], None] | None  # called when a `write` that said False has been taken

    async def body(self, limit: int) -> bytes:
        """The whole request body. Raises TooLarge as soon as it has more than `limit` bytes, and ClientGoneError."""

    def watch(self) -> None:
        """From now on `on_gone` is called."""

    def start(self, status: int, groups: tuple[Headers, ...], own: bytes, length: int | None) -> None:
        """The reply's head. `groups` are headers that come again in other replies; `own` are header lines of this one
        alone, complete with their line ends and taken as they are. `length` is the body's, if it is known.
        """

    def write(self, data: bytes, more: bool) -> bool:
        """A piece of the reply's body; False when the client is behind and nothing more should come until `on_room`."""

    async def sent(self) -> None:
        """Returns when the server has taken everything."""


def client_of(scope: Scope, receive: Receive, send: Send) -> Client:
    """The server's own, if it is ours."""
    client: Client | None = scope.get("extensions", {}).get(EXTENSION)
    return AsgiClient(receive, send) if client is None else client


class AsgiClient:
    """A Client on top of ASGI."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self.task = asyncio.current_task()
        self.on_gone: Callable[[], None] | None = None
        self.on_room: Callable[[], None] | None = None
        self._waiting: deque[Message] = deque()
        self._sending: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None

    async def body(self, limit: int) -> bytes:
        pieces: list[bytes] = []
        size, more = 0, True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            piece: bytes = message.get("body", b"")
            size += len(piece)
            if size > limit:
                raise TooLarge(f"The body has more than the {limit} bytes allowed.")
            pieces.append(piece)
            more = message.get("more_body", False)
        return b"".join(pieces)

    def watch(self) -> None:
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self.on_gone is not None:
            self.on_gone()

    def start(self, status: int, groups: tuple[Headers, ...], own: bytes, length: int | None) -> None:
        headers = [header for group in groups for header in group]
        headers += [(name, value) for name, _, value in (line.partition(b": ") for line in own.splitlines())]
        if length is not None:
            headers.append((b"content-length", str(length).encode()))
        self._waiting.append({"type": "http.response.start", "status": status, "headers": headers})

    def write(self, data: bytes, more: bool) -> bool:
        self._waiting.append({"type": "http.response.body", "body": data, "more_body": more})
        if self._sending is None:
            self._sending = asyncio.get_running_loop().create_task(self._flush())
        return False

    async def _flush(self) -> None:
        while self._waiting:
            await self._send(self._waiting.popleft())
        self._sending = None
        if self.on_room is not None:
            self.on_room()

    async def sent(self) -> None:
        try:
            while self._sending is not None:
                await self._sending
        finally:
            for task in (self._watching, self._sending):
                if task is not None:
                    task.cancel()
