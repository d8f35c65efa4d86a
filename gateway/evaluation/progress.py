"""A line of progress with what is left to wait for, measured from the work itself.

Knows counts and a clock that it is handed. Does NOT know what is counted, nor where the line goes.
"""

from __future__ import annotations

from collections.abc import Callable

Say = Callable[[str], None]
EVERY = 2.0  # seconds between lines


class Progress:
    """`total` samples, `before` of them from an earlier run. `clock` counts seconds."""

    def __init__(self, total: int, before: int, say: Say, clock: Callable[[], float]) -> None:
        self._total, self._before, self._say, self._clock = total, before, say, clock
        self._start = self._last = clock()
        self.done = self.tokens = 0

    def add(self, samples: int, tokens: int) -> None:
        """Count finished samples, and say so at most every EVERY seconds, and at the end."""
        self.done += samples
        self.tokens += tokens
        now = self._clock()
        if now - self._last >= EVERY or not self.left:
            self._last = now
            self._say(self.line())

    @property
    def left(self) -> int:
        """Samples still to be made."""
        return self._total - self._before - self.done

    def line(self) -> str:
        """`120 of 480 samples (25%), 52 tokens/s, 6m10s to go`; the pace is that of this run alone."""
        done = self._before + self.done
        share = f"{done} of {self._total} samples ({done / max(self._total, 1):.0%})"
        if not self.done:
            return share
        seconds = max(self._clock() - self._start, 1e-9)
        return f"{share}, {self.tokens / seconds:.0f} tokens/s, {duration(self.left * seconds / self.done)} to go"


def duration(seconds: float) -> str:
    """`45s`, `6m10s`, `2h05m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02}m"
