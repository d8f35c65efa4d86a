"""Which ledger holds keys to their limits: this machine's, or the one that replicas share.

With a shared store the limits hold across replicas; while it is away each replica holds them by itself (never an error
or a long wait for a client), which is logged once and said in /readyz.

Knows ledgers and when to doubt one; what a request takes is in stay.py.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from gateway.serving.ledger import Ledger, OwnLedger, Taken, Want

if TYPE_CHECKING:
    from gateway.serving.shared import SharedLedger
    from gateway.serving.stay import Stay

PATIENCE: Final = 0.25  # seconds that a request waits for the shared ledger, at most
_TIMEOUT: Final = 2.0  # seconds for what nobody waits for
_LOOK: Final = 1.0  # seconds between looks at a ledger that is away
_log = logging.getLogger("tempera.limits")


class Limiter:
    """Counts for all keys of this process, or of all workers that share `here`. `url` of a store that replicas share;
    `lease` in seconds.

    Raises ValueError for a URL that cannot be used.
    """

    def __init__(
        self,
        url: str | None = None,
        lease: float = 60.0,
        clock: Callable[[], float] = time.time,
        here: Ledger | None = None,
    ) -> None:
        self.here: Ledger = OwnLedger() if here is None else here
        self.shared = None if url is None else _open(url, lease)
        self._faults = () if self.shared is None else self.shared.faults
        self._lease, self.clock = lease, clock
        self._doubt: Exception | None = None  # why the shared ledger is not asked until it has answered a ping
        self._look = asyncio.Event()
        self._later: set[asyncio.Task[None]] = set()
        self.trouble: str | None = None  # why the limits hold for this process only
        self.alone = 0  # requests counted here although there is a shared ledger

    async def take(self, stay: Stay) -> Taken:
        """Ask the shared ledger or, while it is away, this machine's."""
        if self.shared is not None:
            if self._doubt is None:
                stay.shared = True
                try:
                    async with asyncio.timeout(PATIENCE):
                        return await self.shared.take(stay.want)
                except self._faults as error:
                    self.shared.end(stay.want)  # it may have been taken all the same
                    self._suspect(error)
                stay.shared = False
            self.alone += 1
        return self.here.take(stay.want)

    def leave(self, stay: Stay, more: int) -> None:
        """A request that took something is over; `more` tokens than it took were used."""
        if not stay.shared:
            self.here.end(stay.want)
            self.here.settle(stay.want, more, self.clock())
        elif self.shared is not None and (self.shared.end(stay.want) or more):
            task = asyncio.get_running_loop().create_task(self._settle(self.shared, stay.want, more))
            self._later.add(task)
            task.add_done_callback(self._later.discard)

    async def _settle(self, shared: SharedLedger, want: Want, more: int) -> None:
        try:
            async with asyncio.timeout(_TIMEOUT):
                await shared.settle(want, more, self.clock())
        except self._faults as error:
            self._suspect(error)

    async def watch(self) -> None:
        """Renew leases and look for a ledger that is away; for as long as the gateway runs."""
        held = time.monotonic()
        while self.shared is not None:
            try:
                async with asyncio.timeout(min(_LOOK, self._lease / 3)):
                    await self._look.wait()
            except TimeoutError:
                pass
            now = time.monotonic()
            if self._doubt is not None or now - held > self._lease / 3:
                held = now
                await self._tend(self.shared)
                self._look.clear()

    async def _tend(self, shared: SharedLedger) -> None:
        try:
            async with asyncio.timeout(_TIMEOUT):
                await shared.ping()
                await shared.hold()
        except self._faults as error:
            self._doubt = error
            if self.trouble is None:
                self.trouble = f"held by each replica alone: the shared store is away ({type(error).__name__})"
                _log.error("limits are %s: %s", self.trouble, error)
        else:
            self._doubt = None
            if self.trouble is not None:
                self.trouble = None
                _log.warning("the shared store for limits is back")

    def _suspect(self, error: Exception) -> None:
        """It was us, or it is away: go on alone, and look at once. A rush that makes us slow is not said anywhere."""
        if self._doubt is None:
            self._doubt = error
            self._look.set()

    async def close(self) -> None:
        """Finish what was left for later, and hang up."""
        await asyncio.gather(*self._later)
        if self.shared is not None:
            await self.shared.close()


def _open(url: str, lease: float) -> SharedLedger:
    from gateway.serving.shared import SharedLedger  # here: 2 MB that only a shared store needs

    return SharedLedger(url, lease, _TIMEOUT)
