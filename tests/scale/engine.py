"""A fake engine as a process of its own, so that it can be killed.

    python -m tests.scale.engine PORT NAME JOURNAL KEY

Its replies name it. The journal gets a line the moment a generation request arrives (`+`, its request id, its
session), and one when it is answered in full (`=`) or left (`x`): what was in flight when it died can be counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from tests import fakes, vllm_shapes


@dataclass
class Engine(fakes.FakeEngine):
    journal: FileIO | None = None  # unbuffered: what is written survives a SIGKILL

    def write(self, mark: str, seen: fakes.Seen) -> None:
        if self.journal is not None and seen.path in vllm_shapes.GENERATION:
            said = (mark, seen.header("x-request-id") or "-", seen.header("x-session-id") or "-")
            self.journal.write(" ".join(said).encode() + b"\n")

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), "127.0.0.1", self.port)


class Connection(fakes.Connection):
    engine: Engine

    async def reply(self, seen: fakes.Seen, fault: fakes.Fault) -> None:
        self.engine.write("+", seen)
        try:
            await super().reply(seen, fault)
        finally:
            self.engine.write("=" if seen.complete else "x", seen)


async def main(port: int, name: str, journal: Path, key: str) -> None:
    words = " ".join([name] * 40)
    with journal.open("ab", buffering=0) as file:
        async with Engine(text=words, pace=0.02, port=port, api_key=key, journal=file):
            await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4]))
