"""Several workers behind one port: starts them, keeps their number, passes signals on, and waits for their end.

Every worker accepts from the same listening sockets, which this process holds open and never accepts from: a worker's
death closes no port, and what waits to be accepted waits for the next one. (A socket per worker with SO_REUSEPORT would
spread connections by a hash, but lose those that wait at a dying worker's.) Knows processes and signals;
nothing about requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Final

from gateway.policy.config import Config
from gateway.serving import accepting, gathering, shared_limits
from gateway.serving.channel import Adopted, Ask, Begin, Channel, Message, Numbers, Ready, Tell, Whole, settings_out
from gateway.serving.gathering import Family, Page
from gateway.settings import Settings

TELL_EVERY: Final = 1.0  # seconds between two readings of a worker's numbers: what a kill -9 can cost them
_ANSWER: Final = 1.0  # seconds for a worker to say its numbers; after that, those it said last have to do
_FIRST_DELAY: Final = 0.1  # seconds before a dead worker is replaced, doubled with each death
_LONGEST_DELAY: Final = 30.0
_STEADY: Final = 60.0  # seconds of life after which a death counts as the first again
_GRACE: Final = 20.0  # seconds beyond the shutdown timeout, to write the log, before a worker is killed
_log = logging.getLogger("tempera.workers")


class Seat:
    """One place among the workers, and who has it now."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: Process | None = None
        self.channel: Channel | None = None
        self.ready = asyncio.Event()
        self.page: Page = []  # what the worker that has it said last
        self.waiting: list[asyncio.Future[None]] = []  # for what it says next

    def signal(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)

    def tell(self) -> asyncio.Future[None]:
        """Ask for its numbers; done when they are here, or it is gone."""
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.channel is None:
            told.set_result(None)
        else:
            self.waiting.append(told)
            self.channel.send(Tell())
        return told

    def told(self) -> None:
        for waiter in self.waiting:
            if not waiter.done():
                waiter.set_result(None)
        self.waiting.clear()


class Crew:
    """The workers. `command` starts one, when a file descriptor is added to it; `sockets` are bound."""

    def __init__(
        self, command: Iterable[str], settings: Settings, config: Config, sockets: list[socket.socket]
    ) -> None:
        self._command, self._settings, self._sockets = tuple(command), settings, sockets
        self._presets = Adopted(config.text, dict(config.prompts))  # in force, as the workers last said
        self._seats = [Seat(number) for number in range(1, settings.workers + 1)]
        self._limits = shared_limits.create()
        self._connections = accepting.create()
        self._counts = accepting.Counts(self._connections)
        self._table = shared_limits.Table(self._limits)
        self._closed = False  # as the workers last said
        self._past: Page = []  # what workers that are gone had counted
        self._restarts = 0
        self._stopping = asyncio.Event()
        self._code = 0
        self._answers: set[asyncio.Task[None]] = set()

    async def run(self, ready: Callable[[], Awaitable[None]]) -> int:
        """Until a signal; the exit code: 1 when the first worker cannot start or one does not end in order.

        The first worker is up before the others are started, so that what is wrong is said once, and the log's tables
        are made once. `ready` is called when all are up.
        """
        with self._signals():
            keeping = [asyncio.create_task(self._keep(self._seats[0]))]
            await self._until_ready(self._seats[:1])
            if not self._stopping.is_set():
                keeping += [asyncio.create_task(self._keep(seat)) for seat in self._seats[1:]]
                await self._until_ready(self._seats)
            if not self._stopping.is_set():
                await ready()
            telling = asyncio.create_task(self._tell_always())
            await asyncio.gather(*keeping)
            telling.cancel()
        return self._code

    async def _until_ready(self, seats: list[Seat]) -> None:
        async def all_up() -> None:
            for seat in seats:
                await seat.ready.wait()

        waiting = [asyncio.create_task(all_up()), asyncio.create_task(self._stopping.wait())]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        handled = {
            signal.SIGHUP: self._reload,
            signal.SIGTERM: lambda: self._stop(signal.SIGTERM),
            signal.SIGINT: lambda: self._stop(signal.SIGINT if self._stopping.is_set() else signal.SIGTERM),
        }
        for number, act in handled.items():
            loop.add_signal_handler(number, act)
        try:
            yield
        finally:
            for number in handled:
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_IGN)  # what is left is short, and must not be cut off

    def _reload(self) -> None:
        for seat in self._seats:
            if seat.ready.is_set():  # one that is not up yet will read what is there, and would die of it
                seat.signal(signal.SIGHUP)

    def _stop(self, number: signal.Signals) -> None:
        self._stopping.set()
        for seat in self._seats:
            seat.signal(number)

    async def _keep(self, seat: Seat) -> None:
        """Whoever has this seat and dies is replaced."""
        loop, delay = asyncio.get_running_loop(), _FIRST_DELAY
        while not self._stopping.is_set():
            born = loop.time()
            code, was_ready = await self._life(seat)
            if self._stopping.is_set():
                if was_ready and code != 0:
                    _log.error("worker %d did not end in order: %s", seat.number, _how(code))
                    self._code = 1
            elif seat is self._seats[0] and not was_ready and not self._restarts:  # it has said why
                self._code = 1
                self._stop(signal.SIGTERM)
            else:
                delay = _FIRST_DELAY if loop.time() - born >= _STEADY else delay
                self._restarts += 1
                _log.error("worker %d ended (%s); another starts in %g s", seat.number, _how(code), delay)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), delay)
                delay = min(2 * delay, _LONGEST_DELAY)

    async def _life(self, seat: Seat) -> tuple[int, bool]:
        """One worker, from its start to its end: its exit code, and whether it ever took connections."""
        process, ours = await self._spawn(seat)
        seat.process, gone = process, asyncio.Event()
        seat.channel = Channel(lambda message: self._hear(seat, message), gone.set)
        await seat.channel.open(ours)
        seat.channel.send(self._begin(seat))
        code = await self._end_of(process)
        await gone.wait()  # everything it said has been heard
        self._counts.show(seat.number, None)
        shared_limits.end_leases(self._table, seat.number)
        was_ready = seat.ready.is_set()
        seat.ready.clear()
        self._past = gathering.lasting(self._past, seat.page)
        seat.page, seat.process, seat.channel = [], None, None
        seat.told()
        return code, was_ready

    async def _spawn(self, seat: Seat) -> tuple[Process, socket.socket]:
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(), self._limits, self._connections, *(sock.fileno() for sock in self._sockets)),
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for this process, which passes it on once
            )
        return process, ours

    def _begin(self, seat: Seat) -> Begin:
        return Begin(
            number=seat.number,
            settings=settings_out(self._settings),
            text=self._presets.text,
            prompts=dict(self._presets.prompts),
            listeners=[sock.fileno() for sock in self._sockets],
            limits=self._limits,
            counts=self._connections,
            closed=self._closed,
        )

    async def _end_of(self, process: Process) -> int:
        """Its exit code. Once all are to stop, it has the shutdown timeout and a grace."""
        ended = asyncio.create_task(process.wait())
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait((ended, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not ended.done():
            process.terminate()  # again, for one that had not started when the others were told
        done, _ = await asyncio.wait((ended,), timeout=self._settings.shutdown_timeout + _GRACE)
        if not done:
            process.kill()
        return await ended

    def _hear(self, seat: Seat, message: Message) -> None:
        match message:
            case Ready():
                seat.ready.set()
            case Adopted():
                self._presets = message
            case Numbers():
                seat.page, self._closed = message.page, self._closed or message.closed
                seat.told()
            case Ask():
                seat.page = message.page
                answer = asyncio.create_task(self._answer(seat))
                self._answers.add(answer)
                answer.add_done_callback(self._answers.discard)

    async def _answer(self, seat: Seat) -> None:
        others = [other.tell() for other in self._seats if other is not seat and other.ready.is_set()]
        if others:
            await asyncio.wait(others, timeout=_ANSWER)
        if seat.channel is not None:
            seat.channel.send(Whole(self._text()))

    def _text(self) -> bytes:
        pages = {str(seat.number): seat.page for seat in self._seats if seat.page}
        up = sum(seat.ready.is_set() for seat in self._seats)
        own = [
            Family("tempera_workers", "gauge", "Workers that take connections.", [("tempera_workers", (), up)]),
            Family(
                "tempera_worker_restarts",
                "counter",
                "Workers that died and were replaced.",
                [("tempera_worker_restarts_total", (), self._restarts)],
            ),
        ]
        return gathering.text([*gathering.total(self._past, pages), *own])

    async def _tell_always(self) -> None:
        while True:
            await asyncio.sleep(TELL_EVERY)
            for seat in self._seats:
                if seat.ready.is_set():
                    seat.tell()


def _how(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
