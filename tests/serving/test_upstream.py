"""The HTTP client against raw sockets: each server is a few scripted lines that misbehave in exactly one way."""

import asyncio
import contextlib
import functools
import os
import shutil
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.protocol.errors import (
    InvalidRequest,
    UpstreamError,
    UpstreamInvalidResponse,
    UpstreamReset,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from gateway.serving.connection import HIGH_WATER, Connection
from gateway.serving.timing import Timeouts
from gateway.serving.upstream import Pool

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
PATIENCE = 20  # seconds before a test is stuck; nothing is measured by it


@pytest.fixture(autouse=True)
async def quiet():
    """Nothing may end up in the loop's exception handler, and no task may be left behind."""
    complaints, loop = [], asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    yield
    for _ in range(20):
        await asyncio.sleep(0)
    assert complaints == []
    assert asyncio.all_tasks() == {asyncio.current_task()}


class Server:
    """`script(reader, writer, number)` plays one connection, the `number`-th from 1; then the connection is closed."""

    def __init__(self, script, tls=None):
        self.script, self.tls, self.connections, self.tasks = script, tls, 0, set()

    async def _play(self, reader, writer):
        self.connections += 1
        self.tasks.add(asyncio.current_task())
        try:
            await self.script(reader, writer, self.connections)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort() if self.tls else writer.close()
            self.tasks.discard(asyncio.current_task())

    async def __aenter__(self):
        self.server = await asyncio.start_server(self._play, "127.0.0.1", 0, ssl=self.tls)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self.server.close()
        tasks = list(self.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def request_on(reader):
    head = await reader.readuntil(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
    return head, await reader.readexactly(length)


def always(*answers, then_close=False):
    """A script: each request on each connection gets the next answer; the last one repeats."""
    left = list(answers)

    async def script(reader, writer, _):
        while True:
            await request_on(reader)
            writer.write(left.pop(0) if len(left) > 1 else left[0])
            await writer.drain()
            if then_close:
                return

    return script


@contextlib.asynccontextmanager
async def pool_to(script, *, timeouts=None, prefix="", **more):
    async with Server(script) as server, asyncio.timeout(PATIENCE):
        pool = Pool(f"http://127.0.0.1:{server.port}{prefix}", timeouts=timeouts or Timeouts(), **more)
        try:
            yield pool, server
        finally:
            await pool.close()


async def post(pool, body=b"{}", path=b"/v1/chat/completions", headers=()):
    return await pool.send(b"POST", path, tuple(headers), body)


def poured():
    """There are two ways to read a reply, and each of the two loops of these tests takes one."""
    return type(asyncio.get_running_loop()).__module__.startswith("uvloop")


async def pieces_of(reply, keep):
    """Hands every piece to `keep` as it comes."""
    if poured():
        ends = []

        def sink(data, last):
            keep(data)
            ends.append(last)
            return True

        try:
            await reply.pour(sink)
            assert ends.count(True) == 1
        finally:
            assert not any(ends[:-1]), "nothing comes after the last piece"
        return
    while piece := await reply.read():
        keep(piece)


async def everything(reply):
    pieces = []
    await pieces_of(reply, pieces.append)
    return b"".join(pieces)


async def fetch(pool, body=b"{}"):
    """Status and body of one exchange, the reply closed."""
    reply = await post(pool, body)
    try:
        return reply.status, await everything(reply)
    finally:
        reply.close()


async def collect(pool, got, held):
    """As `fetch`, but what was read before an error stays in `got`, and the reply open in `held`."""
    held.append(await post(pool))
    await pieces_of(held[0], got.extend)


def until(condition):
    async def wait():
        while not condition():
            await asyncio.sleep(0.005)

    return wait()


# --- framing and reuse

REPLIES = {  # name: (bytes, status, body, may the connection be used again)
    "content-length": (HEAD + b"Content-Length: 5\r\n\r\nhello", 200, b"hello", True),
    "empty": (HEAD + b"Content-Length: 0\r\n\r\n", 200, b"", True),
    "chunked": (CHUNKED + b"5\r\nhello\r\n1;name=x\r\n!\r\n0\r\n\r\n", 200, b"hello!", True),
    "chunked in capitals": (CHUNKED.replace(b"c", b"C") + b"A\r\n0123456789\r\n0\r\n\r\n", 200, b"0123456789", True),
    "trailers": (CHUNKED + b"2\r\nhi\r\n0\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n", 200, b"hi", True),
    "close-delimited": (HEAD + b"\r\nuntil the end", 200, b"until the end", False),
    "close-delimited, empty": (HEAD + b"\r\n", 200, b"", False),
    "asked to close": (HEAD + b"Connection: close\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", False),
    "chunked, asked to close": (CHUNKED[:-2] + b"Connection: close\r\n\r\n2\r\nok\r\n0\r\n\r\n", 200, b"ok", False),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", False),
    "HTTP/1.0, to the end": (b"HTTP/1.0 200 OK\r\n\r\nok", 200, b"ok", False),
    "HTTP/1.0, kept": (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", True),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", True),
    "an error": (b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 2\r\n\r\n{}", 429, b"{}", True),
    "no reason phrase": (b"HTTP/1.1 500\r\nContent-Length: 1\r\n\r\n!", 500, b"!", True),
    "identity": (HEAD + b"Content-Encoding: identity\r\nContent-Length: 1\r\n\r\n!", 200, b"!", True),
    "100 first": (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, 200, b"ok", True),
    "103 and 102 first": (
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" + OK, 200, b"ok", True),
    "upgrade offered": (HEAD + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", True),
}  # fmt: skip


@pytest.mark.parametrize("name", REPLIES)
async def test_every_framing_is_read_to_its_end_and_reused_only_when_safe(name):
    raw, status, body, reusable = REPLIES[name]
    to_the_end = not reusable and not any(mark in raw.lower() for mark in (b"content-length", b"chunked"))
    async with pool_to(always(raw, then_close=to_the_end)) as (pool, server):
        for _ in range(3):
            assert await fetch(pool) == (status, body)
        assert server.connections == (1 if reusable else 3)


async def test_one_byte_at_a_time_over_a_socket():
    async def script(reader, writer, _):
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            await request_on(reader)
            for byte in REPLIES["chunked"][0]:
                writer.write(bytes([byte]))
                await asyncio.sleep(0)

    async with pool_to(script) as (pool, server):
        assert [await fetch(pool) for _ in range(2)] == [(200, b"hello!")] * 2
        assert server.connections == 1


class Wire(asyncio.Transport):
    """Where a Connection thinks it writes to."""

    def __init__(self):
        super().__init__()
        self.aborted = self.paused = False

    def write(self, data):
        pass

    def writelines(self, pieces):
        pass

    def abort(self):
        self.aborted = True

    is_closing = property(lambda self: lambda: self.aborted)

    def get_write_buffer_size(self):
        return 0

    def pause_reading(self):
        self.paused = True

    def resume_reading(self):
        self.paused = False


async def play(pieces, eof=False):
    """Feed these reads to a connection: status, body, and whether it went back to rest."""
    rested = []
    connection = Connection("engine", Timeouts(), rested.append, lambda _: None)
    connection.connection_made(Wire())
    task = asyncio.ensure_future(connection.exchange(b"GET / HTTP/1.1\r\n\r\n", b""))
    await asyncio.sleep(0)
    for piece in pieces:
        connection.data_received(piece)
    if eof:
        connection.eof_received()
    reply = await task
    body = await everything(reply)
    reply.close()
    return reply.status, body, bool(rested)


@pytest.mark.parametrize("name", REPLIES)
async def test_a_reply_may_be_split_anywhere(name):
    raw, status, body, reusable = REPLIES[name]
    for cut in range(1, len(raw)):
        assert await play([raw[:cut], raw[cut:]], eof=not reusable) == (status, body, reusable), raw[:cut]
    assert await play([raw[i : i + 1] for i in range(len(raw))], eof=not reusable) == (status, body, reusable)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=300), max_size=12), st.data())
def test_any_chunking_and_any_splitting_give_the_same_body(chunks, data):
    raw = CHUNKED + b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n"
    cuts = sorted(data.draw(st.sets(st.integers(1, len(raw) - 1), max_size=10)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    assert asyncio.run(play(pieces)) == (200, b"".join(chunks), True)


async def test_names_are_lower_cased_and_values_kept():
    raw = b"HTTP/1.1 200 OK\r\nX-Request-ID: AbC\r\nSet-Cookie: a=1\r\nset-cookie: B=2\r\nContent-Length: 0\r\n\r\n"
    async with pool_to(always(raw)) as (pool, _):
        reply = await post(pool)
        assert reply.headers[:3] == [(b"x-request-id", b"AbC"), (b"set-cookie", b"a=1"), (b"set-cookie", b"B=2")]
        reply.close()


@pytest.mark.parametrize("head", [b"a: b\r\n" * 255, b"a: " + b"x" * 64_000 + b"\r\n"], ids=["256 headers", "64 KB"])
async def test_a_large_head_is_fine_whatever_comes_with_it(head):
    raw = HEAD + head + b"Content-Length: 200000\r\n\r\n" + bytes(200_000)
    for pieces in ([raw], [raw[:5000], raw[5000:]]):
        assert await play(pieces) == (200, bytes(200_000), True)


async def test_framing_is_bounded_between_pieces_and_not_in_all():
    connection = Connection("engine", Timeouts(), lambda _: None, lambda _: None)
    connection.connection_made(Wire())
    task = asyncio.ensure_future(connection.exchange(b"", b""))
    await asyncio.sleep(0)
    connection.data_received(CHUNKED[:-2] + b"a: " + b"x" * 64_000 + b"\r\n\r\n")
    reply = await task
    for _ in range(100):
        connection.data_received(b"1;" + b"x" * 1000 + b"\r\n")
        connection.data_received(b"!\r\n")
        assert await reply.read() == b"!"


@pytest.mark.parametrize("head", [b"a: b\r\n" * 256, b"a: " + b"x" * 66_000 + b"\r\n"], ids=["257 headers", "66 KB"])
async def test_a_head_too_large_is_refused_even_if_it_comes_in_one_read(head):
    with pytest.raises(UpstreamInvalidResponse):
        await play([HEAD + head + b"Content-Length: 2\r\n\r\nok"])


async def test_hints_sent_before_the_head_do_not_join_it():
    async with pool_to(always(REPLIES["103 and 102 first"][0])) as (pool, _):
        reply = await post(pool)
        assert reply.headers == [(b"content-length", b"2")]
        reply.close()


async def test_trailers_do_not_join_the_headers():
    async with pool_to(always(REPLIES["trailers"][0])) as (pool, _):
        reply = await post(pool)
        await everything(reply)
        assert reply.headers == [(b"transfer-encoding", b"chunked")]
        reply.close()


# --- the request as sent


@pytest.mark.parametrize(
    ("method", "headers", "body", "prefix", "key", "lines"),
    [
        (b"GET", [], b"", "", None, []),
        (b"POST", [], b"", "", None, [b"Content-Length: 0"]),
        (b"POST", [], b"{}", "", None, [b"Content-Type: application/json", b"Content-Length: 2"]),
        (b"POST", [(b"content-type", b"text/x")], b"{}", "", None, [b"content-type: text/x", b"Content-Length: 2"]),
        (b"POST", [(b"Content-Type", b"text/x")], b"{}", "", None, [b"Content-Type: text/x", b"Content-Length: 2"]),
        (b"GET", [(b"x-a", b"1"), (b"x-a", b"2")], b"", "/prefix/", None, [b"x-a: 1", b"x-a: 2"]),
        (b"GET", [], b"", "", "sk-canary", []),
        (b"GET", [(b"authorization", b"Bearer theirs")], b"", "", None, [b"authorization: Bearer theirs"]),
    ],
)
async def test_the_head_is_exactly_this(method, headers, body, prefix, key, lines):
    seen = []

    async def script(reader, writer, _):
        seen.append(await request_on(reader))
        writer.write(OK)

    async with pool_to(script, prefix=prefix, api_key=key) as (pool, server):
        (await pool.send(method, b"/v1/x?a=%0d%0a", tuple(headers), body)).close()
        own = [b"Host: 127.0.0.1:%d" % server.port, b"Accept-Encoding: identity"]
        own += [b"Authorization: Bearer " + key.encode()] if key else []
        first = method + b" " + prefix.rstrip("/").encode() + b"/v1/x?a=%0d%0a HTTP/1.1"
        assert seen == [(b"\r\n".join([first, *own, *lines, b"", b""]), body)]


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        (b"GET", b"/v1\r\nX-Evil: 1", []),
        (b"GET", b"/v1 HTTP/1.1\r\n\r\nGET /evil", []),
        (b"GET", b"/a b", []),
        (b"GET", b"/a\0", []),
        (b"GET", b"/a\x7f", []),
        (b"GET", "/ä".encode(), []),
        (b"GET", b"", []),
        (b"GET", b"v1", []),
        (b"GET", b"http://elsewhere/", []),
        (b"GET", b"/a\n", []),
        (b"GET /evil", b"/", []),
        (b"HEAD", b"/", []),
        (b"", b"/", []),
        (b"GET", b"/", [(b"x-a", b"1\r\nX-Evil: 1")]),
        (b"GET", b"/", [(b"x-a", b"1\nX-Evil: 1")]),
        (b"GET", b"/", [(b"x-a", b"1\r")]),
        (b"GET", b"/", [(b"x-a", b"\0")]),
        (b"GET", b"/", [(b"x-a: 1\r\nx-evil", b"1")]),
        (b"GET", b"/", [(b"x-\xff\n", b"1")]),
        (b"POST", b"/", [(b"content-length", b"5")]),
        (b"POST", b"/", [(b"Transfer-Encoding", b"chunked")]),
        (b"POST", b"/", [(b"Host", b"elsewhere")]),
        (b"POST", b"/", [(b"Authorization", b"Bearer theirs")]),
    ],
)
async def test_what_would_change_the_request_is_refused_before_a_connection(method, path, headers):
    async with pool_to(always(OK), api_key="sk-canary") as (pool, server):
        with pytest.raises(InvalidRequest) as caught:
            await pool.send(method, path, tuple(headers), b"")
        assert "\r" not in str(caught.value.body())
        assert "canary" not in str(caught.value.body())
        assert caught.value.param
        assert server.connections == 0


@pytest.mark.parametrize(
    ("url", "host", "port", "prefix"),
    [
        ("http://engine", b"engine", 80, b""),
        ("https://engine/", b"engine", 443, b""),
        ("http://[::1]:8000/a/b/", b"[::1]:8000", 8000, b"/a/b"),
    ],
)
def test_urls(url, host, port, prefix):
    pool = Pool(url)
    head = pool._head(b"GET", b"/x", (), True)
    assert head.startswith(b"GET " + prefix + b"/x HTTP/1.1\r\nHost: " + host + b"\r\n")
    assert pool.name.endswith(f":{port}")


@pytest.mark.parametrize(
    "url",
    ["", "engine:8000", "ftp://engine", "http://", "http://u:p@engine", "http://engine?x=1", "http://engine/#x", "http://engine:99999",
     "http://engine:x", "http://engine/a b", "http://engine/ä", "http://" + "a" * 70 + "/", "http://en\r\ngine\0/"],
)  # fmt: skip
def test_a_url_that_cannot_be_used_is_refused_at_once(url):
    with pytest.raises(ValueError, match="upstream URL"):
        Pool(url)


@pytest.mark.parametrize("key", ["sk-canary\r\nX: 1", "sk-canary\0", "sk canary", "sk-canaryä"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(key):
    with pytest.raises(ValueError, match="API key") as caught:
        Pool("http://engine", api_key=key)
    assert "canary" not in str(caught.value)


# --- the pool


async def test_the_connection_that_rested_last_is_taken_first():
    served = []

    async def script(reader, writer, number):
        while True:
            await request_on(reader)
            served.append(number)
            writer.write(OK)

    async with pool_to(script) as (pool, _server):
        replies = [await post(pool) for _ in range(3)]
        for reply in replies:
            await reply.read()
        for index in (0, 2, 1):
            replies[index].close()
        for _ in range(2):
            await fetch(pool)
        assert served == [1, 2, 3, 2, 2]


async def test_no_more_than_max_idle_rest():
    async with pool_to(always(OK), max_idle=2) as (pool, server):
        replies = [await post(pool) for _ in range(5)]
        for reply in replies:
            await reply.read()
            reply.close()
        await until(lambda: len(pool._live) == 2)
        await asyncio.gather(*(fetch(pool) for _ in range(2)))
        assert server.connections == 5


async def test_a_rested_connection_is_closed_by_us_before_the_engine_would():
    ended = []

    async def script(reader, writer, number):
        await request_on(reader)
        writer.write(OK)
        ended.append(await reader.read())

    async with pool_to(script, timeouts=Timeouts(keepalive=0.05)) as (pool, _server):
        await fetch(pool)
        await until(lambda: ended)
        assert not pool._live
        assert not pool._idle


async def test_rest_counts_from_the_end_of_the_last_exchange():
    async def script(reader, writer, _):
        while True:
            await request_on(reader)
            await asyncio.sleep(0.8)
            writer.write(OK)

    async with pool_to(script, timeouts=Timeouts(keepalive=0.7)) as (pool, server):
        for _ in range(2):
            await fetch(pool)
        assert server.connections == 1


async def test_an_expired_connection_is_not_used_even_if_still_there():
    async with pool_to(always(OK), timeouts=Timeouts(keepalive=5)) as (pool, server):
        await fetch(pool)
        pool._idle[0].since -= 6
        await fetch(pool)
        assert server.connections == 2


@pytest.mark.parametrize("parting", [b"", b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n", b"\r\n"])
async def test_what_happens_to_a_resting_connection_takes_it_out_of_the_pool(parting):
    """The engine closes it, or says something nobody asked for: that must not become the answer to the next request."""

    async def script(reader, writer, number):
        await request_on(reader)
        writer.write(OK)
        await writer.drain()
        if number == 1:
            await until(lambda: box["pool"]._idle)
            if not parting:
                return
            writer.write(parting)
        await reader.read()

    box = {}
    async with pool_to(script, timeouts=Timeouts(keepalive=2 * PATIENCE)) as (pool, server):
        box["pool"] = pool
        assert await fetch(pool) == (200, b"ok")
        await until(lambda: not pool._live)
        assert not pool._idle
        assert await fetch(pool) == (200, b"ok")
        assert server.connections == 2


async def test_surplus_after_a_reply_is_never_the_next_reply():
    evil = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"
    for surplus in (evil, evil[:9], b"X", b"\0" * 70_000):
        assert await play([OK + surplus]) == await play([OK, surplus]) == (200, b"ok", False)
        async with pool_to(always(OK + surplus, OK)) as (pool, server):
            assert await fetch(pool) == (200, b"ok")
            assert await fetch(pool) == (200, b"ok")
            assert server.connections == 2


async def test_a_stale_connection_is_retried_once_on_a_fresh_one():
    bodies = []

    async def script(reader, writer, number):
        for turn in range(2):
            bodies.append((number, (await request_on(reader))[1]))
            if number == 1 and turn == 1:
                return  # the engine's keep-alive expiry, crossing the request on the wire
            writer.write(OK)

    async with pool_to(script) as (pool, _server):
        await fetch(pool, b"[1]")
        assert await fetch(pool, b"[2]") == (200, b"ok")
        assert bodies == [(1, b"[1]"), (1, b"[2]"), (2, b"[2]")]


async def test_the_second_try_is_the_last_even_if_more_stale_connections_rest():
    requests = []

    async def script(reader, writer, number):
        await request_on(reader)
        requests.append(number)
        if number <= 3:
            writer.write(OK)
            await request_on(reader)
            requests.append(number)

    async with pool_to(script) as (pool, _server):
        replies = [await post(pool) for _ in range(3)]
        for reply in replies:
            await reply.read()
            reply.close()
        with pytest.raises(UpstreamReset):
            await post(pool)
        assert requests == [1, 2, 3, 3, 4]


@pytest.mark.parametrize("first", [b"H", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
async def test_never_retried_after_a_byte_of_the_response(first):
    async def script(reader, writer, number):
        await request_on(reader)
        writer.write(OK)
        await request_on(reader)
        writer.write(first)

    async with pool_to(script) as (pool, server):
        await fetch(pool)
        with pytest.raises(UpstreamReset):
            await post(pool)
        assert server.connections == 1


async def test_a_fresh_connection_that_dies_is_not_retried():
    async def script(reader, writer, number):
        await request_on(reader)

    async with pool_to(script) as (pool, server):
        with pytest.raises(UpstreamReset):
            await post(pool)
        assert server.connections == 1


async def test_a_timeout_on_a_reused_connection_is_not_retried():
    async def script(reader, writer, number):
        await request_on(reader)
        writer.write(OK)
        await reader.read()

    async with pool_to(script, timeouts=Timeouts(headers=0.1)) as (pool, server):
        await fetch(pool)
        with pytest.raises(UpstreamTimeout):
            await post(pool)
        assert server.connections == 1


# --- faults


def forever(start, piece):
    async def script(reader, writer, _):
        await request_on(reader)
        writer.write(start)
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)

    return script


def reset_after(raw):
    async def script(reader, writer, _):
        await request_on(reader)
        writer.write(raw)
        await asyncio.sleep(0.05)
        linger_zero = b"\1\0\0\0\0\0\0\0"
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_zero)
        writer.transport.abort()

    return script


def cut(raw, before=b""):
    return always(raw, then_close=True), UpstreamReset, before


def invalid(raw, before=b""):
    return always(raw, then_close=True), UpstreamInvalidResponse, before


PART = HEAD + b"Content-Length: 100\r\n\r\npart"
FAULTS = {  # name: (script, error, what can be read before it)
    "closed without a word": cut(b""),
    "closed inside the head": cut(HEAD + b"X-A: 1"),
    "closed after 100": cut(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "closed inside the body": cut(PART, b"part"),
    "closed inside a chunk": cut(CHUNKED + b"5\r\nhe", b"he"),
    "closed before the last chunk": cut(CHUNKED + b"5\r\nhello\r\n", b"hello"),
    "closed inside the last chunk": cut(CHUNKED + b"5\r\nhello\r\n0\r\n", b"hello"),
    "reset before the head": (reset_after(b""), UpstreamReset, b""),
    "reset inside the body": (reset_after(PART), UpstreamReset, b"part"),
    "reset inside a close-delimited body": (reset_after(HEAD + b"\r\npart"), UpstreamReset, b"part"),
    "not HTTP": invalid(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "TLS to a plain client": invalid(b"\x15\x03\x01\x00\x02\x02\x46"),
    "a request": invalid(b"GET / HTTP/1.1\r\n\r\n"),
    "HTTP/2": invalid(b"\0\0\x12\4\0\0\0\0\0\0\3\0\0\0\x80\0\4\0\1\0\0"),
    "status 20": invalid(b"HTTP/1.1 20 OK\r\n\r\n"),
    "status 2000": invalid(b"HTTP/1.1 2000 OK\r\n\r\n"),
    "status 099": invalid(b"HTTP/1.1 099 X\r\nContent-Length: 0\r\n\r\n"),
    "status 700": invalid(b"HTTP/1.1 700 X\r\nContent-Length: 0\r\n\r\n"),
    "1xx with a body": invalid(b"HTTP/1.1 199 X\r\nContent-Length: 4\r\n\r\nevil" + OK),
    "CR in a header": invalid(HEAD + b"X-A: a\rX-B: b\r\nContent-Length: 0\r\n\r\n"),
    "LF in a header": invalid(HEAD + b"X-A: a\nX-B: b\r\nContent-Length: 0\r\n\r\n"),
    "folded header": invalid(HEAD + b"X-A: a\r\n b\r\nContent-Length: 0\r\n\r\n"),
    "NUL in a header": invalid(HEAD + b"X-A: \0\r\n\r\n"),
    "two lengths": invalid(HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
    "length and chunked": invalid(CHUNKED[:-2] + b"Content-Length: 5\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
    "negative length": invalid(HEAD + b"Content-Length: -1\r\n\r\n"),
    "huge length": invalid(HEAD + b"Content-Length: %d\r\n\r\n" % 2**80),
    "chunk size not hexadecimal": invalid(CHUNKED + b"zz\r\n"),
    "huge chunk size": invalid(CHUNKED + b"5\r\nhello\r\n" + b"f" * 20 + b"\r\n", b"hello"),
    "chunk without its end": invalid(CHUNKED + b"2\r\nhello\r\n0\r\n\r\n", b"he"),
    "gzip": invalid(HEAD + b"Content-Encoding: gzip\r\nContent-Length: 1\r\n\r\n!"),
    "gzip as transfer": invalid(HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    "another protocol": invalid(b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n!"),
    "257 headers": invalid(HEAD + b"a: b\r\n" * 257 + b"\r\n"),
    "a head of 65 KB": invalid(HEAD + b"a: " + b"x" * 66_560 + b"\r\n\r\n"),
    "headers for ever": (forever(HEAD, b"a: b\r\n" * 100), UpstreamInvalidResponse, b""),
    "one header for ever": (forever(HEAD + b"a: ", b"x" * 4096), UpstreamInvalidResponse, b""),
    "1xx for ever": (forever(b"", b"HTTP/1.1 102 Processing\r\n\r\n" * 50), UpstreamInvalidResponse, b""),
    "trailers for ever": (forever(CHUNKED + b"2\r\nhi\r\n0\r\n", b"a: b\r\n" * 100), UpstreamInvalidResponse, b"hi"),
    "one trailer for ever": (forever(CHUNKED + b"2\r\nhi\r\n0\r\na: ", b"x" * 4096), UpstreamInvalidResponse, b"hi"),
    "a chunk extension for ever": (forever(CHUNKED + b"2\r\nhi\r\n2;x=", b"x" * 4096), UpstreamInvalidResponse, b"hi"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
async def test_faults_are_named_and_come_after_what_was_sent(name):
    script, expected, before = FAULTS[name]
    async with pool_to(script, api_key="sk-canary") as (pool, server):
        got, held = bytearray(), []
        with pytest.raises(UpstreamError) as caught:
            await collect(pool, got, held)
        assert type(caught.value) is expected
        assert f"127.0.0.1:{server.port}" in caught.value.message
        assert "canary" not in caught.value.message
        assert got == before
        for reply in held:
            assert not reply.complete
            with pytest.raises(expected):  # and again, not an end
                await reply.read()
            reply.close()
        await until(lambda: not pool._live)
        assert not pool._idle


async def test_refused_is_unavailable_and_says_when_to_come_back():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        pool = Pool(f"http://127.0.0.1:{unused.getsockname()[1]}", api_key="sk-canary")
        with pytest.raises(UpstreamUnavailable, match="nothing listens") as caught:
            await post(pool)
    assert caught.value.status == 503
    assert 1 <= caught.value.retry_after <= 5
    assert pool.name in caught.value.message
    assert "canary" not in caught.value.message
    await pool.close()


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (socket.gaierror(-2, "Name or service not known"), "cannot be resolved"),
        (ConnectionRefusedError(), "nothing listens"),
        (OSError(113, "No route to host"), "cannot be reached"),
        (OSError("Multiple exceptions: ..."), "cannot be reached"),
        (ConnectionResetError(), "cannot be reached"),
        (TimeoutError(), "no connection in time"),
    ],
)
async def test_every_way_of_not_connecting_is_unavailable(monkeypatch, error, text):
    async def create_connection(*_, **__):
        raise error

    monkeypatch.setattr(asyncio, "get_running_loop", lambda: Loop(create_connection))
    with pytest.raises(UpstreamUnavailable, match=text) as caught:
        await post(Pool("http://engine:8000"))
    assert 1 <= caught.value.retry_after <= 5
    assert "engine:8000" in caught.value.message


async def test_the_first_address_that_answers(monkeypatch):
    """Every address of a name is tried, in order; TLS still asks for the name."""
    tried = []

    async def create_connection(factory, address, port, *, ssl, server_hostname):
        tried.append((address, port, ssl is not None, server_hostname))
        if len(tried) % 2:
            raise ConnectionRefusedError
        connection = factory()
        connection.connection_made(Wire())
        connection.connection_lost(None)

    for scheme, secure in (("http", False), ("https", True)):
        tried.clear()
        pool = Pool(f"{scheme}://engine:8000")
        with monkeypatch.context() as patch:
            patch.setattr(asyncio, "get_running_loop", lambda: Loop(create_connection))
            with pytest.raises(UpstreamReset):
                await post(pool)
        name = "engine" if secure else None
        assert tried == [(f"192.0.2.{n}", 8000, secure, name) for n in (1, 2)]
        await pool.close()


async def test_a_lookup_that_takes_too_long_is_given_up(monkeypatch):
    """And says nothing when it fails after all (see `quiet`)."""
    loop = Loop(None)
    late = loop._loop.create_future()

    async def getaddrinfo(*_, **__):
        return await late

    loop.getaddrinfo = getaddrinfo
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    with pytest.raises(UpstreamUnavailable, match="no connection in time"):
        await post(Pool("http://engine:8000", timeouts=Timeouts(connect=0.05)))
    assert late.cancelled()


async def test_a_connection_lost_as_soon_as_made_is_not_kept(monkeypatch):
    async def create_connection(factory, *_, **__):
        connection = factory()
        connection.connection_made(Wire())
        connection.connection_lost(None)

    pool = Pool("http://engine:8000")
    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "get_running_loop", lambda: Loop(create_connection))
        with pytest.raises(UpstreamReset):
            await post(pool)
    async with asyncio.timeout(PATIENCE):
        await pool.close()


class Loop:
    """The running loop, but for how it connects (uvloop's cannot be patched)."""

    def __init__(self, create_connection):
        self._loop, self.create_connection = asyncio._get_running_loop(), create_connection

    async def getaddrinfo(self, host, port, **_):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"192.0.2.{n}", port)) for n in (1, 2)]

    def __getattr__(self, name):
        return getattr(self._loop, name)


@contextlib.asynccontextmanager
async def full_backlog():
    """A port that neither accepts nor refuses."""
    loop, held = asyncio.get_running_loop(), []
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        try:
            for _ in range(8):
                client = socket.socket()
                client.setblocking(False)
                held.append(client)
                try:
                    async with asyncio.timeout(0.2):
                        await loop.sock_connect(client, listener.getsockname())
                except TimeoutError:
                    break
            else:
                pytest.skip("this system accepts more connections than the backlog says")
            yield listener.getsockname()[1]
        finally:
            for client in held:
                client.close()


async def test_connect_timeout_is_unavailable():
    async with full_backlog() as port:
        pool = Pool(f"http://127.0.0.1:{port}", timeouts=Timeouts(connect=0.1))
        with pytest.raises(UpstreamUnavailable, match="no connection in time"):
            await post(pool)
        await pool.close()


async def test_a_silent_tls_handshake_is_within_the_connect_timeout():
    async def script(reader, writer, _):
        await reader.read()

    async with Server(script) as server:
        pool = Pool(f"https://127.0.0.1:{server.port}", timeouts=Timeouts(connect=0.1))
        with pytest.raises(UpstreamUnavailable):
            await post(pool)
        await pool.close()


async def silent(reader, writer, _):
    await request_on(reader)
    await reader.read()


async def test_no_response_in_time_and_the_engine_is_told():
    ended = []

    async def script(reader, writer, _):
        await request_on(reader)
        ended.append(await reader.read())

    async with pool_to(script, timeouts=Timeouts(headers=0.1)) as (pool, server):
        with pytest.raises(UpstreamTimeout, match=f"{server.port} sent no response within 0.1 s"):
            await post(pool)
        await until(lambda: ended)


async def test_a_dripping_head_does_not_move_the_deadline():
    async def script(reader, writer, _):
        await request_on(reader)
        for byte in b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 10_000:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.02)

    async with pool_to(script, timeouts=Timeouts(headers=0.3)) as (pool, _):
        with pytest.raises(UpstreamTimeout):
            await post(pool)


async def test_the_idle_deadline_counts_from_the_last_piece():
    async def script(reader, writer, _):
        await request_on(reader)
        writer.write(CHUNKED)
        for _ in range(12):
            await asyncio.sleep(0.1)
            writer.write(b"2\r\nhi\r\n")
        await reader.read()

    async with pool_to(script, timeouts=Timeouts(idle=0.8)) as (pool, _):
        got, held = bytearray(), []
        with pytest.raises(UpstreamTimeout, match=r"sent nothing more for 0\.8 s"):
            await collect(pool, got, held)
        assert got == b"hi" * 12
        held[0].close()


async def test_a_head_late_by_more_than_the_idle_time_is_not_idle():
    async def script(reader, writer, _):
        await request_on(reader)
        await asyncio.sleep(0.8)
        writer.write(CHUNKED)
        await asyncio.sleep(0.1)
        writer.write(b"2\r\nhi\r\n0\r\n\r\n")

    async with pool_to(script, timeouts=Timeouts(idle=0.6)) as (pool, _):
        assert await fetch(pool) == (200, b"hi")


async def test_framing_alone_is_idle():
    """A chunk extension that drips keeps no stream alive."""

    async def script(reader, writer, _):
        await request_on(reader)
        writer.write(CHUNKED + b"2\r\nhi\r\n2;")
        for _ in range(1000):
            writer.write(b"x")
            await asyncio.sleep(0.02)

    async with pool_to(script, timeouts=Timeouts(idle=0.2)) as (pool, _):
        with pytest.raises(UpstreamTimeout):
            await fetch(pool)


async def test_an_unread_body_is_not_idle():
    async def script(reader, writer, _):
        await request_on(reader)
        writer.write(CHUNKED + b"2\r\nhi\r\n")
        await asyncio.sleep(0.5)
        writer.write(b"0\r\n\r\n")

    async with pool_to(script, timeouts=Timeouts(idle=0.3)) as (pool, _):
        reply = await post(pool)
        await asyncio.sleep(0.45)
        assert await everything(reply) == b"hi"
        reply.close()


async def test_an_engine_that_stops_taking_the_request_times_out():
    async def script(reader, writer, _):
        writer.transport.pause_reading()
        await asyncio.sleep(PATIENCE)

    async with pool_to(script, timeouts=Timeouts(write=0.2)) as (pool, _):
        with pytest.raises(UpstreamTimeout, match=r"took no byte of the request for 0\.2 s"):
            await post(pool, bytes(16 * 1024 * 1024))


async def test_a_slow_upload_that_moves_is_not_cut():
    async def script(reader, writer, _):
        head = await reader.readuntil(b"\r\n\r\n")
        left = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
        while left:
            left -= len(await reader.read(1024 * 1024))
            await asyncio.sleep(0.02)
        writer.write(OK)

    async with pool_to(script, timeouts=Timeouts(write=0.6)) as (pool, _):
        assert await fetch(pool, bytes(24 * 1024 * 1024)) == (200, b"ok")


# --- large and slow


async def test_a_large_upload_arrives_whole():
    body = os.urandom(1024) * 20_000

    async def script(reader, writer, _):
        while True:
            got = (await request_on(reader))[1]
            writer.write(OK if got == body else b"HTTP/1.1 500 X\r\n\r\n")

    async with pool_to(script) as (pool, server):
        assert [await fetch(pool, body) for _ in range(2)] == [(200, b"ok")] * 2
        assert server.connections == 1


@pytest.mark.parametrize("then", ["wait", "drain", "close"])
async def test_an_early_answer_is_delivered_and_its_connection_not_reused(then):
    async def script(reader, writer, number):
        await reader.readuntil(b"\r\n\r\n")
        if number == 1:
            reader._transport.pause_reading()
            writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
            await writer.drain()
            if then == "wait":
                await asyncio.sleep(PATIENCE)
            if then == "drain":
                await asyncio.sleep(0.1)
                reader._transport.resume_reading()
                await reader.read()
        else:
            writer.write(OK)
            await reader.read()

    async with pool_to(script) as (pool, server):
        assert await fetch(pool, bytes(16 * 1024 * 1024)) == (413, b"big")
        assert await fetch(pool) == (200, b"ok")
        assert server.connections == 2


async def test_an_engine_that_hangs_up_on_an_upload_is_noticed_before_the_upload_ends():
    async def script(reader, writer, _):
        reader._transport.pause_reading()
        writer.write_eof()
        await asyncio.sleep(2 * PATIENCE)

    async with pool_to(script) as (pool, _):
        with pytest.raises(UpstreamReset):
            await post(pool, bytes(16 * 1024 * 1024))


async def test_a_slow_reader_stops_the_engine_not_the_memory():
    total, piece, sent = 50 * 1024 * 1024, 64 * 1024, [0]

    async def script(reader, writer, _):
        await request_on(reader)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 128 * 1024)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        while sent[0] < total:
            writer.write(bytes(piece))
            await writer.drain()
            sent[0] += piece
        await reader.read()

    async with pool_to(script) as (pool, _):
        reply = await post(pool)
        last = -1
        while sent[0] != last:  # until nothing moves any more
            last = sent[0]
            await asyncio.sleep(0.2)
        assert last < 12 * 1024 * 1024  # what kernel buffers on both sides may hold, plus ours
        held = len(reply.take())
        assert HIGH_WATER / 2 < held < HIGH_WATER + 512 * 1024
        assert held + len(await everything(reply)) == total
        assert reply.complete
        reply.close()
        assert pool._idle


async def test_reading_is_paused_above_the_mark_and_resumed_once_drained():
    connection = Connection("engine", Timeouts(), lambda _: None, lambda _: None)
    wire = Wire()
    connection.connection_made(wire)
    task = asyncio.ensure_future(connection.exchange(b"", b""))
    await asyncio.sleep(0)
    connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    reply = await task
    connection.data_received(bytes(HIGH_WATER))
    assert not wire.paused
    connection.data_received(b"x")
    assert wire.paused
    assert len(reply.take()) == HIGH_WATER + 1
    assert not wire.paused
    assert reply.take() == b""
    connection.data_received(bytes(HIGH_WATER))
    assert not wire.paused
    reply.close()
    assert wire.aborted


# --- the reply in the caller's hands


async def test_read_does_not_suspend_when_something_is_there():
    async with pool_to(always(OK)) as (pool, _):
        reply = await post(pool)
        await until(lambda: reply.complete)
        for expected in (b"ok", b""):
            with pytest.raises(StopIteration) as finished:
                reply.read().send(None)
            assert finished.value.value == expected
        reply.close()


async def test_take_never_waits_and_joins_what_is_there():
    go = asyncio.Event()

    async def script(reader, writer, _):
        await request_on(reader)
        writer.write(CHUNKED)
        await go.wait()
        writer.write(b"1\r\na\r\n1\r\nb\r\n")
        await reader.read()

    async with pool_to(script) as (pool, _):
        reply = await post(pool)
        assert reply.take() == b""
        assert not reply.complete
        go.set()
        assert await reply.read() == b"ab"
        assert reply.take() == b""
        reply.close()


async def test_close_twice_gives_the_connection_back_once():
    async with pool_to(always(OK)) as (pool, _):
        reply = await post(pool)
        assert await reply.read() == b"ok"
        reply.close()
        reply.close()
        assert len(pool._idle) == 1
        assert reply.take() == b""
        assert await reply.read() == b""


async def test_a_closed_reply_does_not_see_the_next_one():
    async with pool_to(always(OK, b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nnext!")) as (pool, server):
        first = await post(pool)
        await until(lambda: first.complete)
        first.close()  # unread
        second = await post(pool)
        await until(lambda: second.complete)
        assert first.take() == b""
        assert await second.read() == b"next!"
        second.close()
        assert server.connections == 1


async def streaming(reader, writer, ended):
    await request_on(reader)
    writer.write(CHUNKED + b"2\r\nhi\r\n")
    ended.append(await reader.read())


async def test_closing_early_stops_the_engine_and_wakes_a_reader():
    ended = []
    async with pool_to(lambda r, w, _: streaming(r, w, ended)) as (pool, _):
        reply = await post(pool)
        assert await reply.read() == b"hi"
        reading = asyncio.ensure_future(reply.read())
        await asyncio.sleep(0)
        reply.close()
        with pytest.raises(UpstreamReset):
            await reading
        await until(lambda: ended == [b""])
        assert reply.take() == b""
        assert not reply.complete
        with pytest.raises(UpstreamReset):
            await reply.read()
        await until(lambda: not pool._live)


async def test_cancelled_while_reading():
    ended = []
    async with pool_to(lambda r, w, _: streaming(r, w, ended)) as (pool, _):
        reply = await post(pool)
        await reply.read()
        reading = asyncio.ensure_future(reply.read())
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await until(lambda: ended)


async def test_cancelled_while_waiting_for_the_head():
    ended, asked = [], []

    async def script(reader, writer, _):
        await request_on(reader)
        asked.append(1)
        ended.append(await reader.read())

    async with pool_to(script) as (pool, _):
        sending = asyncio.ensure_future(post(pool))
        await until(lambda: asked)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        await until(lambda: ended)
        assert not pool._live


async def test_cancelled_while_connecting():
    """Before TCP, inside the TLS handshake, and at every turn of the loop around the moment it succeeds."""
    ended = []

    async def script(reader, writer, _):
        ended.append(await reader.read())

    async with full_backlog() as port:
        pool = Pool(f"http://127.0.0.1:{port}")
        sending = asyncio.ensure_future(post(pool))
        await asyncio.sleep(0.05)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        await pool.close()
    async with Server(script) as server:
        pool = Pool(f"https://127.0.0.1:{server.port}")
        sending = asyncio.ensure_future(post(pool))
        await until(lambda: server.connections)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        await until(lambda: ended)
        await pool.close()
    for turns in range(12):
        async with pool_to(silent) as (pool, server):
            sending = asyncio.ensure_future(post(pool))
            for _ in range(turns):
                await asyncio.sleep(0)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            await until(lambda server=server: not server.tasks)
            await until(lambda pool=pool: not pool._live)


# --- the end


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
async def test_close_leaves_nothing_open_and_ends_what_is_running():
    async with Server(silent) as server:
        before = len(os.listdir("/proc/self/fd"))
        pool = Pool(f"http://127.0.0.1:{server.port}")
        sending = [asyncio.ensure_future(post(pool)) for _ in range(20)]
        await until(lambda: server.connections == 20)
        await pool.close()
        assert not pool._live
        for outcome in await asyncio.gather(*sending, return_exceptions=True):
            assert type(outcome) is UpstreamReset
        await until(lambda: not server.tasks)
        await until(lambda: len(os.listdir("/proc/self/fd")) <= before)
        with pytest.raises(UpstreamUnavailable):
            await post(pool)
        await pool.close()
        assert not pool._live


async def test_closing_while_a_reused_connection_waits_or_one_is_being_made():
    asked = []

    async def script(reader, writer, _):
        await request_on(reader)
        writer.write(OK)
        await request_on(reader)
        asked.append(1)
        await reader.read()

    async with pool_to(script) as (pool, server):
        await fetch(pool)
        sending = asyncio.ensure_future(post(pool))
        await until(lambda: asked)
        await pool.close()
        with pytest.raises(UpstreamReset, match="shutting down"):
            await sending
        assert server.connections == 1
    for turns in range(12):
        async with pool_to(silent) as (pool, server):
            sending = asyncio.ensure_future(post(pool))
            for _ in range(turns):
                await asyncio.sleep(0)
            await pool.close()
            with pytest.raises(UpstreamError, match="shutting down"):
                await sending
            await until(lambda server=server: not server.tasks)


async def test_many_at_once_use_a_connection_each_and_no_more():
    async def script(reader, writer, _):
        while True:
            body = (await request_on(reader))[1]
            await asyncio.sleep(0)
            writer.write(CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))

    async with pool_to(script) as (pool, server):
        for _ in range(5):
            bodies = [b"[%d]" % i for i in range(64)]
            assert await asyncio.gather(*(fetch(pool, b) for b in bodies)) == [(200, b) for b in bodies]
        assert server.connections == 64
        assert len(pool._idle) == 64


# --- TLS


@functools.cache
def certificate(folder):
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command to make a certificate with")
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    command += ["-subj", "/CN=engine", "-addext", "subjectAltName=IP:127.0.0.1"]
    paths = Path(folder, "key.pem"), Path(folder, "cert.pem")
    subprocess.run([*command, "-keyout", paths[0], "-out", paths[1]], check=True, capture_output=True)
    return paths


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """A server context, and a client context that trusts it."""
    key, cert = certificate(str(tmp_path_factory.mktemp("tls")))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(cert, key)
    return server, ssl.create_default_context(cafile=cert), cert


async def test_tls_reuse_upload_and_close_delimited(tls):
    body = os.urandom(1024) * 3000

    async def script(reader, writer, number):
        got = (await request_on(reader))[1]
        writer.write(CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (len(got), got))
        await request_on(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nto the end")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with Server(script, tls[0]) as server, asyncio.timeout(PATIENCE):
        pool = Pool(f"https://127.0.0.1:{server.port}", tls=tls[1])
        assert await fetch(pool, body) == (200, body)
        assert await fetch(pool) == (200, b"to the end")
        assert server.connections == 1
        await pool.close()


async def test_tls_trusts_the_file_that_the_environment_names(tls, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(tls[2]))
    async with Server(always(OK), tls[0]) as server, asyncio.timeout(PATIENCE):
        pool = Pool(f"https://127.0.0.1:{server.port}")
        assert await fetch(pool) == (200, b"ok")
        await pool.close()


async def test_tls_that_is_not_trusted_or_not_tls_is_unavailable(tls):
    async with Server(always(OK), tls[0]) as secure, Server(always(b"")) as plain, asyncio.timeout(PATIENCE):
        for port in (secure.port, plain.port):
            pool = Pool(f"https://127.0.0.1:{port}", timeouts=Timeouts(connect=1))
            with pytest.raises(UpstreamUnavailable):
                await post(pool)
            await pool.close()


async def test_tls_slow_reader_is_bounded(tls):
    total, piece, sent = 30 * 1024 * 1024, 64 * 1024, [0]

    async def script(reader, writer, _):
        await request_on(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        while sent[0] < total:
            writer.write(bytes(piece))
            await writer.drain()
            sent[0] += piece
        await reader.read()

    async with Server(script, tls[0]) as server, asyncio.timeout(PATIENCE):
        pool = Pool(f"https://127.0.0.1:{server.port}", tls=tls[1])
        reply, last = await post(pool), -1
        while sent[0] != last:
            last = sent[0]
            await asyncio.sleep(0.2)
        assert last < 15 * 1024 * 1024
        assert len(await everything(reply)) == total
        reply.close()
        await pool.close()


# --- pouring


async def test_a_sink_that_is_full_makes_the_engine_wait():
    size = HIGH_WATER * 40

    async def script(reader, writer, _):
        await request_on(reader)
        writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % size)
        for _ in range(40):
            writer.write(b"x" * HIGH_WATER)
            await writer.drain()
        await reader.read()

    got, full = [], asyncio.Event()

    def sink(data, last):
        got.append(len(data))
        full.set()
        return False

    async with pool_to(script, timeouts=Timeouts(idle=0.2)) as (pool, _):
        reply = await post(pool)
        pouring = asyncio.create_task(reply.pour(sink))
        while sum(got) < size:
            await full.wait()
            full.clear()
            seen = len(got)
            await asyncio.sleep(
                0.3 if seen == 1 else 0
            )  # longer than the engine's deadline: the client is slow, not it
            assert len(got) == seen, "nothing comes before it is asked for"
            reply.resume()
        await pouring
        reply.close()
        assert max(got) <= 2 * HIGH_WATER


async def test_a_sink_that_refuses_ends_the_exchange():
    def sink(data, last):
        raise UpstreamInvalidResponse("not what was asked for")

    async with pool_to(always(CHUNKED + b"2\r\nhi\r\n0\r\n\r\n")) as (pool, server):
        for number in (1, 2):
            reply = await post(pool)
            with pytest.raises(UpstreamInvalidResponse, match="not what was asked for"):
                await reply.pour(sink)
            reply.close()
            assert server.connections == number, "the connection went with it"


async def test_who_stops_pouring_stops_the_engine():
    gone = asyncio.Event()

    async def script(reader, writer, _):
        await request_on(reader)
        writer.write(CHUNKED + b"2\r\nhi\r\n")
        await reader.read()
        gone.set()

    got = []
    async with pool_to(script) as (pool, _):
        reply = await post(pool)
        pouring = asyncio.create_task(reply.pour(lambda data, last: got.append(data) is None))
        await until(lambda: got)
        pouring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pouring
        await gone.wait()
        assert got == [b"hi"]
        with pytest.raises(UpstreamReset, match="closed"):
            await reply.pour(lambda data, last: True)


async def test_what_came_before_a_fault_is_poured():
    got = []
    async with pool_to(always(CHUNKED + b"2\r\nhi\r\nzz\r\n")) as (pool, _):
        reply = await post(pool)
        with pytest.raises(UpstreamInvalidResponse):
            await reply.pour(lambda data, last: got.append((data, last)) is None)
        reply.close()
        assert b"".join(data for data, _ in got) == b"hi"
        assert not any(last for _, last in got)
