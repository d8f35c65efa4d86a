"""From findings to charts: which curves, which ranges, which axes.

Knows findings and the chart's vocabulary. Does NOT know HTML around a chart, nor SVG.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from gateway.evaluation.charts import Dot, Frame, Line, draw
from gateway.evaluation.findings import Findings
from gateway.evaluation.metrics import ALL, Point
from gateway.evaluation.published import TURN_TEMPERATURES, TURN_VECTORS, Published
from gateway.evaluation.words import METRICS

LOOKS = {"zh": ("var(--zh)", "circle"), "en": ("var(--en)", "square")}
SERIES = [("var(--en)", "square"), ("var(--zh)", "circle"), ("var(--third)", "diamond")]
WHOLE = ("quality", "diversity", "agreement", "degenerate")  # shown from 0 to 1, so that scenarios can be compared


def number(value: float, metric: str) -> str:
    """A value as it is read: `34%`, `0.4%`, `<0.1%`, `0.52`."""
    if not METRICS[metric].percent:
        return f"{value:.2f}"
    if 0 < value < 0.0005:
        return "<0.1%"
    return f"{value:.1%}" if 0 < value < 0.01 else f"{value:.0%}"


def curves(findings: Findings, scenario: str, metric: str) -> dict[str, list[Point]]:
    """The points of one chart by language, by rising temperature."""
    found: dict[str, list[Point]] = {}
    for point in findings.points:
        if (point.scenario, point.metric) == (scenario, metric):
            found.setdefault(point.lang, []).append(point)
    return {lang: sorted(points, key=lambda p: p.temperature) for lang, points in sorted(found.items(), reverse=True)}


def overall(findings: Findings) -> str:
    """Where the pooled curves are: all scenarios, or the only one."""
    return ALL if len(findings.prompts) > 1 else next(iter(findings.prompts), ALL)


def metric_chart(findings: Findings, scenario: str, metric: str) -> str | None:
    """One metric of one scenario with its bands and ranges; None when there is nothing to draw."""
    by_lang = curves(findings, scenario, metric)
    if not by_lang:
        return None
    lines = [
        Line(dots=[_dot(point) for point in points], colour=LOOKS[lang][0], shape=LOOKS[lang][1])
        for lang, points in by_lang.items()
    ]
    setting = findings.settings.get(scenario)
    advice = next((r for r in findings.recommendations if r.scenario == scenario and r.low is not None), None)
    return draw(
        lines,
        Frame(
            x=_domain(findings.temperatures),
            y=(0, 1) if metric in WHOLE else None,
            percent=METRICS[metric].percent,
            shade=(setting.low or 0.0, 2.0 if setting.high is None else setting.high)
            if setting is not None and (setting.low, setting.high) != (None, None)
            else None,
            rule=setting.default if setting is not None else None,
            width=285 if scenario == overall(findings) else 215,
            bar=(advice.low, advice.high or advice.low) if advice is not None and advice.low is not None else None,
        ),
    )


def _dot(point: Point) -> Dot:
    band = ""
    if point.low is not None and point.high is not None:
        band = f" [{number(point.low, point.metric)}, {number(point.high, point.metric)}]"
    label = f"T {point.temperature:g} · {point.lang} {number(point.value, point.metric)}{band}"
    return Dot(point.temperature, point.value, point.low, point.high, f"{label} · {point.prompts} × {point.n}")


def _domain(temperatures: Sequence[float]) -> tuple[float, float]:
    return 0.0, round(max([*temperatures, 1.0]) + 0.1, 2)


def published_chart(figure: Published, findings: Findings) -> str:
    """A figure of others; over the TURN vectors our own entropies are drawn."""
    if figure.key == "turn":
        return _turn_chart(findings)
    lines = [
        Line(
            dots=[Dot(t, v, label=f"{s.name}: T {t:g}, {v:g}%") for t, v in zip(s.temperatures, s.values, strict=True)],
            colour=SERIES[i][0],
            shape=SERIES[i][1],
        )
        for i, s in enumerate(figure.series)
    ]
    hottest = max(t for series in figure.series for t in series.temperatures)
    return draw(lines, Frame(x=(0, hottest + 0.1)))


def _turn_chart(findings: Findings) -> str:
    lines = [
        Line(
            dots=[
                Dot(t, math.log(h), label=f"TURN {turning:g}: T {t:g}, ln H {math.log(h):.2f}")
                for t, h in zip(TURN_TEMPERATURES, vector, strict=True)
            ],
            colour="var(--edge)",
            shape="stroke",
        )
        for turning, vector in TURN_VECTORS
    ]
    for lang, points in curves(findings, overall(findings), "entropy").items():
        dots = [
            Dot(p.temperature, math.log(p.value), label=f"T {p.temperature:g} · {lang} ln H {math.log(p.value):.2f}")
            for p in points
            if p.value > 0
        ]
        lines.append(Line(dots=dots, colour=LOOKS[lang][0], shape=LOOKS[lang][1]))
    hottest = max([*findings.temperatures, *TURN_TEMPERATURES])
    return draw([line for line in lines if line.dots], Frame(x=(0, hottest + 0.1), zero=False))
