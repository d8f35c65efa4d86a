"""Taking connections from sockets that several workers listen on, evenly.

A new connection wakes every worker, and left to themselves the first one takes all of a burst: 60 of 60 where three
were waiting. So each shows how many it has, in memory that all map, and one that has clearly more than another stands
back for a moment before it takes the next. A moment only: who is busy, stopped or dead never keeps anybody waiting.
Knows sockets and numbers; nothing about requests.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import socket
from collections.abc import Callable
from typing import Final

from gateway.serving.shared_limits import anonymous

MOST: Final = 64  # workers
_ABSENT: Final = 2**31 - 1
_MOMENT: Final = 0.001  # seconds
_LONG: Final = 0.5  # seconds without trying, when it cannot be done
_SLACK: Final = 4  # connections that one may have more than another, and an eighth of what that one has


class Counts:
    """How many connections each worker has. `descriptor` is that of `create`."""

    def __init__(self, descriptor: int) -> None:
        self._numbers = memoryview(mmap.mmap(descriptor, 4 * MOST)).cast("i")

    def show(self, worker: int, connections: int | None) -> None:
        """`worker` in [1, MOST] has so many; None: it is not there."""
        self._numbers[worker - 1] = _ABSENT if connections is None else connections

    def fewest(self) -> int:
        """Of any worker's."""
        return min(self._numbers)


def create() -> int:
    """A descriptor of the numbers of nobody, to be inherited."""
    descriptor = anonymous("tempera-connections", 4 * MOST)
    counts = Counts(descriptor)
    for worker in range(1, MOST + 1):
        counts.show(worker, None)
    return descriptor


class Acceptor:
    """One worker's."""

    def __init__(self, counts: Counts, worker: int) -> None:
        self._counts, self._worker = counts, worker
        self._sockets: list[socket.socket] = []
        self._opening: set[asyncio.Task[object]] = set()
        self._back: dict[socket.socket, asyncio.TimerHandle] = {}

    def start(
        self, sockets: list[socket.socket], make: Callable[[], asyncio.Protocol], mine: Callable[[], int], backlog: int
    ) -> None:
        """Listen on sockets that are bound, and accept from now on.

        `make` makes the protocol of a connection, `mine` says how many there are now.
        """
        self._loop = asyncio.get_running_loop()
        self._make, self._mine, self._sockets = make, mine, sockets
        self.show()
        for sock in sockets:
            sock.setblocking(False)
            sock.listen(backlog)
            self._watch(sock)

    def show(self) -> None:
        """Say how many there are; to be called now and then, for those that have gone."""
        self._counts.show(self._worker, self._mine() + len(self._opening))

    def stop(self) -> None:
        """Accept no more; the sockets are the caller's to close."""
        for sock in self._sockets:
            self._loop.remove_reader(sock)
        for timer in self._back.values():
            timer.cancel()
        self._sockets = []

    def _watch(self, sock: socket.socket) -> None:
        self._loop.add_reader(sock, self._readable, sock)

    def _readable(self, sock: socket.socket) -> None:
        self.show()
        fewest = self._counts.fewest()
        if self._mine() + len(self._opening) > fewest + _SLACK + fewest // 8:
            self._stand_back(sock, _MOMENT)
        else:
            self._accept(sock)

    def _stand_back(self, sock: socket.socket, seconds: float) -> None:
        self._loop.remove_reader(sock)
        self._back[sock] = self._loop.call_later(seconds, self._return, sock)

    def _return(self, sock: socket.socket) -> None:
        self._watch(sock)
        self._accept(sock)  # if nobody else has

    def _accept(self, sock: socket.socket) -> None:
        try:
            connection, _ = sock.accept()
        except (BlockingIOError, ConnectionAbortedError):  # another worker has it, or its client is gone
            return
        except OSError as error:  # no descriptor or no memory left
            logging.getLogger("tempera").error("no connection can be accepted: %s", error.strerror)
            self._stand_back(sock, _LONG)
            return
        connection.setblocking(False)
        opening = self._loop.create_task(self._loop.connect_accepted_socket(self._make, connection))
        self._opening.add(opening)
        opening.add_done_callback(self._opening.discard)
