"""What an engine may answer: any bytes, in any pieces, ended in any way. Only UpstreamError may come out.

An input is four chunk lengths that repeat, one byte of options, and the bytes. A fake transport stands for the
socket, and the coroutines are stepped by hand, so nothing waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from gateway.protocol.errors import UpstreamError, UpstreamInvalidResponse
from gateway.serving.connection import HIGH_WATER, MAX_HEAD, MAX_HEADERS, Connection
from gateway.serving.reply import Reply
from gateway.serving.timing import Timeouts
from tests.fuzz.streams import cut

_T = TypeVar("_T")
_loop = asyncio.new_event_loop()
_LOST, _EAGER, _POURED, _SLOW = 2, 4, 8, 16  # options: how it ends, and how it is read


class _Transport(asyncio.Transport):
    """A socket that takes everything and remembers what was asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.reading, self.gone = True, False

    def write(self, data: Any) -> None:
        assert not self.gone

    def writelines(self, list_of_data: Any) -> None:
        assert not self.gone

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.gone

    def abort(self) -> None:
        self.gone = True

    close = abort


class _Stepped:
    """A coroutine, run as far as it goes without waiting."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.coroutine, self.done, self.value = coroutine, False, None
        self.error: UpstreamError | None = None
        self.waits: asyncio.Future[None] | None = None
        self.step()

    def step(self) -> None:
        while not self.done and (self.waits is None or self.waits.done()):
            try:
                self.waits = self.coroutine.send(None)
            except StopIteration as stop:
                self.done, self.value = True, stop.value
            except UpstreamError as error:
                self.done, self.error = True, error


def check(data: bytes) -> None:
    """Raises whatever is wrong."""
    lengths, options = data[:4], data[4]
    answer = data[5:]
    if options >> 5:  # the second half up to 4096 times over: heads, framing and bodies that do not end
        half = len(answer) // 2
        answer = (answer + answer[half:] * (1 << (options >> 5) * 2 - 2))[: 3 * HIGH_WATER]
    pieces = cut(answer, lengths)
    if len(answer) > 4096:
        size = 2048 + 8 * lengths[0]
        pieces = [answer[i : i + size] for i in range(0, len(answer), size)]
    asyncio._set_running_loop(_loop)
    try:
        cutted = _answered(pieces, options)
        whole = _answered([answer[i : i + 65536] for i in range(0, len(answer), 65536)], options)
    finally:
        asyncio._set_running_loop(None)
    assert cutted[0] == whole[0] or len(answer) > MAX_HEAD, "the cutting changed status or headers"
    if cutted[2] == whole[2] == "complete":
        assert cutted[1] == whole[1], "the cutting changed the body"
    assert (cutted[2] == "complete") == (whole[2] == "complete") or len(answer) > MAX_HEAD, (cutted[2], whole[2])


def _answered(pieces: list[bytes], options: int) -> tuple[Any, bytes, str]:
    """((status, headers), body, how it ended) of one exchange whose answer comes in these pieces."""
    rested: list[Connection] = []
    lost: list[Connection] = []
    transport = _Transport()
    connection = Connection("e", Timeouts(), rested.append, lost.append)
    connection.connection_made(transport)
    asked = _Stepped(connection.exchange(b"GET / HTTP/1.1\r\n\r\n", b"x"))
    taken = _Taken(asked, options)
    left = 0
    for piece in pieces:
        if transport.gone:
            break
        while not transport.reading and not transport.gone:
            held = sum(map(len, connection.parts))
            assert held <= HIGH_WATER + len(piece) + 65536, f"{held} bytes are held"
            taken.look(True)
        left = len(piece)
        connection.data_received(piece)
        assert sum(map(len, connection.parts)) <= HIGH_WATER + left, "more is held than the high water mark"
        taken.look(bool(options & _EAGER))
    taken.look(True)
    complete = taken.reply is not None and taken.reply.complete
    if not transport.gone and not (options & _LOST):
        connection.eof_received()
        assert transport.gone, "a connection that the engine has ended stays"
        taken.look(True)
    if options & _LOST and not complete:
        for tick in (1, 2):  # nothing more comes: overdue, whatever it waits for; the first look sees what is new
            connection.check(_loop.time() + tick * 1e6)
        assert transport.gone, "an exchange that is never overdue"
        taken.look(True)
    if not transport.gone and taken.reply is not None:
        taken.reply.close()
        _check_rest(connection, transport, rested)
    connection.connection_lost(None)
    taken.look(True)
    assert lost == [connection]
    assert asked.done, "somebody would wait for ever"
    return taken.result()


def _check_rest(connection: Connection, transport: _Transport, rested: list[Connection]) -> None:
    """A connection is given back only if it is clean; what comes while it rests takes it down."""
    assert transport.gone != bool(rested), "neither given back nor closed"
    if rested:
        assert rested == [connection]
        assert not connection.parts
        connection.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        assert transport.gone, "an answer nobody asked for is kept for the next who asks"


class _Taken:
    """The side that reads: the reply, the body so far, and how it ended."""

    def __init__(self, asked: _Stepped, options: int) -> None:
        self.asked, self.body, self.end = asked, b"", ""
        self.poured, self.slow = bool(options & _POURED), bool(options & _SLOW)
        self.reply: Reply | None = None
        self.reading: _Stepped | None = None

    def look(self, read: bool) -> None:
        """Whatever can be had now; `read` asks for body as well."""
        self.asked.step()
        self.reply = self.asked.value
        if self.asked.error is not None:
            self.end = type(self.asked.error).__name__
            return
        if self.poured and self.reply is not None and not self.end:
            self._pour(self.reply, read)
        while not self.poured and self.reply is not None and read and not self.end:
            self.reading = self.reading or _Stepped(self.reply.read())
            self.reading.step()
            if not self.reading.done:
                return
            if self.reading.error is not None:
                self.end = type(self.reading.error).__name__
            elif not self.reading.value:
                self.end = "complete"
            else:
                self.body += self.reading.value
            self.reading = None

    def _pour(self, reply: Reply, ready: bool) -> None:
        self.reading = self.reading or _Stepped(reply.pour(self._sink))
        if ready:
            reply.resume()
        self.reading.step()
        if self.reading.done:
            self.end = "complete" if self.reading.error is None else type(self.reading.error).__name__

    def _sink(self, data: bytes, last: bool) -> bool:
        assert not self.end, "a piece after the end"
        self.body += data
        return not self.slow

    def result(self) -> tuple[Any, bytes, str]:
        reply = self.reply
        if reply is None:
            return None, b"", self.end
        assert 200 <= reply.status <= 599
        assert len(reply.headers) <= MAX_HEADERS
        assert sum(len(name) + len(value) for name, value in reply.headers) <= MAX_HEAD
        for name, value in reply.headers:
            assert not set(name + value) & set(b"\r\n\0"), "a header that would split ours"
            assert name == name.lower()
        assert self.end in ("complete", "UpstreamReset", "UpstreamTimeout", UpstreamInvalidResponse.__name__), self.end
        return (reply.status, reply.headers), self.body, self.end


_ANSWERS: tuple[bytes, ...] = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3;x=y\r\nabc\r\n0\r\nTrailer: 1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil the end",
    b"HTTP/1.0 200 OK\r\n\r\nold",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 429 No\r\nContent-Length:0\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nxx",
    b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nxHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\ny",
    b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nY:\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nx",
    b"HTTP/2 200 OK\r\n\r\n",
    b"HTTP/1.1 999 Odd\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: yyyyyyyy\r\nX: yyyyyyyy\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4;aaaaaaa\r\ndata\r\n4;aaaaaaa\r\ndata\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
)


def seeds() -> list[bytes]:
    """Answers good and bad, whole and in pieces, with every way to end."""
    return [
        bytes((1 + i % 5, 40, 3, 0, options)) + answer
        for i, answer in enumerate(_ANSWERS)
        for options in (i % 8, _POURED | i % 8, _POURED | _SLOW | i % 8, i % 32 | 3 << 5)
    ]


WORDS = sorted(
    {"HTTP/1.1 ", "HTTP/1.0 ", "200 OK\r\n", "100 \r\n\r\n", "101 \r\n", "204 \r\n", "\r\n\r\n", "\r\n "}
    | {"Content-Length: ", "Transfer-Encoding: ", "chunked", "identity", "Connection: ", "close", "keep-alive"}
    | {"Content-Encoding: ", "gzip", "upgrade", "Upgrade", ";x=y\r\n", "ffffffff", "18446744073709551616"}
    | {"\0", "\x80", "\t", "\n", "0\r\n\r\n", "5\r\n"}
)
