"""One connection from a client: HTTP/1.1 on httptools, the protocol that uvicorn runs for every socket it accepts.

uvicorn keeps the sockets, the lifespan and the shutdown; this takes the place of its protocol, which costs a timer, an
event and two tasks per request. Requests on one connection are answered one at a time, in order. Knows framing and
deadlines; nothing about routes.

Deadlines are met by `check`, which the server calls at each of its ticks: the way of a request looks at no clock.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final, cast

import httptools
import uvicorn
from uvicorn.server import ServerState

from gateway.protocol.dialects import PATHS
from gateway.protocol.errors import GatewayError, RequestTimeout
from gateway.serving.client import EXTENSION
from gateway.serving.cycle import Cycle, refusal
from gateway.serving.heads import new_parser, not_a_request, split
from gateway.serving.timing import Deadlines

HIGH_WATER: Final = 64 * 1024  # bytes of an unread request at which the socket is read no further
MAX_HEAD: Final = 64 * 1024  # bytes of a request's line and headers
_SLOWEST: Final = 16 * 1024  # bytes a second that a body must come with, beyond the time it has anyway
_KNOWN: Final = {path.encode(): path for path in PATHS}
_FRAMING: Final = (b"content-length", b"transfer-encoding")
_ASGI: Final = {"version": "3.0", "spec_version": "2.3"}


class Protocol(asyncio.Protocol):
    """`full` is true while the client is behind with its reply."""

    __deletable__ = ("_parser",)
    transport: asyncio.Transport
    loop: asyncio.AbstractEventLoop

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        deadlines: Deadlines = Deadlines(),  # noqa: B008 - immutable
    ) -> None:
        self.loop = _loop or asyncio.get_running_loop()
        self.full = False
        self._app, self._state, self._deadlines = config.loaded_app, server_state, deadlines
        self._app_state = app_state
        self._parser = new_parser(self)
        self._url, self._headers, self._expects = b"", list[tuple[bytes, bytes]](), False
        self._head = 0  # bytes of the head that is arriving
        self._incoming: Cycle | None = None  # whose body is arriving
        self._active: Cycle | None = None  # whose reply is awaited
        self._queue: deque[Cycle] = deque()  # asked while another was being answered
        self._held = 0  # bytes of them, about
        self._reading = self._refused = self._paused = self._closing = False
        self._again = False  # the parser is told of a request that it has begun already
        self._room: asyncio.Future[None] | None = None
        self._fresh = True  # a request or a reply has ended since the last `check`
        self._since = 0.0  # when that was, or when the client last took a byte
        self._began: float | None = None  # when the request that is arriving was first seen
        self._received = self._unsent = 0

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # in all but name: uvloop's are not subclasses
        self._state.connections.add(self)  # type: ignore[arg-type]  # a protocol in all but name
        secure = transport.get_extra_info("sslcontext") is not None
        self._fixed = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": "1.1",
            "server": transport.get_extra_info("sockname"),
            "client": transport.get_extra_info("peername"),
            "scheme": "https" if secure else "http",
            "root_path": "",
        }

    def data_received(self, data: bytes) -> None:
        rest = data
        while rest:
            try:
                try:
                    self._parser.feed_data(rest)
                    break
                except httptools.HttpParserUpgrade as offer:
                    rest = rest[offer.args[0] :]
                    self._decline()
            except httptools.HttpParserError as error:
                cause = error.__context__
                self._refuse(cause if isinstance(cause, GatewayError) else not_a_request())
                break
        if self._head:
            self._head += len(data)
            if self._head > MAX_HEAD:
                self._refuse(not_a_request(f"Its head has more than {MAX_HEAD} bytes."))

    def _decline(self) -> None:
        """Go on in HTTP/1.1, with a parser that does not take the body for HTTP/2: Java's client offers that.

        Raises HttpParserError for a framing that the parser did not look at while it believed in the offer.
        """
        self._parser = new_parser(self)
        framing = [header for header in self._headers if header[0] in _FRAMING]
        if framing and self._incoming is not None:
            self._again = True
            self._parser.feed_data(b"POST / HTTP/1.1\r\n%b: %b\r\n\r\n" % framing[0])
            self._again = False

    def connection_lost(self, exc: Exception | None) -> None:
        self._state.connections.discard(self)
        self._closing = True
        self.resume_writing()
        for cycle in (self._active, self._incoming):
            if cycle is not None:
                cycle.leave()
        self._active = self._incoming = None  # they refer back to this object
        self._queue.clear()
        del self._parser  # it refers back to this object

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)
        if self._active is not None and self._active.on_room is not None:
            self._active.on_room()

    # What the parser calls. It turns whatever is raised here into a parse error with this as its context.

    def on_message_begin(self) -> None:
        self._url, self._headers, self._expects = b"", [], False
        self._reading, self._head, self._received, self._began = True, 1, 0, None

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"expect":
            self._expects = value.lower() == b"100-continue"
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._head = 0
        if self._again:
            return
        url, parser = self._url, self._parser
        path, raw_path, query = _KNOWN.get(url), url, b""
        if path is None:
            path, raw_path, query = split(url)
        scope = {
            **self._fixed,
            "method": parser.get_method().decode("ascii"),
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": self._headers,
            "state": self._app_state.copy() if self._app_state else {},
        }
        version = parser.get_http_version()
        if version != "1.1":
            scope["http_version"] = version
        keep_alive = version == "1.1" and parser.should_keep_alive()
        cycle = Cycle(self, scope, keep_alive=keep_alive, expects=self._expects)
        scope["extensions"] = {EXTENSION: cycle}
        self._incoming = cycle
        if self._active is None:
            self._start(cycle)
        else:
            self._queue.append(cycle)
            self._hold(1024 + len(url) + sum(len(name) + len(value) for name, value in self._headers))

    def on_body(self, body: bytes) -> None:
        cycle = self._incoming
        if cycle is None or cycle.done:
            return  # of a request that was refused before it was complete
        self._received += len(body)
        cycle.pieces.append(body)
        cycle.size += len(body)
        if cycle is not self._active:
            self._hold(len(body))
        elif cycle.size > cycle.wanted:
            cycle.wake()
            if cycle.size > HIGH_WATER:
                self._pause_reading()

    def _hold(self, size: int) -> None:
        """Requests that wait for the one before them are held up to a bound; a socket that is not read does not say
        that its client has left, so it is read as long as can be.
        """
        self._held += size
        if self._held > HIGH_WATER:
            self._pause_reading()

    def on_message_complete(self) -> None:
        if self._parser.should_upgrade() and any(name in _FRAMING for name, _ in self._headers):
            return  # its body comes yet
        self._reading = False
        cycle, self._incoming = self._incoming, None
        if cycle is not None:
            cycle.complete = True
            cycle.wake()

    # What the cycles call.

    def _start(self, cycle: Cycle) -> None:
        self._active = cycle
        cycle.task = self.loop.create_task(cycle.run(self._app))
        self._state.tasks.add(cycle.task)

    def ended(self, cycle: Cycle) -> None:
        """The application has returned."""
        if cycle.task is not None:
            self._state.tasks.discard(cycle.task)

    def replied(self, cycle: Cycle) -> None:
        """The reply is complete: the next request, if one waits, has its turn."""
        self._state.total_requests += 1
        self._active, self._fresh = None, True
        cycle.wake()
        if self._closing or not cycle.keep_alive:
            self.transport.close()
        elif self._queue:
            self._start(self._queue.popleft())
        if not self._queue:
            self._held = 0
        self.resume_reading()

    def resume_reading(self) -> None:
        if self._paused and self._held <= HIGH_WATER and not self._refused:
            self._paused = False
            self.transport.resume_reading()

    def _pause_reading(self) -> None:
        if not self._paused:
            self._paused = True
            self.transport.pause_reading()

    async def drained(self) -> None:
        """Returns when the client has caught up, or is gone."""
        if self.full:
            if self._room is None:
                self._room = self.loop.create_future()
            await asyncio.shield(self._room)

    # What the server calls.

    def shutdown(self) -> None:
        """Take no more requests; the one that is being answered is answered."""
        self._closing = True
        if self._active is None:
            self.transport.close()
        else:
            self._active.keep_alive = False

    def check(self, now: float) -> None:
        """Close the connection if its client is overdue. `now` is the loop's time; called twice a second."""
        limits, unsent = self._deadlines, self.transport.get_write_buffer_size()
        if self._reading:
            self._began = began = now if self._began is None else self._began
            if now - began >= limits.read + self._received / _SLOWEST:
                self._refuse(RequestTimeout(f"The request was not complete within {limits.read:g} s."))
        if self._fresh or unsent != self._unsent:
            self._fresh, self._since, self._unsent = False, now, unsent
        elif unsent:
            if now - self._since >= limits.write:
                self.transport.abort()
        elif self._active is None and not self._reading and now - self._since >= limits.keep_alive:
            self.transport.close()

    def _refuse(self, error: GatewayError) -> None:
        """What is no request gets no exchange, but an id to ask about all the same; then the connection ends."""
        if self._refused:
            return
        self._refused, active, incoming = True, self._active, self._incoming
        self._pause_reading()
        if active is not None and active is not incoming:  # the request before it still gets its reply
            self._queue.clear()
            active.keep_alive = False
            return
        if incoming is not None and incoming.started:  # in the middle of a reply there is no place for another
            self.transport.close() if incoming.done else self.transport.abort()
            return
        self.transport.write(refusal(error))
        self.transport.close()
        if incoming is not None:
            incoming.leave()
