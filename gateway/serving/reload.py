"""Reading presets.yaml again when it, or a prompt it names, changes, and on SIGHUP; the keys file too.

A good file replaces the config in one assignment; requests under way keep the one they began with. A broken file
changes nothing and is said in the log, in a metric and in /readyz. Looks at the files' times twice a second, because
that works on every file system and in every container, and reads a file only once it has kept still for one look, so
that a file half written is left alone. Knows nothing about what is in them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final

from gateway.policy.config import BadConfig, Config
from gateway.serving.metrics import Metrics
from gateway.serving.state import State

INTERVAL: Final = 0.5  # seconds
Note = Callable[[str], object]
_log = logging.getLogger("tempera.reload")
Stamp = tuple[tuple[int, int, int] | None, ...]


class Reload:
    """Watches one presets file for one State.

    `read(path, note)` makes a Config of the path or raises OSError or BadConfig; it calls `note` with the name of every
    prompt it looks for. `adopted` is told of every new Config.
    """

    def __init__(
        self, state: State, path: Path, read: Callable[[Path, Note], Config], adopted: Callable[[Config], None]
    ) -> None:
        self._state, self._path, self._read, self._adopted = state, path, read, adopted
        self._named = set(state.config.prompts)  # prompts of the last reading, those that are missing included
        self._seen: Stamp = ()  # so that the first look reads: the file may have changed while the engine was started
        self._asked = asyncio.Event()

    async def watch(self, metrics: Metrics) -> None:
        """Runs for as long as the gateway does."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._asked.set)
        last = self._seen
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(INTERVAL):
                        await self._asked.wait()
                stamp, asked = await asyncio.to_thread(self._stamp), self._asked.is_set()
                self._state.access.refresh(at_once=asked)
                if asked or (stamp != self._seen and stamp == last):
                    self._asked.clear()
                    await self._now(metrics, counted=asked or bool(self._seen))
                last = stamp
        finally:
            loop.remove_signal_handler(signal.SIGHUP)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the log is being written: nothing to read again for

    async def _now(self, metrics: Metrics, counted: bool) -> None:
        """Read the file. `counted`: somebody asked, or it changed."""
        state, named = self._state, set[str]()
        self._seen = await asyncio.to_thread(self._stamp)
        try:
            config = await asyncio.to_thread(self._read, self._path, named.add)
            if config.upstreams != state.config.upstreams:
                raise OSError("the upstreams changed, which needs a restart")
        except (BadConfig, OSError, UnicodeDecodeError) as error:
            state.trouble = f"revision {state.config.revision} stays in force; {self._path} was refused: {error}"
            metrics.reloads.labels("refused").inc()
            _log.error("%s", state.trouble)
        else:
            changed = config.revision != state.config.revision
            state.config, state.trouble = config, None
            if counted or changed:
                metrics.reloads.labels("ok").inc()
            if changed:
                self._adopted(config)
                _log.info("presets revision %s is in force", config.revision)
        if named != self._named:
            self._named = named
            self._seen = (*self._seen[:1], *(await asyncio.to_thread(self._stamp))[1:])

    def _stamp(self) -> Stamp:
        """What tells a file from its next version, for each that the config is made from; None for a missing one."""
        folder = self._path.resolve().parent
        return tuple(_look(path) for path in (self._path, *(folder / name for name in sorted(self._named))))


def _look(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except (OSError, ValueError):  # ValueError: no name of a file, which the reading said already
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
