"""The report as Markdown, in one language: the tables without the charts, for a pull request or a chat.

Knows Markdown. Does NOT compute: numbers come from findings, wording from words.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gateway.evaluation import figures
from gateway.evaluation.findings import Findings
from gateway.evaluation.metrics import Point
from gateway.evaluation.published import FIGURES
from gateway.evaluation.words import (
    BY_SCENARIO,
    DOUBTS,
    LANGUAGES,
    METRICS,
    OVERVIEW,
    TEXT,
    VERDICTS,
    Tongue,
    scenario_name,
)


def markdown(findings: Findings, lang: Tongue) -> str:
    """The whole text."""

    def say(key: str) -> str:
        return TEXT[key].say(lang)

    lines = [f"# {say('subtitle')}: {findings.model}", "", _about(findings, lang), ""]
    if findings.toy:
        lines += [f"> **{DOUBTS['toy'].say(lang)}**", ""]
    scenario = figures.overall(findings)
    lines += [f"## {say('together')}", "", *_curves(findings, scenario, (*OVERVIEW, "entropy"), lang), ""]
    lines += [f"## {say('recommended')}", "", *_advice(findings, lang), ""]
    lines += [f"## {say('by_scenario')}", ""]
    for name in findings.prompts:
        title = scenario_name(name, findings.settings[name].title if name in findings.settings else {})
        lines += [f"### {title.say(lang)}", "", *_curves(findings, name, BY_SCENARIO, lang), ""]
    lines += [f"## {say('verification')}", "", *_verification(findings, lang), ""]
    lines += [f"## {say('published')}", "", *_published(lang), ""]
    lines += [f"## {say('doubts')}", "", *(f"- {DOUBTS[key].say(lang)}" for key in findings.doubts)]
    return "\n".join(lines) + "\n"


def _about(findings: Findings, lang: Tongue) -> str:
    prompts = sum(sum(counts.values()) for counts in findings.prompts.values())
    size = f"{findings.parameters:,} {TEXT['parameters'].say(lang)}, " if findings.parameters else ""
    each = TEXT["samples_each"].say(lang)
    temperatures = " ".join(f"{t:g}" for t in findings.temperatures)
    made = f"{prompts} {TEXT['prompts'].say(lang)} × {findings.samples} {each}, T {temperatures}"
    return f"{size}{TEXT['profile'].say(lang)} {findings.profile}, {made}, {findings.created[:10]}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(heads) + " |",
        "|" + " --- |" * len(heads),
        *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows),
    ]


def _curves(findings: Findings, scenario: str, metrics: Sequence[str], lang: Tongue) -> list[str]:
    heads = [TEXT["metric"].say(lang), TEXT["language"].say(lang), "n", *(f"T {t:g}" for t in findings.temperatures)]
    rows = []
    for metric in metrics:
        for tongue, points in figures.curves(findings, scenario, metric).items():
            at = {point.temperature: point for point in points}
            cells = [_value(at[t]) if t in at else "–" for t in findings.temperatures]
            n = f"{points[0].prompts} × {points[0].n}"
            rows.append([METRICS[metric].name.say(lang), LANGUAGES[tongue].say(lang), n, *cells])
    return _table(heads, rows)


def _value(point: Point) -> str:
    shown = figures.number(point.value, point.metric)
    if point.low is None or point.high is None:
        return shown
    return f"{shown} [{figures.number(point.low, point.metric)}, {figures.number(point.high, point.metric)}]"


def _advice(findings: Findings, lang: Tongue) -> list[str]:
    if not findings.recommendations:
        return [TEXT["not_recommended"].say(lang)]
    lines = []
    for advice in findings.recommendations:
        title = scenario_name(advice.scenario, {}).say(lang)
        span = f" {advice.low:g} – {advice.high:g}, T {advice.temperature:g}" if advice.low is not None else ""
        lines.append(f"- **{title}**: {VERDICTS[advice.verdict].say(lang)}{span}")
        lines += [f"  - {reason}" for reason in advice.reasons]
    return lines


def _verification(findings: Findings, lang: Tongue) -> list[str]:
    found = findings.verification
    if found is None:
        return [TEXT["not_verified"].say(lang)]
    rows = []
    for entry in found["temperatures"]:
        estimate = entry.get("tier_b") or {}
        measured, error = estimate.get("temperature"), estimate.get("error")
        shown = "–" if measured is None else f"{measured:.2f}" + (f" ± {error:.2f}" if error is not None else "")
        verdict = TEXT["pass" if entry.get("passed") else "fail"].say(lang)
        rows.append(["–" if entry.get("asked") is None else f"{entry['asked']:g}", shown, verdict])
    return _table([TEXT[key].say(lang) for key in ("asked", "measured", "verdict")], rows)


def _published(lang: Tongue) -> list[str]:
    lines = []
    for figure in FIGURES:
        lines.append(f"- **{figure.title[lang]}** ({figure.source}). {figure.note[lang]}")
        for series in figure.series:
            pairs = zip(series.temperatures, series.values, strict=True)
            lines.append(f"  - {series.name}: " + ", ".join(f"{t:g}: {value:g}%" for t, value in pairs))
    return lines
