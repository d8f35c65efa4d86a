"""How many requests are under way at once, whoever sends them: a bounded number of places and a bounded queue.

First come, first served: a place that falls free goes to whoever waited longest. Knows nothing about keys or requests.
"""

from __future__ import annotations

import asyncio
from collections import deque

from gateway.protocol.errors import RateLimited


class Gate:
    """`places` requests at once; `queue` more wait for one, each for `patience` seconds at most."""

    def __init__(self, places: int, queue: int, patience: float) -> None:
        self.places, self._queue, self._patience = places, queue, patience
        self._free = places
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def in_flight(self) -> int:
        """Places taken now."""
        return self.places - self._free

    @property
    def waiting(self) -> int:
        """Requests in the queue now."""
        return len(self._waiting)

    async def enter(self) -> None:
        """Take a place, if need be when one falls free. Every return is paid back by one `leave`.

        Raises RateLimited (`too_many_requests`) when the queue is full or the wait was too long.
        """
        if self._free:  # nobody waits then: a place that falls free is handed on, not put back
            self._free -= 1
            return
        if len(self._waiting) >= self._queue:
            raise self._refusal("its queue is full")
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            async with asyncio.timeout(self._patience):
                await place
        except (TimeoutError, asyncio.CancelledError) as error:
            if place.done() and not place.cancelled():
                self.leave()  # it was handed over in the very moment that the wait ended
            elif place in self._waiting:
                self._waiting.remove(place)
            if isinstance(error, TimeoutError):
                raise self._refusal(f"none ended within {self._patience:g} s") from None
            raise

    def leave(self, _: object = None) -> None:
        """Give the place back, or rather on. Who had it does not matter."""
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                return
        self._free += 1

    def _refusal(self, why: str) -> RateLimited:
        # By then whoever waits now was served or refused.
        return RateLimited(
            f"The gateway has {self.places} requests in flight, as many as it may, and {why}. Please try again later.",
            code="too_many_requests",
            retry_after=self._patience,
        )
