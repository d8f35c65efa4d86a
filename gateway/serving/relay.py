"""The data path: one ASGI callable for the generation routes and the pass-through routes.

A request is a Turn. It reads the body, prepares what is sent (a Plan, or a Passage for routes without sampling),
sends it, and hands the engine's bytes on as they come. A client that leaves, in whatever phase, cancels the Turn, which
drops the connection to the engine: that frees it. Whatever happens, `finish` runs once and offers the exchange,
synchronously.

Knows when the response has begun, and so how an error can still be told. Does not know JSON, presets or engines'
spellings.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from msgspec.structs import replace

from gateway.log.exchange import Outcome, RawExchange
from gateway.policy.decided import Plan
from gateway.protocol import sse
from gateway.protocol.dialects import PATHS
from gateway.protocol.errors import (
    Draining,
    GatewayError,
    Internal,
    TooLarge,
    UnsupportedMedia,
    UpstreamError,
    UpstreamInvalidResponse,
)
from gateway.serving import replies
from gateway.serving.access import ANYBODY, Caller
from gateway.serving.client import Client, ClientGoneError, Headers, Scope
from gateway.serving.ids import exchange_id, request_id
from gateway.serving.passage import Passage
from gateway.serving.state import State
from gateway.serving.way import Answer

KEPT: Final = 256 * 1024  # bytes of a reply's body kept for the log,
KEPT_END: Final = 32 * 1024  # so many of them from its end, where the usage is
_SMALL: Final = 4096  # bytes
_WANTED: Final = frozenset(
    b"x-preset x-request-id x-unit-id x-conversation-id content-encoding content-length authorization x-api-key"
    b" traceparent".split()
)
_SSE_STARTS: Final = (b"data", b"event", b":", b"id", b"retry", b"\n", b"\r")
_clock = time.perf_counter
_log = logging.getLogger("tempera.relay")


Outgoing = Plan | Passage
Prepare = Callable[["Turn", bytes], Awaitable[Outgoing]]


class Turn:
    """One request and its reply. `scope` is ASGI's, `client` whoever asked."""

    __slots__ = (
        "_begun", "_client", "_gate", "_gone", "_size", "_start", "_told", "caller", "exchange", "headers", "id",
        "leave", "outgoing", "reply", "rewrite", "scope", "state", "told",
    )  # fmt: skip

    def __init__(self, state: State, scope: Scope, client: Client) -> None:
        self.state, self.scope, self._client = state, scope, client
        self.id = exchange_id()
        self.headers: dict[bytes, bytes] = {name: value for name, value in scope["headers"] if name in _WANTED}
        self.caller: Caller = ANYBODY
        self.told = b""  # reply headers that admission wants told, a line each
        self.leave: Callable[[RawExchange], None] | None = None  # what admission wants to know at the end
        self.outgoing: Outgoing | None = None
        self.reply: Answer | None = None
        self.rewrite: Callable[[bytes], bytes] | None = None  # of a good reply's body, for a route of another shape
        self._begun = self._gone = self._told = False
        self._size = 0
        self._start = _clock()
        trace = self.headers.get(b"traceparent")
        self.exchange = RawExchange(
            self.id,
            request_id(self.headers.get(b"x-request-id"), self.id),
            time.time(),
            "chat" if scope["path"] == "/generate" else PATHS.get(scope["path"], "other"),
        )
        if trace is not None:
            self.exchange.trace = trace.decode("latin-1")

    async def run(self, prepare: Prepare) -> None:
        """The whole of it. Returns when the client has its reply, an error, or has left; raises only CancelledError."""
        client = self._client
        try:
            try:
                self._check_head()
                self.exchange.request = body = await client.body(self.state.settings.max_body)
                self._start = _clock()
                client.on_gone = self._leave
                client.watch()
                self.outgoing = await prepare(self, body)
                await self._exchange(self.outgoing)
            except ClientGoneError:
                self.exchange.outcome = "client_disconnect"
            except GatewayError as error:
                self._fail(error)
            except Exception:  # noqa: BLE001 - the last resort: one request fails, with its id in the log
                _log.exception("exchange %(exchange)s failed", {"exchange": self.id})
                self._fail(Internal(f"The gateway failed on this request; its log has exchange {self.id}."))
            await client.sent()
        except asyncio.CancelledError:  # also while an error is being told
            if not self._gone:  # the server's last moment
                self._fail(Draining("The gateway is shutting down."))
                self.exchange.outcome = "ok" if self._told else "internal_error"
                raise
            if self.exchange.outcome == "ok" and not self._told:
                self.exchange.outcome = "client_disconnect"
        finally:
            self._finish()

    def _finish(self) -> None:
        """Runs once, on every way out, without waiting for anything."""
        client = self._client
        client.on_gone = client.on_room = None
        if self._gone and client.task is not None:
            client.task.uncancel()
        if self.reply is not None:
            self.reply.close()
        exchange = self.exchange
        exchange.duration = _clock() - self._start
        plan = self.outgoing
        if isinstance(plan, Plan):  # the log keeps what was asked; of what was sent only what is too small to matter
            exchange.plan = plan if len(plan.body) < _SMALL else replace(plan, body=b"")
        try:
            if self.leave is not None:
                self.leave(exchange)
        finally:
            if exchange.protocol != "other":
                self.state.offer(exchange)

    def _leave(self) -> None:
        """The client is gone, so all this is for nobody."""
        self._gone = True
        if self._client.task is not None:
            self._client.task.cancel()

    def _check_head(self) -> None:
        """Raises UnsupportedMedia for an encoded body, TooLarge for one that says it is."""
        headers, limit = self.headers, self.state.settings.max_body
        coding = headers.get(b"content-encoding")
        if coding is not None and coding.lower() not in (b"identity", b""):
            raise UnsupportedMedia(f"Content-Encoding {coding.decode('latin-1')!r} is not supported; send plain JSON.")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > limit:
            raise TooLarge(f"The body has {int(length)} bytes; at most {limit} are allowed.")

    async def _exchange(self, outgoing: Outgoing) -> None:
        pool = self.state.pools[outgoing.upstream]
        headers = replies.forwarded(self.scope["headers"], replies.TO_ENGINE)
        own = b"x-request-id: %b\r\n" % self.exchange.request_id.encode()
        if outgoing.session is not None:
            own += b"x-session-id: %b\r\n" % outgoing.session
        if self.exchange.trace is not None:
            own += replies.trace(self.scope["headers"])
        path = outgoing.path.encode()
        if isinstance(outgoing, Passage) and outgoing.query:
            path += b"?" + outgoing.query
        self.exchange.overhead = _clock() - self._start
        reply = self.reply = await pool.send(self.scope["method"].encode(), path, headers, outgoing.body, own)
        self.exchange.status = reply.status
        if reply.status != 200:
            await self._refused(reply)
        elif replies.content_type(reply.headers) == b"text/event-stream":
            await self._stream(reply, outgoing.drop_usage)
        else:
            body = await self._whole(reply)
            self.exchange.first_byte = _clock() - self._start
            replies.check_json(body)
            self._keep(body)
            shown = body if self.rewrite is None else self.rewrite(body)
            self._answer(200, replies.forwarded(reply.headers, replies.TO_CLIENT), shown)

    async def _stream(self, reply: Answer, drop_usage: bool) -> None:
        """Event by event as they come, straight from the engine's connection to the client's.

        Nothing is sent before the first one is there, so that an error before it has a status.
        """
        self.exchange.stream = True
        self._gate = sse.Gate(drop_usage)
        self._client.on_room = reply.resume
        await reply.pour(self._piece)

    def _piece(self, raw: bytes, last: bool) -> bool:
        """One piece of a stream; whether the client takes more. Raises UpstreamInvalidResponse."""
        exchange, gate = self.exchange, self._gate
        if exchange.first_byte is None:
            exchange.first_byte = _clock() - self._start
        self._keep(raw)
        exchange.pieces += 1
        data = gate.feed(raw) if not last else gate.feed(raw) + gate.rest()
        if not data and not last:
            return True
        if exchange.ttft is None and sse.has_content(data):
            exchange.ttft = _clock() - self._start
        if not self._begun:
            if data and not data.startswith(_SSE_STARTS):
                raise UpstreamInvalidResponse("The engine's event stream does not begin with an event.")
            assert self.reply is not None
            self._begin(200, replies.forwarded(self.reply.headers, replies.TO_CLIENT))
        # A client may hang up on its last event, before the engine's connection ends.
        self._told = sse.is_last(data)
        return self._client.write(data, not last)  # the end rides on the last event

    async def _whole(self, reply: Answer) -> bytes:
        """A reply that is not streamed, held up to a cap."""
        limit, pieces, size, piece = self.state.settings.max_reply, list[bytes](), 0, reply.take()
        while True:
            size += len(piece)
            if size > limit:
                raise UpstreamInvalidResponse(f"The engine's reply is larger than {limit} bytes.")
            pieces.append(piece)
            if reply.complete:
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)
            piece = await reply.read()

    async def _refused(self, reply: Answer) -> None:
        """The engine's own error status: its words pass through."""
        whole = await self._whole(reply)
        self.exchange.first_byte = _clock() - self._start
        body, headers = replies.engine_error(reply.status, reply.headers, whole)
        self.exchange.outcome = "upstream_error"
        self.exchange.error = replies.error_code(body)
        self._keep(body)
        self._answer(reply.status, headers, body)

    def _fail(self, error: GatewayError) -> None:
        """Tell the client in whatever way is still open: a status, or the last event of its stream."""
        if self._told:  # it has the last event of its stream; what broke after that is nobody's concern
            self._client.write(b"", more=False)
            return
        self.exchange.outcome = _outcome(error)
        self.exchange.error = error.code
        if self._gone:
            return
        if not self._begun:
            self.exchange.status = error.status
            no_retry = replies.no_retry(error, self.reply is not None)
            self._answer(error.status, (replies.JSON, *error.headers, *error.told, *no_retry), error.body())
        else:
            named = self.exchange.protocol in ("responses", "messages")
            self._client.write(sse.error_event(error.body(), named), more=False)

    def _begin(self, status: int, headers: Headers, length: int | None = None) -> None:
        self._begun = True
        ids = b"x-tempera-exchange: %b\r\nx-request-id: %b\r\n" % (self.id.encode(), self.exchange.request_id.encode())
        plan = () if self.outgoing is None else self.outgoing.headers
        self._client.start(status, (headers, plan), ids + self.told, length)

    def _answer(self, status: int, headers: Headers, body: bytes) -> None:
        self._begin(status, headers, len(body))
        self._client.write(body, more=False)

    def _keep(self, data: bytes) -> None:
        """Keep the beginning and the end of a long reply; the middle is let go."""
        kept = self.exchange.reply
        if len(data) > KEPT:
            self.exchange.cut = True
            kept.append(data[: KEPT - KEPT_END])
            data = data[-KEPT_END:]
            self._size += len(kept[-1])
        self._size += len(data)
        kept.append(data)
        while self._size > KEPT and len(kept) > 2:
            self.exchange.cut = True
            self._size -= len(kept.pop(len(kept) // 2))


def _outcome(error: GatewayError) -> Outcome:
    if error.code == "shutting_down" and isinstance(error, UpstreamError):
        return "internal_error"  # cut short by us
    if isinstance(error, UpstreamError):
        return error.code if error.code in _UPSTREAM_OUTCOMES else "upstream_error"  # type: ignore[return-value]
    return "internal_error" if isinstance(error, Internal) else "rejected"


_UPSTREAM_OUTCOMES: Final = frozenset(
    {"upstream_unavailable", "upstream_timeout", "upstream_reset", "upstream_invalid_response"}
)
