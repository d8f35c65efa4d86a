"""The engine of the soak, as a process that can be killed: python -m benchmarks.soak_engine PORT LOW HIGH.

The tests' fake engine with vLLM's replies. Every reply has the same words, the first after a random while, then one
every so many milliseconds: drawn anew each second between LOW and HIGH, for all streams, as a real engine's step is.
Remembers nothing, so that it can run for hours.
"""

from __future__ import annotations

import asyncio
import random
import sys

from tests import fakes, vllm_shapes

TOKENS = 64  # of one reply
FIRST = (0.05, 0.4)  # seconds to the first token
_TEXT = " ".join(f"word{number:02}" for number in range(TOKENS + 16))


class Engine(fakes.FakeEngine):
    def note(self, seen: fakes.Seen) -> fakes.Fault:
        generating = seen.path in vllm_shapes.GENERATION
        return fakes.Fault(delay=random.uniform(*FIRST)) if generating else fakes.Fault()

    def answer(self, seen: fakes.Seen) -> fakes.Reply:
        self._stored.clear()
        return super().answer(seen)


async def main(port: int, low: float, high: float) -> None:
    async with Engine(text=_TEXT, port=port) as engine:
        while True:
            engine.pace = random.uniform(low, high) / 1000
            await asyncio.sleep(1)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])))
