"""The interval of an experiment over time, as SVG: a band, the estimate, zero, and the zone where a difference is none.

Coordinates and colours only (by CSS classes, so that light and dark are the page's business). Knows no words.
"""

from __future__ import annotations

import math
from typing import Final

from gateway.log.finding import Point

_WIDTH: Final = 720
_HEIGHT: Final = 272
_LEFT: Final = 56
_RIGHT: Final = 12
_TOP: Final = 10
_BOTTOM: Final = 42


def draw(points: list[Point], equivalence: float, label: str, axis: str) -> str:
    """An SVG element for at least one point; `label` says what it is to those who cannot see it. Both are HTML."""
    reach = _reach(points)
    most = max(point.voters for point in points)

    def x(voters: float) -> float:
        return _LEFT + voters / most * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        inside = min(reach, max(-reach, value))
        return _TOP + (reach - inside) / (2 * reach) * (_HEIGHT - _TOP - _BOTTOM)

    upper = [f"{x(p.voters):.1f},{y(p.high):.1f}" for p in points]
    lower = [f"{x(p.voters):.1f},{y(p.low):.1f}" for p in reversed(points)]
    line = " ".join(f"{x(p.voters):.1f},{y(p.difference):.1f}" for p in points)
    zone = f'<rect class="zone" x="{_LEFT}" y="{y(equivalence):.1f}" width="{_WIDTH - _LEFT - _RIGHT}" '
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">',
        f'{zone}height="{y(-equivalence) - y(equivalence):.1f}"/>',
        *(_level(value, y(value)) for value in _ticks(reach)),
        *(_mark(value, x(value)) for value in _counts(most)),
        f'<polygon class="band" points="{" ".join(upper + lower)}"/>',
        f'<polyline class="line" points="{line}"/>',
        f'<circle class="dot" cx="{x(points[-1].voters):.1f}" cy="{y(points[-1].difference):.1f}" r="3.5"/>',
        f'<text class="tick" text-anchor="end" x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 2}">{axis}</text></svg>',
    ]
    return "".join(parts)


def _reach(points: list[Point]) -> float:
    """The largest value shown either way, with room for the later half of the intervals: the first ones are huge."""
    later = points[len(points) // 2 :]
    return min(1.0, 1.25 * max(0.05, *(max(abs(p.low), abs(p.high)) for p in later)))


def _step(span: float) -> float:
    """A round distance that divides a span into about four."""
    base = math.pow(10, math.floor(math.log10(span / 4)))
    return next(base * factor for factor in (1, 2, 5, 10) if base * factor * 4 >= span * 0.8)


def _ticks(reach: float) -> list[float]:
    step = _step(2 * reach)
    most = int(reach / step)
    return [step * number for number in range(-most, most + 1)]


def _counts(most: int) -> list[float]:
    step = max(1.0, _step(most))
    return [step * number for number in range(1, int(most / step) + 1)]


def _level(value: float, at: float) -> str:
    kind = "zero" if value == 0 else "grid"
    name = f"{value * 100:+.3g}%" if value else "0"
    return (
        f'<line class="{kind}" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        f'<text class="tick" text-anchor="end" x="{_LEFT - 8}" y="{at + 4:.1f}">{name}</text>'
    )


def _mark(value: float, at: float) -> str:
    return f'<text class="tick" text-anchor="middle" x="{at:.1f}" y="{_HEIGHT - 22}">{value:.0f}</text>'
