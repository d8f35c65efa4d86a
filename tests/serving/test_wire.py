"""One connection from a client, driven by hand: framing, order, deadlines, and what the parser refuses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from gateway.protocol.errors import TooLarge
from gateway.serving.client import AsgiClient, ClientGoneError, client_of
from gateway.serving.timing import Deadlines
from gateway.serving.wire import HIGH_WATER, MAX_HEAD, Protocol

Headers = list[tuple[bytes, bytes]]
GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b"


class Transport:
    """What a protocol asks of a transport; remembers the writes. `waiting` bytes have not been taken by the peer."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closed = self.aborted = self.paused = False
        self.waiting = 0

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.writes.append(data)

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def pause_reading(self) -> None:
        assert not self.paused
        self.paused = True

    def resume_reading(self) -> None:
        assert self.paused
        self.paused = False

    @property
    def all(self) -> bytes:
        return b"".join(self.writes)


class Wire:
    """A connection to `app`, and what came of it."""

    def __init__(self, app: Callable[..., Any], deadlines: Deadlines | None = None) -> None:
        config = uvicorn.Config(app, lifespan="off", log_config=None)
        config.load()
        self.state = ServerState()
        self.protocol = Protocol(config, self.state, {}, deadlines=deadlines or Deadlines())
        self.transport = Transport()
        self.protocol.connection_made(self.transport)  # type: ignore[arg-type]

    async def feed(self, *pieces: bytes) -> Transport:
        for piece in pieces:
            self.protocol.data_received(piece)
            await settle()
        return self.transport

    def leave(self) -> None:
        self.protocol.connection_lost(None)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def reply(
    status: int, headers: Headers, pieces: list[bytes], request: bytes = b"GET / HTTP/1.1\r\n"
) -> Transport:
    """The writes of one reply, sent through ASGI."""
    failed: list[BaseException] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await send({"type": "http.response.start", "status": status, "headers": headers})
            for index, piece in enumerate(pieces):
                await send({"type": "http.response.body", "body": piece, "more_body": index < len(pieces) - 1})
        except RuntimeError as error:
            failed.append(error)

    transport = await Wire(app).feed(request + b"host: x\r\n\r\n")
    if failed:
        raise failed[0]
    return transport


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Says what it was asked, in one piece."""
    body, more = b"", True
    while more:
        message = await receive()
        assert message["type"] == "http.request"
        body, more = body + message["body"], message["more_body"]
    said = json.dumps([scope["method"], scope["path"], scope["query_string"].decode(), body.decode()]).encode()
    headers = [(b"content-length", str(len(said)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": said})


def said(transport: Transport) -> list[Any]:
    """The bodies of all replies, decoded."""
    return [json.loads(part.partition(b"\r\n\r\n")[2]) for part in transport.all.split(b"HTTP/1.1 200 OK\r\n")[1:]]


# --- replies


async def test_head_and_first_piece_leave_together() -> None:
    whole = await reply(200, [(b"content-type", b"text/plain"), (b"content-length", b"2")], [b"ok"])
    assert whole.writes == [b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nok"]
    streamed = await reply(200, [(b"x", b"y")], [b"one", b"two", b""])
    head = b"HTTP/1.1 200 OK\r\nx: y\r\ntransfer-encoding: chunked\r\n\r\n"
    assert streamed.writes == [head + b"3\r\none\r\n", b"3\r\ntwo\r\n", b"0\r\n\r\n"]


async def test_replies_without_a_body() -> None:
    assert (await reply(204, [], [b""])).writes == [b"HTTP/1.1 204 No Content\r\n\r\n"]
    headed = await reply(200, [(b"content-length", b"2")], [b"ok"], b"HEAD / HTTP/1.1\r\n")
    assert headed.writes == [b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"]


@pytest.mark.parametrize("asked", [b"connection: close\r\n", b""])
async def test_a_connection_ends_when_either_side_wants(asked: bytes) -> None:
    headers = [(b"content-length", b"0")] + ([] if asked else [(b"connection", b"close")])
    transport = await reply(200, headers, [b""], b"GET / HTTP/1.1\r\n" + asked)
    assert transport.writes == [b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"]
    assert transport.closed


async def test_an_old_client_gets_a_body_that_ends_with_the_connection() -> None:
    transport = await reply(200, [], [b"one", b"two"], b"GET / HTTP/1.0\r\n")
    assert transport.all == b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nonetwo"
    assert transport.closed


@pytest.mark.parametrize("value", [b"a\r\nset-cookie: b", b"a\nb", b"a\rb", b"a\r\n"])
@pytest.mark.parametrize("length", [[], [(b"content-length", b"0")]])
async def test_no_line_break_through_a_header(value: bytes, length: Headers) -> None:
    with pytest.raises(RuntimeError, match="line break"):
        await reply(200, [(b"x", value), *length], [b""])


async def test_a_body_as_long_as_it_said() -> None:
    for pieces in ([b"abc"], [b"a"]):
        with pytest.raises(RuntimeError, match="Content-Length"):
            await reply(200, [(b"content-length", b"2")], pieces)


@pytest.mark.parametrize("begun", [False, True])
async def test_an_application_that_fails(begun: bool) -> None:
    """Before its reply it is answered for; after that the connection breaks: half a reply must not look whole."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise ValueError("canary")

    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    wire = Wire(app)
    transport = await wire.feed(GET)
    assert transport.aborted is begun
    assert transport.closed
    if not begun:
        assert transport.all.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
        assert json.loads(transport.all.partition(b"\r\n\r\n")[2])["error"]["code"] == "internal_error"
    assert not wire.state.tasks
    assert b"canary" not in transport.all


# --- requests


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
async def test_requests_however_they_are_cut(size: int) -> None:
    """One after the other on one connection, the second and third asked before the first is answered."""
    chunked = b"POST /b%20c?d=e HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
    whole = POST % (2, b"ab") + chunked + GET
    wire = Wire(echo)
    transport = await wire.feed(*(whole[i : i + size] for i in range(0, len(whole), size)))
    assert said(transport) == [
        ["POST", "/v1/chat/completions", "", "ab"],
        ["POST", "/b c", "d=e", "hi"],
        ["GET", "/", "", ""],
    ]
    assert not transport.closed
    assert not transport.paused
    assert not wire.state.tasks
    assert wire.state.total_requests == 3


async def test_a_request_waits_for_the_reply_before_it() -> None:
    go = asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/slow":
            await go.wait()
        await echo(scope, receive, send)

    wire = Wire(slow)
    transport = await wire.feed(GET.replace(b"/", b"/slow", 1) + GET)
    assert transport.writes == []
    assert not transport.paused, "a socket that is not read does not say that its client has left"
    await wire.feed(GET * 3000)
    assert transport.paused, "a client that asks and asks is read no further"
    go.set()
    await settle()
    for _ in range(300):
        await settle()
    assert [path for _, path, *_ in said(transport)] == ["/slow", *["/"] * 3001]
    assert not transport.paused


async def test_a_client_that_leaves_with_more_on_the_wire() -> None:
    left: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        client_of(scope, receive, send).on_gone = lambda: left.append(1)
        await asyncio.Event().wait()

    wire = Wire(app)
    await wire.feed(GET + GET)
    wire.leave()
    assert left == [1]


async def test_what_follows_the_last_request_is_not_looked_at() -> None:
    transport = await Wire(echo).feed(b"GET /a HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n" + GET)
    assert [path for _, path, *_ in said(transport)] == ["/a"]
    assert transport.closed


async def test_it_is_told_to_go_on_when_somebody_reads() -> None:
    wire = Wire(echo)
    await wire.feed(b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
    assert wire.transport.writes == [b"HTTP/1.1 100 Continue\r\n\r\n"]
    await wire.feed(b"hi")
    assert said(wire.transport) == [["POST", "/", "", "hi"]]


async def test_an_upgrade_is_answered_as_any_request() -> None:
    """Java's client offers HTTP/2 with every first request, and goes on in HTTP/1.1."""
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"
    said_by_client = b"the body says\r\nUpgrade: h2c"
    post = b"POST /a HTTP/1.1\r\n%bhost: x\r\ncontent-length: %d\r\n\r\n%b" % (
        offer,
        len(said_by_client),
        said_by_client,
    )
    transport = await Wire(echo).feed(post, b"GET /b HTTP/1.1\r\nhost: x\r\n" + offer + b"\r\n", GET)
    assert said(transport) == [["POST", "/a", "", said_by_client.decode()], ["GET", "/b", "", ""], ["GET", "/", "", ""]]
    assert not transport.closed


async def test_an_upgrade_with_a_coding_that_is_none_is_refused() -> None:
    transport = await Wire(echo).feed(
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: x/1\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\nhi"
    )
    assert transport.writes[0].startswith(b"HTTP/1.1 400 ")
    assert transport.closed


async def test_a_body_nobody_reads_is_not_held() -> None:
    async def idle(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.Event().wait()

    wire = Wire(idle)
    await wire.feed(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (HIGH_WATER * 4), b"x" * HIGH_WATER)
    assert not wire.transport.paused
    await wire.feed(b"x")
    assert wire.transport.paused


@pytest.mark.parametrize("pieces", [1, 9])
async def test_a_whole_body_for_the_data_path(pieces: int) -> None:
    bodies: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        client = client_of(scope, receive, send)
        assert not isinstance(client, AsgiClient)
        try:
            bodies.append(await client.body(HIGH_WATER * 2))
        except (TooLarge, ClientGoneError) as error:
            bodies.append(type(error))
        client.start(200, (), b"", 0)
        client.write(b"", more=False)

    body = b"x" * (HIGH_WATER * 2)
    step = -(-len(body) // pieces)
    wire = Wire(app)
    await wire.feed(POST % (len(body), b""), *(body[i : i + step] for i in range(0, len(body), step)))
    assert bodies == [body]
    assert not wire.transport.paused, "else nobody would see the client leave"
    await wire.feed(POST % (len(body) + 1, b""), body, b"x")
    assert bodies[1:] == [TooLarge]
    await wire.feed(POST % (5, b"abc"))
    wire.leave()
    await settle()
    assert bodies[2:] == [ClientGoneError]


# --- clients that leave, or are slow


async def test_whoever_waits_is_told_once_that_the_client_left() -> None:
    left: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        client = client_of(scope, receive, send)
        client.on_gone = lambda: left.append(1)
        assert (await receive())["type"] == "http.request"
        assert (await receive())["type"] == "http.disconnect"
        client.start(200, (), b"", 1)
        assert client.write(b"x", more=False), "what is said to nobody is let go"

    wire = Wire(app)
    await wire.feed(GET)
    wire.leave()
    await settle()
    assert left == [1]
    assert not wire.state.connections
    assert not wire.state.tasks
    assert wire.transport.writes == []


async def test_a_client_that_is_behind() -> None:
    steps: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        client = client_of(scope, receive, send)
        client.on_room = lambda: steps.append("room")
        client.start(200, (), b"", None)
        steps.append(client.write(b"one", more=True))
        wire.protocol.pause_writing()
        steps.append(client.write(b"two", more=True))
        await send({"type": "http.response.body", "body": b"three", "more_body": False})
        steps.append("sent")

    wire = Wire(app)
    await wire.feed(GET)
    assert steps == [True, False]
    wire.protocol.resume_writing()
    await settle()
    assert steps == [True, False, "room", "sent"]


async def hang(scope: Any, receive: Any, send: Any) -> None:
    client = client_of(scope, receive, send)
    client.start(200, (), b"", None)
    client.write(b"x", more=True)
    await asyncio.Event().wait()


LIMITS = Deadlines(keep_alive=5, read=3, write=2)


async def test_a_request_has_to_arrive_in_time() -> None:
    """However its bytes drip in; a head or a body; and one second more for every 16 KiB."""
    for begin in (b"P", POST[:40], POST % (100_000, b"abc")):
        wire = Wire(echo, LIMITS)
        for now in (0, 1, 2, 2.9):
            await wire.feed(begin if now == 0 else b"O" if begin == b"P" and now == 1 else b"")
            wire.protocol.check(now)
            assert not wire.transport.closed
        wire.protocol.check(3.1)
        assert wire.transport.closed
        assert wire.transport.all.startswith(b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\n")
        assert b'"code":"request_timeout"' in wire.transport.all
    wire = Wire(echo, LIMITS)
    await wire.feed(POST % (100_000, b"x" * 50_000))
    wire.protocol.check(0)
    wire.protocol.check(6)
    assert not wire.transport.closed
    wire.protocol.check(7)
    assert wire.transport.closed


async def test_a_connection_rests_for_a_while() -> None:
    wire = Wire(echo, LIMITS)
    wire.protocol.check(0)
    wire.protocol.check(4.9)
    await wire.feed(GET)
    wire.protocol.check(6)
    wire.protocol.check(10.9)
    assert not wire.transport.closed
    wire.protocol.check(11)
    assert wire.transport.closed
    assert not wire.transport.aborted


async def test_a_reply_may_take_its_time_but_its_reader_may_not() -> None:
    wire = Wire(hang, LIMITS)
    await wire.feed(GET)
    for now in (0, 100, 200):
        wire.protocol.check(now)
    assert not wire.transport.closed
    wire.transport.waiting = 100
    wire.protocol.check(201)
    wire.protocol.check(202)
    wire.transport.waiting = 99  # it took a byte
    wire.protocol.check(203)
    wire.protocol.check(204)
    assert not wire.transport.closed
    wire.protocol.check(205)
    assert wire.transport.aborted


async def test_a_server_that_stops() -> None:
    """The request that is being answered is answered, and nothing after it."""
    wire = Wire(echo)
    wire.protocol.shutdown()
    assert wire.transport.closed
    wire = Wire(echo)
    await wire.feed(POST % (2, b"a"))
    wire.protocol.shutdown()
    assert not wire.transport.closed
    await wire.feed(b"b" + GET)
    assert len(said(wire.transport)) == 1
    assert b"connection: close" in wire.transport.all
    assert wire.transport.closed


# --- what is no request


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00GARBAGE\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: " + b"b" * MAX_HEAD,
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
    ],
    ids=["binary", "header", "path", "connect", "huge head", "chunk", "two lengths", "negative"],
)
async def test_what_is_no_request_is_refused_in_our_shape(garbage: bytes) -> None:
    wire = Wire(echo)
    transport = await wire.feed(garbage)
    assert transport.all.startswith(
        b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nx-tempera-exchange: "
    )
    assert b'"code":"invalid_http"' in transport.all
    assert transport.closed
    assert transport.all.count(b"HTTP/1.1 4") == 1
    wire.leave()
    await settle()
    assert not wire.state.tasks


async def test_a_request_before_garbage_gets_its_reply() -> None:
    transport = await Wire(echo).feed(GET + b"\x00GARBAGE\r\n\r\n")
    assert [path for _, path, *_ in said(transport)] == ["/"]
    assert b"400" not in transport.all
    assert transport.closed
