"""The data path: one ASGI callable for the generation routes and the pass-through routes.

A request is a Turn. It reads the body, prepares what is sent (a Plan, or a Passage for routes without sampling),
sends it, and hands the engine's bytes on as they come. A watcher waits for the client to leave, in every phase, and
then cancels the Turn, which drops the connection to the engine: that frees it. Whatever happens, `finish` runs once
and offers the exchange, synchronously.

Knows when the response has begun, and so how an error can still be told. Does not know JSON, presets or engines'
spellings.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from gateway.log.exchange import Outcome, RawExchange
from gateway.policy.plan import Plan
from gateway.protocol import sse
from gateway.protocol.dialects import PATHS
from gateway.protocol.errors import (
    GatewayError,
    Internal,
    TooLarge,
    UnsupportedMedia,
    UpstreamError,
    UpstreamInvalidResponse,
)
from gateway.serving import replies
from gateway.serving.access import ANYBODY, Caller
from gateway.serving.ids import exchange_id, request_id
from gateway.serving.state import State
from gateway.serving.upstream import Reply

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

KEPT: Final = 256 * 1024  # bytes of a reply's body kept for the log,
KEPT_END: Final = 32 * 1024  # so many of them from its end, where the usage is
_WANTED: Final = frozenset(
    b"x-preset x-request-id x-unit-id x-conversation-id content-encoding content-length authorization x-api-key"
    b" traceparent".split()
)
_SSE_STARTS: Final = (b"data", b"event", b":", b"id", b"retry", b"\n", b"\r")
_clock = time.perf_counter
_log = logging.getLogger("tempera.relay")


class Passage(Struct, frozen=True):
    """What is sent for a route without sampling."""

    upstream: str
    path: str
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    drop_usage: bool = False
    query: bytes = b""


Outgoing = Plan | Passage
Prepare = Callable[["Turn", bytes], Awaitable[Outgoing]]


class ClientGoneError(Exception):
    """The client left before its request was complete."""


class Turn:
    """One request and its reply. `scope`, `receive` and `send` are ASGI's."""

    __slots__ = (
        "_begun", "_gone", "_receive", "_send", "_size", "_start", "_task", "_told", "caller", "exchange", "headers",
        "id", "leave", "outgoing", "reply", "rewrite", "scope", "state",
    )  # fmt: skip

    def __init__(self, state: State, scope: Scope, receive: Receive, send: Send) -> None:
        self.state, self.scope, self._receive, self._send = state, scope, receive, send
        self.id = exchange_id()
        self.headers: dict[bytes, bytes] = {name: value for name, value in scope["headers"] if name in _WANTED}
        self.caller: Caller = ANYBODY
        self.leave: Callable[[RawExchange], None] | None = None  # what admission wants to know at the end
        self.outgoing: Outgoing | None = None
        self.reply: Reply | None = None
        self.rewrite: Callable[[bytes], bytes] | None = None  # of a good reply's body, for a route of another shape
        self._begun = self._gone = self._told = False
        self._size = 0
        self._start = _clock()
        self._task = asyncio.current_task()
        self.exchange = RawExchange(
            id=self.id,
            request_id=request_id(self.headers.get(b"x-request-id"), self.id),
            time=time.time(),
            protocol=PATHS.get(scope["path"], "other"),
            plan=None,
            reply=[],
        )
        if (trace := self.headers.get(b"traceparent")) is not None:
            self.exchange.trace = trace.decode("latin-1")

    async def run(self, prepare: Prepare) -> None:
        """The whole of it. Returns when the client has its reply, an error, or has left; raises only CancelledError."""
        watcher: asyncio.Task[None] | None = None
        try:
            try:
                body = await self._body()
                watcher = asyncio.get_running_loop().create_task(self._watch())
                self.outgoing = await prepare(self, body)
                await self._exchange(self.outgoing)
            except ClientGoneError:
                self.exchange.outcome = "client_disconnect"
            except GatewayError as error:
                await self._fail(error)
            except Exception:  # noqa: BLE001 - the last resort: one request fails, with its id in the log
                _log.exception("exchange %s failed", self.id)
                await self._fail(Internal(f"The gateway failed on this request; its log has exchange {self.id}."))
        except asyncio.CancelledError:  # also while an error is being told
            if self.exchange.outcome == "ok" and not self._told:
                self.exchange.outcome = "client_disconnect"
            if not self._gone:
                raise
        finally:
            self._finish(watcher)

    def _finish(self, watcher: asyncio.Task[None] | None) -> None:
        """Runs once, on every way out, without waiting for anything."""
        if watcher is not None:
            watcher.cancel()
        if self.reply is not None:
            self.reply.close()
        if self._gone and self._task is not None:
            self._task.uncancel()
        self.exchange.duration = _clock() - self._start
        if isinstance(self.outgoing, Plan):
            self.exchange.plan = replace(self.outgoing, body=b"")  # the log keeps what was asked, not what was sent
        if self.leave is not None:
            self.leave(self.exchange)
        if self.exchange.protocol != "other":
            self.state.offer(self.exchange)

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        if self._task is not None:
            self._task.cancel()

    async def _body(self) -> bytes:
        """The request body. Raises TooLarge as soon as it is clear that it is, UnsupportedMedia for an encoded one."""
        limit = self.state.settings.max_body
        coding = self.headers.get(b"content-encoding", b"identity").lower()
        if coding not in (b"identity", b""):
            raise UnsupportedMedia(f"Content-Encoding {coding.decode('latin-1')!r} is not supported; send plain JSON.")
        length = self.headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > limit:
            raise TooLarge(f"The body has {int(length)} bytes; at most {limit} are allowed.")
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
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._start = _clock()
        self.exchange.request = body
        return body

    async def _exchange(self, outgoing: Outgoing) -> None:
        pool = self.state.pools[outgoing.upstream]
        headers = replies.forwarded(self.scope["headers"], replies.TO_ENGINE)
        headers.append((b"x-request-id", self.exchange.request_id.encode()))
        self.exchange.overhead = _clock() - self._start
        path = outgoing.path.encode()
        if isinstance(outgoing, Passage) and outgoing.query:
            path += b"?" + outgoing.query
        reply = self.reply = await pool.send(self.scope["method"].encode(), path, headers, outgoing.body)
        self.exchange.status = reply.status
        if reply.status != 200:
            await self._refused(reply)
        elif replies.content_type(reply.headers) == b"text/event-stream":
            await self._stream(reply, outgoing.drop_usage)
        else:
            body = await self._whole(reply)
            replies.check_json(body)
            self._keep(body)
            shown = body if self.rewrite is None else self.rewrite(body)
            await self._answer(200, replies.forwarded(reply.headers, replies.TO_CLIENT), shown)

    async def _stream(self, reply: Reply, drop_usage: bool) -> None:
        """Event by event as they come.

        Nothing is sent before the first one is there, so that an error before it has a status.
        """
        gate, exchange, send = sse.Gate(drop_usage), self.exchange, self._send
        exchange.stream = True
        more = True
        while more:
            raw = await reply.read()
            exchange.pieces += 1
            more = not reply.complete
            if exchange.first_byte is None:
                exchange.first_byte = _clock() - self._start
            self._keep(raw)
            data = gate.feed(raw) if more else gate.feed(raw) + gate.rest()
            if not data and more:
                continue
            if exchange.ttft is None and sse.has_content(data):
                exchange.ttft = _clock() - self._start
            if not self._begun:
                await self._begin_stream(reply, data)
            # The end rides on the last event.
            self._told = sse.is_last(
                data
            )  # a client may hang up on its last event, before the engine's connection ends
            await send({"type": "http.response.body", "body": data, "more_body": more})

    async def _begin_stream(self, reply: Reply, first: bytes) -> None:
        if first and not first.startswith(_SSE_STARTS):
            raise UpstreamInvalidResponse("The engine's event stream does not begin with an event.")
        await self._begin(200, replies.forwarded(reply.headers, replies.TO_CLIENT))

    async def _whole(self, reply: Reply) -> bytes:
        """A reply that is not streamed, held up to a cap."""
        limit = self.state.settings.max_reply
        pieces, size = [], 0
        while piece := await reply.read():
            size += len(piece)
            if size > limit:
                raise UpstreamInvalidResponse(f"The engine's reply is larger than {limit} bytes.")
            pieces.append(piece)
        self.exchange.first_byte = _clock() - self._start
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _refused(self, reply: Reply) -> None:
        """The engine's own error status: its words pass through."""
        body, headers = replies.engine_error(reply.status, reply.headers, await self._whole(reply))
        self.exchange.outcome = "upstream_error"
        self.exchange.error = replies.error_code(body)
        self._keep(body)
        await self._answer(reply.status, headers, body)

    async def _fail(self, error: GatewayError) -> None:
        """Tell the client in whatever way is still open: a status, or the last event of its stream."""
        self.exchange.outcome = _outcome(error)
        self.exchange.error = error.code
        if self._gone:
            return
        if not self._begun:
            self.exchange.status = error.status
            headers = [replies.JSON, *error.headers, *error.told, *replies.no_retry(error, self.reply is not None)]
            await self._answer(error.status, headers, error.body())
        else:
            named = self.exchange.protocol in ("responses", "messages")
            event = sse.error_event(error.body(), named)
            await self._send({"type": "http.response.body", "body": event, "more_body": False})

    async def _begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._begun = True
        told = (
            (b"x-tempera-exchange", self.id.encode()),
            (b"x-request-id", self.exchange.request_id.encode()),
            *(self.outgoing.headers if self.outgoing is not None else ()),
        )
        await self._send({"type": "http.response.start", "status": status, "headers": [*headers, *told]})

    async def _answer(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        await self._begin(status, [*headers, (b"content-length", str(len(body)).encode())])
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

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
    if isinstance(error, UpstreamError):
        return error.code if error.code in _UPSTREAM_OUTCOMES else "upstream_error"  # type: ignore[return-value]
    return "internal_error" if isinstance(error, Internal) else "rejected"


_UPSTREAM_OUTCOMES: Final = frozenset(
    {"upstream_unavailable", "upstream_timeout", "upstream_reset", "upstream_invalid_response"}
)
