"""The way to one engine: a pool of keep-alive HTTP/1.1 connections behind one callable, `Pool.send`.

Knows addresses, the request head, reuse and retry, and is the border at which foreign exceptions become
UpstreamError. Does not know JSON, presets, streams or clients, and follows nothing by itself: no proxies, redirects,
cookies, content codings, HTTP/2.

A request is sent once. The only second try: a connection taken from the pool died before a byte of the response,
which is how an engine's own keep-alive expiry looks when it crosses a request on the wire.
"""

from __future__ import annotations

import asyncio
import random
import re
import socket
import ssl
from collections.abc import Sequence
from urllib.parse import urlsplit

from gateway.protocol.errors import InvalidRequest, UpstreamReset, UpstreamUnavailable
from gateway.serving.connection import Connection, Stale
from gateway.serving.reply import Reply
from gateway.serving.timing import Timeouts
from gateway.serving.way import Headers

# Why there is no connection: the first row that fits.
_UNAVAILABLE: tuple[tuple[type[OSError], str], ...] = (
    (socket.gaierror, "its name cannot be resolved"),
    (ssl.SSLCertVerificationError, "its TLS certificate is not trusted"),
    (ssl.SSLError, "the TLS handshake failed"),
    (ConnectionRefusedError, "nothing listens there"),
    (TimeoutError, "no connection in time"),
    (OSError, "it cannot be reached"),
)
_PATH = re.compile(rb"/[!-~]*").fullmatch
_OWN = {
    b"host",
    b"content-length",
    b"transfer-encoding",
    b"connection",
    b"accept-encoding",
    b"expect",
    b"upgrade",
    b"te",
}


_REMEMBERED = 256  # request heads without what differs from request to request; clients send the same few headers


class Pool:
    """Connections to one engine. Belongs to the event loop that first calls `send`.

    base_url is http(s)://host[:port][/prefix]; the prefix goes before every path. At most `max_idle` connections rest.
    Raises ValueError for a URL or key that cannot be used; the message never shows the key.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        timeouts: Timeouts | None = None,
        max_idle: int = 256,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._host, self._port, self._prefix, authority, secure = _split(base_url)
        self.name = f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"
        self._tls = (tls or ssl.create_default_context()) if secure else None
        self._own = _OWN | {b"authorization"} if api_key else _OWN
        self._fixed = (
            b" HTTP/1.1\r\nHost: " + authority + b"\r\nAccept-Encoding: identity\r\n" + _authorization(api_key)
        )
        self._timeouts = limits = timeouts or Timeouts()
        shortest = min(limits.headers, limits.idle, limits.keepalive, limits.write)
        self._tick = min(1.0, max(0.01, shortest / 4))
        self._max_idle = max_idle
        self._heads: dict[tuple[bytes, bytes, Headers, bool], bytes] = {}
        self._idle: list[Connection] = []  # the longest at rest first
        self._live: set[Connection] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._emptied: asyncio.Future[None] | None = None

    async def send(self, method: bytes, path: bytes, headers: Headers, body: bytes, own: bytes = b"") -> Reply:
        """The reply, once its head has arrived. The caller closes it.

        `headers` are worth remembering; `own` are header lines of this request alone, complete with their line ends
        and taken as they are.

        Raises InvalidRequest (a path or header that would not survive as sent, or a header that is set here), and
        UpstreamUnavailable, UpstreamTimeout, UpstreamReset, UpstreamInvalidResponse. Cancelling it drops the
        connection.
        """
        key = (method, path, headers, not body)
        begin = self._heads.get(key)
        if begin is None:
            if len(self._heads) >= _REMEMBERED:
                self._heads.clear()
            begin = self._heads[key] = self._head(method, path, headers, not body)
        if body or method != b"GET":
            head = b"%b%bContent-Length: %d\r\n\r\n" % (begin, own, len(body))
        else:
            head = b"%b%b\r\n" % (begin, own)
        connection = self._reuse()
        if connection is not None:
            try:
                return await connection.exchange(head, body)
            except Stale:
                pass
        return await (await self._connect()).exchange(head, body)

    async def close(self) -> None:
        """Drop every connection, those in use included, and return when all are gone."""
        self._closed = True
        for connection in self._live:
            connection.fail(UpstreamReset("the gateway is shutting down", code="shutting_down"))
        if self._live:
            self._emptied = asyncio.get_running_loop().create_future()
            await self._emptied

    def _head(self, method: bytes, path: bytes, headers: Headers, bare: bool) -> bytes:
        if _PATH(path) is None:
            raise InvalidRequest("the path must start with / and hold no spaces or control characters", param="path")
        if not method.isalpha() or method == b"HEAD":  # whose replies promise a body and have none
            raise InvalidRequest("the method must be one word other than HEAD", param="method")
        pieces: list[bytes] = []
        typed = bare
        for name, value in headers:
            lower = name.lower()
            if lower in self._own:
                raise InvalidRequest(f"the header {lower.decode()} is set by the gateway itself", param=lower.decode())
            typed = typed or lower == b"content-type"
            pieces += (name, b": ", value, b"\r\n")
        block = b"".join(pieces)
        # As many line ends as headers means that none came from inside a name or a value.
        if not block.count(b"\r") == block.count(b"\n") == len(headers) or b"\0" in block:
            raise InvalidRequest("a header holds a line break or NUL", param=_broken(headers))
        tail = b"" if typed else b"Content-Type: application/json\r\n"
        return b"".join((method, b" ", self._prefix, path, self._fixed, block, tail))

    def _reuse(self) -> Connection | None:
        """The connection that rested last, if it has not rested too long; those below it rested longer."""
        idle = self._idle
        if idle:
            connection = idle.pop()
            if connection.loop.time() - connection.since < self._timeouts.keepalive:
                return connection
            idle.append(connection)
            self._expire(connection.loop.time())
        return None

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        connection = Connection(self.name, self._timeouts, self._at_rest, self._lost)
        try:
            async with asyncio.timeout(self._timeouts.connect):
                await self._open(loop, connection)
        except OSError as error:  # every row of the table is one
            raise self._unavailable(next(text for kind, text in _UNAVAILABLE if isinstance(error, kind))) from error
        if self._closed:
            connection.transport.abort()
            raise self._unavailable("the gateway is shutting down")
        if connection.gone:
            raise UpstreamReset(f"engine {self.name} closed the connection before it answered")
        self._live.add(connection)
        if self._timer is None:
            self._timer = loop.call_later(self._tick, self._sweep)
        return connection

    async def _open(self, loop: asyncio.AbstractEventLoop, connection: Connection) -> None:
        """To the first address that answers. The lookup is awaited by itself: within `create_connection` one that is
        given up goes on, and complains of nobody hearing its end.
        """
        found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        name = None if self._tls is None else self._host
        for left, (*_, address) in zip(range(len(found) - 1, -1, -1), found, strict=True):
            try:
                await loop.create_connection(
                    lambda: connection, str(address[0]), self._port, ssl=self._tls, server_hostname=name
                )
            except OSError:
                if not left:
                    raise
            else:
                return

    def _unavailable(self, reason: str) -> UpstreamUnavailable:
        # Spread, so that the clients of a restarting engine do not all come back in the same second.
        wait = random.randint(1, 5)  # noqa: S311 - not a secret
        return UpstreamUnavailable(f"engine {self.name}: {reason}", retry_after=wait)

    def _at_rest(self, connection: Connection) -> None:
        if self._closed or len(self._idle) >= self._max_idle:
            connection.transport.abort()
        else:
            self._idle.append(connection)

    def _lost(self, connection: Connection) -> None:
        self._live.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if self._emptied is not None and not self._live and not self._emptied.done():
            self._emptied.set_result(None)

    def _expire(self, now: float) -> None:
        idle = self._idle
        while idle and now - idle[0].since >= self._timeouts.keepalive:
            idle.pop(0).transport.abort()

    def _sweep(self) -> None:
        """One clock for all: deadlines of exchanges and of rest. Runs only while there are connections."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._expire(now)
        for connection in self._live:
            connection.check(now)
        self._timer = loop.call_later(self._tick, self._sweep) if self._live else None


def _split(base_url: str) -> tuple[str, int, bytes, bytes, bool]:
    """Host, port, path prefix, Host header, TLS or not."""
    try:
        parts = urlsplit(base_url)
        host, port = parts.hostname or "", parts.port
        host.encode("idna")  # what the lookup would do, and fail at, later
    except ValueError as error:
        raise ValueError(f"the upstream URL cannot be used: {error}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError("the upstream URL must be http://host[:port][/prefix] or https://...")
    if "@" in parts.netloc or parts.query or parts.fragment or not re.fullmatch("[!-~]+", base_url):
        raise ValueError(
            "the upstream URL must be ASCII without spaces, user, query or fragment; a key has its own setting"
        )
    secure = parts.scheme == "https"
    return host, port or (443 if secure else 80), parts.path.rstrip("/").encode(), parts.netloc.encode(), secure


def _authorization(api_key: str | None) -> bytes:
    if not api_key:
        return b""
    if not (api_key.isascii() and api_key.isprintable()) or " " in api_key:
        raise ValueError("the upstream API key must be ASCII without spaces or control characters")
    return b"Authorization: Bearer " + api_key.encode() + b"\r\n"


def _broken(headers: Sequence[tuple[bytes, bytes]]) -> str:
    """The name of the first header that holds a line break or NUL, itself made harmless."""
    name = next(n for n, v in headers if re.search(rb"[\r\n\0]", n + v))
    return re.sub(r"[^!-~]", "?", name.decode("latin-1"))
