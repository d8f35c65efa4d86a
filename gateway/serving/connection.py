"""One keep-alive HTTP/1.1 connection to an engine, and the reply being read from it.

Knows bytes, the parser and the transport: framing, backpressure, what may be reused, when an exchange is overdue. Does
not know addresses, the pool, retries, request heads, JSON or SSE: body bytes are handed over as they came.

Rules it keeps:
  - One exchange at a time: `reply` is set from `exchange()` to the last byte, and None at rest or once it failed.
  - The parser appends body bytes to `parts` without a Python frame. At most HIGH_WATER and one read are held.
  - No timer per exchange. The hot path only sets `fresh`; `check()`, called by the pool at each of its ticks, looks at
    the clock. So a deadline is met up to one tick late, and never early.
  - A reply that is closed early takes its connection down with it at once: that is what stops the engine's work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from gateway.protocol.errors import GatewayError, UpstreamError, UpstreamInvalidResponse, UpstreamReset, UpstreamTimeout
from gateway.serving.reply import Reply
from gateway.serving.timing import Timeouts
from gateway.serving.way import Sink

HIGH_WATER = 256 * 1024  # bytes of unread body, framing included, at which the socket is read no further
MAX_HEAD = 64 * 1024  # bytes of status line and headers, and of framing between two pieces of body
MAX_HEADERS = 256

# Any other value would need decoding, and we asked for none.
_PLAIN = ((b"content-encoding", (b"identity", b"")), (b"transfer-encoding", (b"chunked",)))


class Stale(UpstreamReset):
    """A reused connection died before a byte of its response: the one failure that is worth another try."""


class Connection(asyncio.Protocol):
    """`at_rest` is called when the connection may be used again, `lost` once when it is gone."""

    __deletable__ = ("parser",)
    transport: asyncio.Transport

    def __init__(
        self, name: str, timeouts: Timeouts, at_rest: Callable[[Connection], None], lost: Callable[[Connection], None]
    ) -> None:
        self.name, self.timeouts, self.at_rest, self.lost = name, timeouts, at_rest, lost
        self.loop = asyncio.get_running_loop()
        self.parts: list[bytes] = []
        self.on_body = self.parts.append  # the parser calls it directly
        self.headers: list[tuple[bytes, bytes]] = []
        self.reply: Reply | None = None
        self.waiter: asyncio.Future[None] | None = None
        self.sink: Sink | None = None
        self.used = self.began = self.in_head = self.interim = self.until_eof = self.fresh = self.paused = False
        self.keep_alive = self.gone = False
        self.unread = self.overhead = self.unsent = 0
        self.since = self.moved = 0.0
        self.parser = HttpResponseParser(self)

    # What the pool calls.

    async def exchange(self, head: bytes, body: bytes) -> Reply:
        """Send one request and return its reply once the head is there. Raises UpstreamError, Stale included."""
        self.headers = []
        reply = self.reply = Reply(self, self.headers)
        self.in_head = True
        self.began = self.fresh = False
        self.overhead = self.unsent = 0
        self.since = self.moved = self.loop.time()
        waiter = self.waiter = self.loop.create_future()
        if body and len(body) > 16384:
            self.transport.writelines((head, body))
        elif body:
            self.transport.write(head + body)
        else:
            self.transport.write(head)
        try:
            await waiter
        except asyncio.CancelledError:
            reply.close()
            raise
        if reply.error is not None and not reply.status:
            reply.close()
            raise reply.error
        return reply

    def check(self, now: float) -> None:
        """Fail the exchange if it is overdue. A body nobody reads is not: then the slow side is the client."""
        if self.reply is None:
            return
        limits, late = self.timeouts, ""
        unsent = self.transport.get_write_buffer_size()
        if not unsent or unsent != self.unsent:
            self.unsent, self.moved = unsent, now
        elif now - self.moved >= limits.write:
            late = f"took no byte of the request for {limits.write:g} s"
        if self.fresh or self.parts or self.paused:
            self.fresh, self.since = False, now
        elif self.in_head:
            if now - self.since >= limits.headers:
                late = f"sent no response within {limits.headers:g} s"
        elif now - self.since >= limits.idle:
            late = f"sent nothing more for {limits.idle:g} s"
        if late:
            self.fail(UpstreamTimeout(f"engine {self.name} {late}"))

    def fail(self, error: UpstreamError) -> None:
        """End the exchange, if there is one, with this error, and the connection with it."""
        reply = self.reply
        if reply is not None and self.sink is not None and self.parts:
            self.pour(reply)
        self.reply = None
        if reply is not None:
            reply.error = reply.error or error
        self.transport.abort()
        self.wake()

    # What the reply calls.

    def drain(self) -> bytes:
        parts = self.parts
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self.unread = 0
        self.resume()
        return data

    def resume(self) -> None:
        if self.paused:
            self.paused = False
            self.transport.resume_reading()

    def pour(self, reply: Reply) -> None:
        """What has arrived goes to the sink; the last piece, or the sink's refusal, wakes whoever waits."""
        try:
            going = self.sink is None or self.sink(self.drain(), reply.complete)
        except GatewayError as error:
            reply.error, reply.complete = error, False
            going = False
            self.reply = None
            self.transport.abort()
        if reply.complete or reply.error is not None:
            self.sink = None
            self.wake()
        elif not going:
            self.paused = True
            self.transport.pause_reading()

    def release(self, complete: bool) -> None:
        transport = self.transport
        # A request still being written when its reply is over (an early refusal) would run into the next one.
        if complete and self.keep_alive and not transport.is_closing() and not transport.get_write_buffer_size():
            self.drain()
            self.used = True
            self.since = self.loop.time()
            self.at_rest(self)
        else:
            self.reply = None
            transport.abort()

    def wake(self) -> None:
        waiter, self.waiter = self.waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # in all but name: uvloop's are not subclasses

    def data_received(self, data: bytes) -> None:
        reply = self.reply
        if reply is None:  # bytes nobody asked for
            self.transport.abort()
            return
        if self.in_head:
            self.overhead += len(data)
        try:
            self.parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self._refuse(error, reply)
            return
        if self.sink is not None and (self.parts or reply.complete):
            self.fresh = True
            self.overhead = 0
            self.pour(reply)
        elif self.parts:
            self.fresh = True
            self.overhead = 0
            self.unread += len(data)
            if self.unread > HIGH_WATER and not self.paused:
                self.paused = True
                self.transport.pause_reading()
            self.wake()
        elif self.reply is None:
            self.wake()
        else:
            if not self.in_head:
                self.overhead += len(data)
            if self.overhead > MAX_HEAD:
                self._refuse(HttpParserError(f"more than {MAX_HEAD} bytes without a piece of the body"), reply)

    def eof_received(self) -> None:
        reply = self.reply
        if self.until_eof:
            self._finish()
            if self.sink is not None and reply is not None:
                self.pour(reply)
        # close() alone would wait for the engine to take the rest of a request it no longer reads
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        del self.parser  # it refers back to this object
        if self.used and not self.began:
            self.fail(Stale(f"engine {self.name} closed the connection before it answered"))
        else:
            when = "the reply was complete" if self.began else "it answered"
            self.fail(UpstreamReset(f"engine {self.name} closed the connection before {when}"))
        self.lost(self)

    def _refuse(self, error: Exception, reply: Reply) -> None:
        """The bytes are not an HTTP response to this request; what came before them may still be read."""
        if self.sink is not None and reply.complete:
            self.pour(reply)
        cause = error.__context__
        if not isinstance(cause, UpstreamInvalidResponse):
            cause = UpstreamInvalidResponse(f"engine {self.name} did not answer in HTTP/1.1: {error}")
        self.fail(cause)  # or, if the reply was whole already, only the connection

    # What the parser calls. It turns whatever is raised here into a parse error with this as its context.

    def on_message_begin(self) -> None:
        if self.reply is None:
            raise UpstreamInvalidResponse("surplus")
        self.began = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.in_head:  # else a trailer, which nobody reads
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status, headers = self.parser.get_status_code(), self.headers
        if not 100 <= status <= 599:
            raise UpstreamInvalidResponse(f"engine {self.name} answered with status {status}")
        too_long = self.overhead > MAX_HEAD and sum(len(n) + len(v) + 4 for n, v in headers) > MAX_HEAD
        if too_long or len(headers) > MAX_HEADERS:
            raise UpstreamInvalidResponse(
                f"engine {self.name} sent over {MAX_HEADERS} headers or {MAX_HEAD} bytes of them"
            )
        names = dict(headers)
        for coding, plain in _PLAIN:
            if coding in names and any(n == coding and v.strip().lower() not in plain for n, v in headers):
                raise UpstreamInvalidResponse(f"engine {self.name} sent a {coding.decode()} that was not asked for")
        framed = b"content-length" in names or b"transfer-encoding" in names
        if status < 200:
            if framed:  # its body would become the beginning of the real one
                raise UpstreamInvalidResponse(f"engine {self.name} sent a body with status {status}")
            self.interim = True
            headers.clear()
            return
        self.keep_alive = self.parser.should_keep_alive()
        self.until_eof = not framed
        self.in_head = False
        self.overhead = 0
        self.fresh = True
        if self.reply is not None:
            self.reply.status = status
        self.wake()

    def on_message_complete(self) -> None:
        if self.interim:
            self.interim = False
        else:
            self._finish()

    def _finish(self) -> None:
        reply, self.reply = self.reply, None
        if reply is not None:
            reply.complete = True
