"""The fuzz targets: for each a check that raises on a fault, where the search begins, and what it should try.

Importing this module imports the gateway; `one.py` does that under instrumentation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import bodies, replies, requests, rows, streams

FOUND = Path(__file__).parent / "found"  # inputs that were a finding once, by target; the suite replays them


@dataclass(frozen=True)
class Target:
    about: str
    check: Callable[[bytes], None]
    head: int  # bytes before the input proper; shorter inputs are not tried
    seeds: Callable[[], list[bytes]]
    words: list[str]
    mutate: Callable[[bytes, int], bytes | None] | None = None


TARGETS = {
    "bodies": Target("request bodies: parse and plan", bodies.check, 2, bodies.seeds, bodies.WORDS, bodies.mutate),
    "streams": Target("event streams: Splitter, Gate, assemble", streams.check, 5, streams.seeds, streams.WORDS),
    "replies": Target("the engine's HTTP: Connection, Reply", replies.check, 5, replies.seeds, replies.WORDS),
    "requests": Target("a client's HTTP: Protocol, Cycle", requests.check, 5, requests.seeds, requests.WORDS),
    "rows": Target("the log's reading: digest", rows.check, 3, rows.seeds, rows.WORDS),
}


def found(name: str) -> list[Path]:
    """Stored findings of a target."""
    return sorted(path for path in (FOUND / name).glob("*") if path.is_file())
