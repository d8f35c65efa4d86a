"""uvicorn's protocol with our way out: one write for head and first piece, and no line break through a header."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from gateway.serving.wire import Protocol

Headers = list[tuple[bytes, bytes]]


class Transport:
    """What uvicorn asks of a transport; remembers the writes."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


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

    config = uvicorn.Config(
        app, http=Protocol, lifespan="off", log_config=None, server_header=False, date_header=False, access_log=False
    )
    config.load()
    protocol = Protocol(config, ServerState(), {})  # type: ignore[arg-type]
    transport = Transport()
    protocol.connection_made(transport)  # type: ignore[arg-type]
    protocol.data_received(request + b"host: x\r\n\r\n")
    await asyncio.sleep(0.01)
    if failed:
        raise failed[0]
    return transport


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


@pytest.mark.parametrize("value", [b"a\r\nset-cookie: b", b"a\nb", b"a\rb", b"a\r\n"])
@pytest.mark.parametrize("length", [[], [(b"content-length", b"0")]])
async def test_no_line_break_through_a_header(value: bytes, length: Headers) -> None:
    with pytest.raises(RuntimeError, match="line break"):
        await reply(200, [(b"x", value), *length], [b""])


async def test_a_body_as_long_as_it_said() -> None:
    for pieces in ([b"abc"], [b"a"]):
        with pytest.raises(RuntimeError, match="Content-Length"):
            await reply(200, [(b"content-length", b"2")], pieces)


async def test_what_the_parser_refuses_is_said_in_our_shape() -> None:
    transport = await reply(200, [], [b""], b"\x00GARBAGE\r\n")
    assert transport.writes[0].startswith(b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n")
    assert b'"code":"invalid_http"' in transport.writes[0]
