"""One of several workers: the same server as a gateway that is alone, on sockets that its supervisor has bound.

Learns from the channel what it is, and says there when it listens, what it has counted and which presets it took up. A
supervisor that is gone is SIGTERM. Knows nothing of the other workers.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable
from typing import Final

import uvloop
from prometheus_client import CollectorRegistry

from gateway.policy.config import Config, load
from gateway.protocol.errors import Internal
from gateway.serving import logs
from gateway.serving.accepting import Acceptor, Counts
from gateway.serving.app import Shared, create_app
from gateway.serving.channel import (
    Adopted,
    Ask,
    Begin,
    Channel,
    Message,
    Numbers,
    Ready,
    Tell,
    Whole,
    receive,
    settings_in,
)
from gateway.serving.front import Front
from gateway.serving.gathering import page_of
from gateway.serving.server import Server, hold_hangups, make_server
from gateway.serving.shared_limits import CommonLedger, Table
from gateway.settings import Settings

_PATIENCE: Final = 5.0  # seconds for the supervisor to answer


def work(descriptor: int, degenerate: Callable[[str], bool]) -> int:
    """Run until told to stop; the exit code. `descriptor` is the worker's side of the channel."""
    hold_hangups()
    sock = socket.socket(fileno=descriptor)
    try:
        begin = receive(sock)
        assert isinstance(begin, Begin)
        settings = settings_in(begin.settings)
        logs.set_up(settings)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_Worker(begin, settings).run(sock, degenerate))
    except EOFError:
        return 1
    except ValueError as error:
        print(f"tempera: {error}", file=sys.stderr)
        return 1


class _Worker:
    def __init__(self, begin: Begin, settings: Settings) -> None:
        self._begin, self._settings = begin, settings
        self._front: Front | None = None
        self._server: Server | None = None
        self._asked: deque[asyncio.Future[bytes]] = deque()

    async def run(self, sock: socket.socket, degenerate: Callable[[str], bool]) -> int:
        begin, settings = self._begin, self._settings
        self._channel = Channel(self._hear, self._orphaned)
        await self._channel.open(sock)
        config = load(begin.text, begin.prompts.__getitem__)
        self._front = create_app(settings, config, degenerate, self._shared())
        if begin.closed:
            self._front.state.access.close()
        self._server = server = make_server(
            self._front, lambda: self._channel.send(Ready()), Acceptor(Counts(begin.counts), begin.number)
        )
        await server.serve([socket.socket(fileno=listener) for listener in begin.listeners])
        self._tell(self._front)
        await self._channel.close()
        return 0 if server.started else 1

    def _shared(self) -> Shared:
        table, begin = Table(self._begin.limits), self._begin
        ledger = CommonLedger(table, begin.number, self._settings.workers)
        return Shared(self._whole, self._adopted, ledger)

    def _tell(self, front: Front) -> None:
        self._channel.send(Numbers(page_of(front.metrics.registry), not front.state.access.open))

    def _hear(self, message: Message) -> None:
        if isinstance(message, Tell) and self._front is not None:
            self._tell(self._front)
        elif isinstance(message, Whole) and not (asked := self._asked.popleft()).done():
            asked.set_result(message.text)

    def _orphaned(self) -> None:
        if self._server is not None and not self._server.should_exit:
            self._server.handle_exit(signal.SIGTERM, None)

    async def _whole(self, registry: CollectorRegistry) -> bytes:
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._asked.append(answer)
        self._channel.send(Ask(page_of(registry)))
        try:
            return await asyncio.wait_for(answer, _PATIENCE)
        except TimeoutError:
            raise Internal("The supervisor of the workers does not answer.") from None

    def _adopted(self, config: Config) -> None:
        self._channel.send(Adopted(config.text, dict(config.prompts)))
