"""Running the gateway: uvicorn with uvloop and httptools, tuned for many small writes, and how it ends.

From SIGTERM on nothing new is taken: /readyz says so, and whoever asks for a generation gets a 503 and the end of the
connection, but an answer: the sockets listen until the last reply under way is complete, or the time for it is up. Then
what is left is told so, in the middle of its stream, and the log is written. Knows sockets, signals and the garbage
collector; nothing about requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final, cast

import uvicorn

from gateway.serving.accepting import Acceptor
from gateway.serving.front import Front
from gateway.serving.timing import Deadlines
from gateway.serving.wire import Protocol
from gateway.settings import Settings

BACKLOG: Final = 2048
_LAST_WORDS: Final = 2.0  # seconds for replies that were cut short to reach their clients
_LINGER: Final = 0.1  # seconds from the last connection to the end of all
_LOOK: Final = 0.05  # seconds between two looks whether somebody is in a hurry
_SWITCH_INTERVAL: Final = 0.001  # seconds that the log's threads may keep the interpreter while a token waits
_GC_THRESHOLD: Final = 50_000  # the objects of a request die by reference count: young collections find nothing


class Server(uvicorn.Server):
    """Says when it is listening, and flips readiness as soon as it is told to stop."""

    def __init__(
        self, config: uvicorn.Config, front: Front, started: Callable[[], None], acceptor: Acceptor | None = None
    ) -> None:
        """`acceptor` takes the connections in the place of the event loop's own way."""
        super().__init__(config)
        self._front, self._listening, self._acceptor = front, started, acceptor

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._acceptor is None:
            await super().startup(sockets)
        else:
            await super().startup([])
            self._acceptor.start(sockets or [], self._protocol, lambda: len(self.server_state.connections), BACKLOG)
        if self.started:
            _more_files()
            gc.collect()
            gc.freeze()
            gc.set_threshold(_GC_THRESHOLD, 20, 100)
            sys.setswitchinterval(_SWITCH_INTERVAL)
            self._listening()

    def _protocol(self) -> asyncio.Protocol:
        make = cast(Callable[..., asyncio.Protocol], self.config.http_protocol_class)
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    async def on_tick(self, counter: int) -> bool:
        """uvicorn's own tick, ten times a second; every fifth looks at the deadlines of all connections."""
        if counter % 5 == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                cast(Protocol, connection).check(now)
        if self._acceptor is not None:
            self._acceptor.show()
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The loop's own handlers, so that stopping is an ordinary return: uvicorn would raise the signal again and
        end the process before anything after it has run.
        """
        loop = asyncio.get_running_loop()
        stops = (signal.SIGINT, signal.SIGTERM)
        for number in stops:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in stops:
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_IGN)  # what is left is short, and must not be cut off

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal stops in order, a second SIGINT at once."""
        self._front.state.draining = True
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._drain()
        if self._acceptor is not None:
            self._acceptor.stop()
        for server in self.servers:
            server.close()
        await asyncio.sleep(_LINGER)  # whoever was accepted in the last moment has an answer too
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn leaves it out then; the log is written all the same
            await self.lifespan.shutdown()

    async def _drain(self) -> None:
        """Wait for what is under way now; what comes later is refused at once, so it needs no waiting for."""
        under_way = set(self.server_state.tasks)
        end = asyncio.get_running_loop().time() + self._front.state.settings.shutdown_timeout
        while under_way and not self.force_exit and (left := end - asyncio.get_running_loop().time()) > 0:
            _, under_way = await asyncio.wait(under_way, timeout=min(left, _LOOK))
        if under_way:
            logging.getLogger("tempera").warning("%d requests were cut short by the shutdown", len(under_way))
            await asyncio.gather(*(pool.close() for pool in self._front.state.pools.values()))
            await asyncio.wait(under_way, timeout=_LAST_WORDS)


def hold_hangups() -> None:
    """Until somebody watches for it, SIGHUP asks for nothing, and must not end the process. No child inherits this."""
    signal.signal(signal.SIGHUP, lambda number, frame: None)


def _more_files() -> None:
    """As many open files as this process may have: a stream takes two, and most systems begin with 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def bind(settings: Settings) -> list[socket.socket]:
    """Sockets bound to every address of the host, not listening yet. Raises ValueError when one is taken."""
    bound: list[socket.socket] = []
    port = settings.port
    try:
        infos = socket.getaddrinfo(settings.host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(infos):
            sock = socket.socket(family, kind, protocol)
            bound.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address[0], port, *address[2:]))
            port = sock.getsockname()[1]  # of a free port that was asked for, the same on every address
    except OSError as error:
        for sock in bound:
            sock.close()
        raise ValueError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}") from None
    return bound


def make_server(front: Front, started: Callable[[], None], acceptor: Acceptor | None = None) -> Server:
    """A server that is not running yet; `await server.serve(sockets)` runs it until a signal."""
    settings = front.state.settings
    deadlines = Deadlines(read=settings.read_timeout, write=settings.write_timeout)
    config = uvicorn.Config(
        front,
        loop="uvloop",
        http=functools.partial(Protocol, deadlines=deadlines),  # type: ignore[arg-type]
        ws="none",
        interface="asgi3",  # what is compiled does not look like a coroutine function
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=2,  # for the last bytes of replies that are complete; the waiting was done before
    )
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    return Server(config, front, started, acceptor)
