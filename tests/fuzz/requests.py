"""What a client may send over its connection: any bytes, in any pieces, then nothing more.

An input is four chunk lengths that repeat, one byte of options, and the bytes. The application echoes what it was
asked; whatever the cutting, it is asked the same, and every answer is HTTP.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httptools
import uvicorn
from uvicorn.server import ServerState

from gateway.serving.wire import HIGH_WATER, Protocol
from tests.fuzz.streams import cut

_loop = asyncio.new_event_loop()
_STEPS = 4  # turns of the loop in which one request is answered
_REPEATED = 16  # options: the second half comes very often


class _Transport(asyncio.Transport):
    """A socket that takes everything."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.closed, self.paused = bytearray(), False, False

    def write(self, data: Any) -> None:
        assert not self.closed, "written after the end"
        self.out += data

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close


class _Answers:
    """Reads what the client would read."""

    def __init__(self, out: bytes) -> None:
        self.statuses: list[int] = []
        self.open = False
        self.parser = httptools.HttpResponseParser(self)
        self.parser.feed_data(out)

    def on_headers_complete(self) -> None:
        self.statuses.append(self.parser.get_status_code())
        self.open = self.statuses[-1] >= 200

    def on_message_complete(self) -> None:
        self.open = False


def check(data: bytes) -> None:
    """Raises whatever is wrong."""
    lengths, options, stream = data[:4], data[4], data[5:]
    if options & _REPEATED:
        half = len(stream) // 2
        stream = (stream + stream[half:] * 2048)[: 256 * 1024]
    pieces = cut(stream, lengths if len(stream) <= 2048 else b"\0")
    asked = _asked(pieces, options)
    whole = _asked([stream[i : i + 65536] for i in range(0, len(stream), 65536)], options)
    # A refusal drops what waits before it, so the one that saw more at once may have been asked less.
    least = min(len(asked), len(whole))
    assert asked[:least] == whole[:least], "the cutting changed what was asked"


def _asked(pieces: list[bytes], options: int) -> list[Any]:
    """What the application was asked over one connection."""
    seen: list[Any] = []

    async def echo(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more and not options & 1:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message["body"], message["more_body"]
        kept = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        seen.append([scope["method"], scope["path"], scope["query_string"].decode("latin-1"), kept, body.hex()])
        data = json.dumps(seen[-1]).encode()
        length = [(b"content-length", b"%d" % len(data))] if options & 2 else []
        await send({"type": "http.response.start", "status": 200, "headers": length})
        await send({"type": "http.response.body", "body": data})

    config = uvicorn.Config(echo, lifespan="off", log_config=None)
    config.loaded, config.loaded_app = True, echo
    state, transport = ServerState(), _Transport()
    protocol = Protocol(config, state, {}, _loop)
    protocol.connection_made(transport)
    for piece in pieces:
        if transport.closed or transport.paused:
            break
        protocol.data_received(piece)
        _settle(transport)
        cycle = protocol._incoming
        assert cycle is None or cycle.size <= HIGH_WATER + len(piece), "more is held than the high water mark"
    protocol.check(0.0)
    if not any(method == "HEAD" for method, *_ in seen):  # only who asked knows that those have no body
        _check_answers(bytes(transport.out), len(seen), transport.closed)
    if not transport.closed:
        protocol.check(1e9)
        protocol.check(2e9)
        assert transport.closed, "a connection that is never overdue"
    protocol.connection_lost(None)
    _settle(transport)
    assert not state.tasks, "somebody would wait for ever"
    assert not state.connections
    return seen


def _check_answers(out: bytes, asked: int, closed: bool) -> None:
    if out:
        answers = _Answers(out)
        final = [status for status in answers.statuses if status >= 200]
        assert closed or not answers.open, "half an answer"
        assert final.count(200) <= asked, f"{len(final)} answers to {asked} requests"
        assert set(final[:-1]) <= {200}
        assert set(final[-1:]) <= {200, 400, 408}
        assert final[-1:] != [200] or len(final) == asked or closed, "a request without an answer"


def _settle(transport: _Transport) -> None:
    """Let the loop turn until nothing more is written."""
    before = -1
    while before != len(transport.out):
        before = len(transport.out)
        for _ in range(_STEPS):
            _loop.call_soon(_loop.stop)
            _loop.run_forever()


_ASKED: tuple[bytes, ...] = (
    b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}",
    b"POST /a?b=c%20d HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx",
    b"GET / HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\nConnection: close\r\n\r\nGET /c HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    b"POST / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nhiGET / HTTP/1.1\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxy",
    b"HEAD / HTTP/1.1\r\n\r\nOPTIONS * HTTP/1.1\r\n\r\n",
    b"CONNECT a:1 HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    b"GET http://h/p HTTP/1.1\r\nX: a\r\n b\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /%ff%00%e6%b8%a9 HTTP/1.1\r\nX: \xff\r\n\r\n",
    b"GET / HTTP/1.1\nHost: x\n\n",
    b"\x16\x03\x01\x02\x00\x01",
)


def seeds() -> list[bytes]:
    """Requests good and bad, in pieces, alone and many at once."""
    return [
        bytes((1 + i % 5, 40, 3, 0, options)) + asked
        for i, asked in enumerate(_ASKED)
        for options in (0, 1, 2, _REPEATED | i % 4)
    ] + [b"\0\0\0\0\x10" + asked * 2 for asked in _ASKED]


WORDS = sorted(
    {
        "GET ",
        "POST ",
        "HEAD ",
        "CONNECT ",
        "OPTIONS * ",
        "/",
        " HTTP/1.1\r\n",
        " HTTP/1.0\r\n",
        "\r\n\r\n",
        "\r\n",
        "\n",
    }
    | {"Content-Length: ", "Transfer-Encoding: ", "chunked", "identity", "Connection: ", "close", "keep-alive"}
    | {
        "upgrade",
        "Upgrade: ",
        "Expect: 100-continue",
        "Host: ",
        "0\r\n\r\n",
        "5\r\n",
        ";x=y",
        "\0",
        "\x80",
        "\t",
        "%00",
    }
    | {"ffffffff", "18446744073709551616", "http://", "//", "?", "#", "*", "+2", "-1", " ", "\r\n "}
)
