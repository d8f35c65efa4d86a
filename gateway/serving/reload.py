"""Reading presets.yaml again when it, or a prompt it names, changes, and on SIGHUP.

A good file replaces the config in one assignment; requests under way keep the one they began with. A broken file
changes nothing and is said in the log, in a metric and in /readyz. Looks at the files' times once a second, because
that works on every file system and in every container; knows nothing about what is in them.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final

from gateway.policy.config import BadConfig, Config
from gateway.serving.keeping import snapshot
from gateway.serving.metrics import Metrics
from gateway.serving.state import State

INTERVAL: Final = 1.0  # seconds
_log = logging.getLogger("tempera.reload")
Stamp = tuple[tuple[int, int] | None, ...]


class Reload:
    """Watches one presets file for one State. `read` makes a Config of the path or raises OSError or BadConfig."""

    def __init__(self, state: State, path: Path, read: Callable[[Path], Config], metrics: Metrics) -> None:
        self._state, self._path, self._read, self._metrics = state, path, read, metrics
        self._seen = self._stamp()
        self._asked = asyncio.Event()

    async def watch(self) -> None:
        """Runs for as long as the gateway does."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._asked.set)
        try:
            while True:
                try:
                    async with asyncio.timeout(INTERVAL):
                        await self._asked.wait()
                except TimeoutError:
                    pass
                self._state.access.refresh()
                stamp = await asyncio.to_thread(self._stamp)
                if self._asked.is_set() or stamp != self._seen:
                    self._asked.clear()
                    self._seen = stamp
                    await self.now()
        finally:
            loop.remove_signal_handler(signal.SIGHUP)

    async def now(self) -> bool:
        """Read the file; whether its config is in force."""
        state = self._state
        try:
            config = await asyncio.to_thread(self._read, self._path)
            if config.upstreams != state.config.upstreams:
                raise OSError("the upstreams changed, which needs a restart")
        except (BadConfig, OSError, UnicodeDecodeError) as error:
            state.trouble = f"revision {state.config.revision} stays in force; {self._path} was refused: {error}"
            self._metrics.reloads.labels("refused").inc()
            _log.error("%s", state.trouble)
            return False
        changed = config.revision != state.config.revision
        state.config, state.trouble = config, None
        self._seen = self._stamp()
        self._metrics.reloads.labels("ok").inc()
        if changed:
            snapshot(state.log, config)
            _log.info("presets revision %s is in force", config.revision)
        return True

    def _stamp(self) -> Stamp:
        """Time and size of every file the config was made from; None for one that is missing."""
        folder = self._path.resolve().parent
        return tuple(_look(path) for path in (self._path, *(folder / name for name in self._state.config.prompts)))


def _look(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
