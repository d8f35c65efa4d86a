"""Running the gateway: uvicorn with uvloop and httptools, tuned for many small writes.

Knows sockets, signals and the garbage collector; nothing about requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import math
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final, cast

import uvicorn

from gateway.serving.app import Front
from gateway.serving.wire import Deadlines, Protocol
from gateway.settings import Settings

_SWITCH_INTERVAL: Final = 0.001  # seconds that the log's threads may keep the interpreter while a token waits
_GC_THRESHOLD: Final = 50_000  # the objects of a request die by reference count: young collections find nothing


class Server(uvicorn.Server):
    """Says when it is listening, and flips readiness as soon as it is told to stop."""

    def __init__(self, config: uvicorn.Config, front: Front, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._front, self._listening = front, started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            gc.collect()
            gc.freeze()
            gc.set_threshold(_GC_THRESHOLD, 20, 100)
            sys.setswitchinterval(_SWITCH_INTERVAL)
            self._listening()

    async def on_tick(self, counter: int) -> bool:
        """uvicorn's own tick, ten times a second; every fifth looks at the deadlines of all connections."""
        if counter % 5 == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                cast(Protocol, connection).check(now)
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

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._front.state.draining = True
        super().handle_exit(sig, frame)


def make_server(front: Front, settings: Settings, started: Callable[[], None]) -> Server:
    """A server that is not running yet; `await server.serve()` runs it until a signal."""
    deadlines = Deadlines(read=settings.read_timeout, write=settings.write_timeout)
    config = uvicorn.Config(
        front,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=functools.partial(Protocol, deadlines=deadlines),  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=math.ceil(settings.shutdown_timeout),
    )
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    return Server(config, front, started)
