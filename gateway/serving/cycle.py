"""One request on a connection of ours, and the framing of its reply.

Offers the relay plain calls (client.Client) and everybody else ASGI's `receive` and `send`, on top of the same state.
Header names must be lower-case, as Starlette and the relay make them. The head waits for the first piece of the body
and leaves with it: one system call, and one wake-up of whoever reads. Knows nothing about sockets beyond `write`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from gateway.protocol.errors import GatewayError, Internal, TooLarge
from gateway.serving.client import ClientGoneError, Headers, Message, Scope
from gateway.serving.ids import exchange_id

if TYPE_CHECKING:
    from gateway.serving.wire import Protocol

_BODILESS: Final = frozenset({204, 304})
_PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}
LINES: Final = {
    status: f"HTTP/1.1 {status} {_PHRASES.get(status, '')}\r\n".encode() for status in range(200, 600)
}  # a client reads the number


class Cycle:
    """A request being answered. What most requests never change is a default of the class."""

    task: asyncio.Task[None] | None = None
    on_gone: Callable[[], None] | None = None
    on_room: Callable[[], None] | None = None
    size = 0  # bytes of the body held here, not read yet
    wanted = 0  # so many may come before whoever reads is woken
    complete = False  # the request has arrived
    read = False  # and has been read to its end
    gone = False  # the client left, or has all it asked for
    started = False  # the reply
    done = False
    head = b""  # until there is a body to send it with
    left: int | None = None  # bytes that the body must still have, if its length was said
    bare = False  # a reply without a body
    plain = False  # a body without framing: its length was said, or its end is the connection's
    waiter: asyncio.Future[None] | None = None

    def __init__(self, connection: Protocol, scope: Scope, *, keep_alive: bool, expects: bool) -> None:
        self.connection, self.scope, self.keep_alive, self.expects = connection, scope, keep_alive, expects
        self.pieces: list[bytes] = []

    # The relay's way.

    async def body(self, limit: int) -> bytes:
        self.wanted = limit
        while not self.complete and not self.gone and self.size <= limit:
            await self._more()
        if self.gone:
            raise ClientGoneError
        if self.size > limit:
            raise TooLarge(f"The body has more than the {limit} bytes allowed.")
        self.connection.resume_reading()  # else nobody would see the client leave
        self.read, pieces = True, self.pieces
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def watch(self) -> None:
        """Nothing to do: the connection tells."""

    def start(self, status: int, groups: tuple[Headers, ...], own: bytes = b"", length: int | None = None) -> None:
        """Raises RuntimeError for a second start and for a header that holds a line break."""
        if self.started:
            raise RuntimeError("The reply has begun already.")
        self.started, self.expects = True, False
        self.bare = self.scope["method"] == "HEAD" or status in _BODILESS
        lines = [LINES[status]]
        for block, said, ends in map(_remembered, groups):
            lines.append(block)
            length = length if said is None else said
            if ends:
                self.keep_alive = False
        lines.append(own)
        self.left = length
        if length is not None:
            lines.append(b"content-length: %d\r\n" % length)
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        self.plain = self.bare or self.left is not None or self.scope["http_version"] == "1.0"
        if not self.plain:
            lines.append(b"transfer-encoding: chunked\r\n")
        lines.append(b"\r\n")
        self.head = b"".join(lines)

    def write(self, data: bytes, more: bool) -> bool:
        """Raises RuntimeError before the start, after the end, and for a body of another length than was said."""
        if self.gone:
            return True
        if not self.started or self.done:
            raise RuntimeError("A piece of a reply that has not begun, or is complete already.")
        if not self.plain:
            data = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
            if not more:
                data += b"0\r\n\r\n"
        elif self.bare:
            data = b""
        elif self.left is not None:
            self._count(len(data), more)
        if self.head:
            data, self.head = self.head + data, b""
        if data:
            self.connection.transport.write(data)
        if not more:
            self.done = True
            self.connection.replied(self)
        return not self.connection.full

    def _count(self, length: int, more: bool) -> None:
        self.left = left = (self.left or 0) - length
        if left < 0 or (left and not more):
            raise RuntimeError("The body is not as long as its Content-Length.")

    async def sent(self) -> None:
        """Everything written is the transport's already."""

    # ASGI's way.

    async def receive(self) -> Message:
        self.wanted = 0
        while not (self.gone or self.done or self.pieces or (self.complete and not self.read)):
            await self._more()
        if self.gone or self.done:
            return {"type": "http.disconnect"}
        data, self.size, self.read = b"".join(self.pieces), 0, self.complete
        self.pieces.clear()
        self.connection.resume_reading()
        return {"type": "http.request", "body": data, "more_body": not self.complete}

    async def send(self, message: Message) -> None:
        if self.connection.full:
            await self.connection.drained()
        if self.gone:
            return
        if message["type"] == "http.response.start":
            # Each of these heads has ids of its own: none is worth remembering.
            own, length, ends = _remembered.__wrapped__(tuple(message.get("headers", ())))
            self.keep_alive = self.keep_alive and not ends
            self.start(message["status"], (), own, length)
        else:
            self.write(message.get("body", b""), message.get("more_body", False))

    # The connection's way.

    async def run(self, app: Callable[..., Any]) -> None:
        """The application's whole turn; one that raises or forgets its reply is answered for."""
        try:
            await app(self.scope, self.receive, self.send)
        finally:
            self.connection.ended(self)
            self.task = None  # these two refer back here, and would wait for the garbage collector
            self.scope["extensions"] = {}
            if not self.done and not self.gone:
                if self.started:
                    self.connection.transport.abort()  # a reply that is cut off must not look complete
                else:
                    body = Internal("The gateway failed on this request.").body()
                    headers = ((b"content-type", b"application/json"), (b"connection", b"close"))
                    self.start(500, (headers,), length=len(body))
                    self.write(body, more=False)

    def wake(self) -> None:
        """Somebody who waits for the request, or for its end, looks again."""
        waiter, self.waiter = self.waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def leave(self) -> None:
        """The client is gone."""
        if not self.done and not self.gone:
            self.gone = True
            if self.on_gone is not None:
                self.on_gone()
        self.gone = True
        self.wake()

    async def _more(self) -> None:
        if self.expects:
            self.expects = False
            self.connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.connection.resume_reading()
        if self.waiter is None:
            self.waiter = self.connection.loop.create_future()
        await self.waiter


@lru_cache(maxsize=512)
def _remembered(group: Headers) -> tuple[bytes, int | None, bool]:
    """(the headers as bytes, the body's length if one says so, whether one ends the connection).

    Most of a reply's headers come again and again. Raises RuntimeError for a line break in a header: more line ends
    than headers came from inside one.
    """
    length, ends, lines = None, False, []
    for name, value in group:
        if name == b"content-length":
            length = int(value)
            continue
        if name == b"connection":
            ends = ends or b"close" in value.lower()
            continue  # said at the end, once
        if name == b"transfer-encoding":
            continue  # the framing is decided here
        lines.append(b"%b: %b\r\n" % (name, value))
    block = b"".join(lines)
    if not block.count(b"\r") == block.count(b"\n") == len(lines):
        raise RuntimeError("A reply header holds a line break.")
    return block, length, ends


def refusal(error: GatewayError) -> bytes:
    """The reply to what is no request: it has no exchange, but an id to ask about all the same."""
    body, identifier = error.body(), exchange_id().encode()
    return (
        b"%bcontent-type: application/json\r\nx-tempera-exchange: %b\r\nx-request-id: %b\r\n"
        b"content-length: %d\r\nconnection: close\r\n\r\n%b"
        % (LINES[error.status], identifier, identifier, len(body), body)
    )
