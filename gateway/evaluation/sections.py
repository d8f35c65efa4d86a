"""The report's sections, from findings to HTML, in the order they are read.

Knows what each section shows. Does NOT compute, and does NOT know the page around the sections.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from gateway.evaluation import figures
from gateway.evaluation.degeneration import Lang
from gateway.evaluation.findings import Example, Findings, Shown
from gateway.evaluation.markup import SIGNS, both, figure, legend, say, table
from gateway.evaluation.metrics import Change
from gateway.evaluation.published import FIGURES, NOVELTY, Published
from gateway.evaluation.recommend import Recommendation
from gateway.evaluation.rows import Setting
from gateway.evaluation.words import BY_SCENARIO, DOUBTS, LANGUAGES, METRICS, OVERVIEW, VERDICTS, Both, scenario_name


def glance(findings: Findings) -> str:
    """The change from the coldest to the hottest temperature, and what is recommended."""
    tongues: tuple[Lang, ...] = ("zh", "en")
    langs = [lang for lang in tongues if any(lang in counts for counts in findings.prompts.values())]
    scenario = figures.overall(findings)
    found = {(c.metric, c.lang): c for c in findings.changes if c.scenario == scenario}
    rows = [
        [
            f"<b>{both(METRICS[metric].name)}</b><small>{both(METRICS[metric].about)}</small>",
            *(_change(found.get((metric, lang)), metric) for lang in langs),
        ]
        for metric in (*OVERVIEW, "entropy")
        if any((metric, lang) in found for lang in langs)
    ]
    heads = [say("metric"), *(f'<span class="{lang}-ink">{both(LANGUAGES[lang])}</span>' for lang in langs)]
    span = f"T {findings.temperatures[0]:g} → {findings.temperatures[-1]:g}" if findings.temperatures else ""
    return (
        f"<h2>{say('glance')}</h2><p class='soft'>{say('from_to')}: {span}</p>{table(heads, rows)}"
        f"<h3>{say('recommended')}</h3>{_advice(findings)}"
    )


def _change(change: Change | None, metric: str) -> str:
    if change is None:
        return "–"
    cold, hot = figures.number(change.cold, metric), figures.number(change.hot, metric)
    percent = METRICS[metric].percent
    digits = 2 if not percent else 0 if abs(change.hot - change.cold) >= 0.02 else 1

    def signed(value: float) -> str:
        return ("+" if value >= 0 else "−") + f"{abs(value) * (100 if percent else 1):.{digits}f}"

    difference = signed(change.hot - change.cold) + (" pp" if percent else "")
    if change.low is not None and change.high is not None:
        difference += f" [{signed(change.low)}, {signed(change.high)}]"
    return f"{escape(cold)} → <b>{escape(hot)}</b><small>{difference} · n = {change.prompts}</small>"


def _advice(findings: Findings) -> str:
    if not findings.recommendations:
        return f"<p class='soft'>{say('not_recommended')}</p>"
    cards = [_advice_card(advice, findings.settings.get(advice.scenario)) for advice in findings.recommendations]
    return f'<div class="grid four">{"".join(cards)}</div>'


def _advice_card(advice: Recommendation, setting: Setting | None) -> str:
    name = both(scenario_name(advice.scenario, setting.title if setting else {}))
    ends = dict.fromkeys(f"{end:g}" for end in (advice.low, advice.high) if end is not None)
    span = f"<p class='big'>{' – '.join(ends)}</p>" if ends else ""
    best = f" · T {advice.temperature:g}" if advice.temperature is not None else ""
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in advice.reasons)
    verdict = both(VERDICTS[advice.verdict])
    return f'<div class="card"><h4>{name}</h4>{span}<p>{verdict}{best}</p><ul lang="en">{reasons}</ul></div>'


def together(findings: Findings) -> str:
    """The pooled curves."""
    scenario = figures.overall(findings)
    charts = [_metric_figure(findings, scenario, metric) for metric in OVERVIEW]
    return f'<h2>{say("together")}</h2>{_legend(["zh", "en", "band"])}<div class="grid">{"".join(charts)}</div>'


def by_scenario(findings: Findings) -> str:
    """Four curves a scenario, with the preset's range and the recommended one."""
    drawn = {point.scenario: point.low is not None for point in findings.points}
    signs = ["zh", "en", *(["band"] if any(drawn[scenario] for scenario in findings.prompts) else [])]
    signs += ["preset_range", "preset_default"]
    signs += ["recommended_range"] if findings.recommendations else []
    parts = []
    for scenario in findings.prompts:
        setting = findings.settings.get(scenario, Setting())
        charts = "".join(_metric_figure(findings, scenario, metric) for metric in BY_SCENARIO)
        title = both(scenario_name(scenario, setting.title))
        parts.append(f'<h3>{title}</h3><p class="soft">{_setting(setting)}</p><div class="grid four">{charts}</div>')
    return f"<h2>{say('by_scenario')}</h2>{_legend(signs)}{''.join(parts)}"


def _setting(setting: Setting) -> str:
    """`creative: T 0.7 – 1.2, 0.9 by default; with top_p 0.9`."""
    if setting.preset is None:
        return say("neutral")
    said = f"<code>{escape(setting.preset)}</code>"
    if setting.low is not None or setting.high is not None:
        said += f" · {say('preset_range')} {setting.low or 0:g} – {2 if setting.high is None else setting.high:g}"
    if setting.default is not None:
        said += f" · {say('preset_default')} {setting.default:g}"
    neutral = {"top_p": 1, "repetition_penalty": 1}
    others = [f"{name} {value:g}" for name, value in setting.fields.items() if value != neutral.get(name, 0)]
    if setting.hot is not None:
        others += [f"{name} {value:g} (T > {setting.hot.above:g})" for name, value in setting.hot.values.items()]
    return said + (f" · {say('with')} {', '.join(others)}" if others else "")


def _legend(names: Sequence[str]) -> str:
    signs = [(SIGNS[name], both(LANGUAGES[name]) if name in LANGUAGES else say(name)) for name in names]
    return legend([*signs, ("", f"n = {say('n_is')}")])


def _metric_figure(findings: Findings, scenario: str, metric: str) -> str:
    svg = figures.metric_chart(findings, scenario, metric)
    if svg is None:
        return ""
    words = METRICS[metric]
    counts = [
        f"{both(LANGUAGES[lang])} {points[0].prompts} × {points[0].n}"
        for lang, points in figures.curves(findings, scenario, metric).items()
    ]
    below = f'<p class="count">n = {" · ".join(counts)}</p>'
    return figure(svg, caption=both(words.name), small=both(words.about), below=below)


def outputs(findings: Findings) -> str:
    """Samples to read, by scenario and case, a column per temperature."""
    parts = [f"<h2>{say('outputs')}</h2>"]
    for scenario in findings.prompts:
        setting = findings.settings.get(scenario, Setting())
        parts.append(f"<h3>{both(scenario_name(scenario, setting.title))}</h3>")
        parts += [_example(example) for example in findings.examples if example.scenario == scenario]
    return "".join(parts)


def _example(example: Example) -> str:
    lang = "zh-CN" if example.lang == "zh" else "en"
    first = " ".join(example.prompt[-1]["content"].split())
    shown = escape(first[:160])
    prompt = "\n\n".join(message["content"] for message in example.prompt)
    columns = "".join(
        f"<div><h5>T {temperature:g}</h5>{''.join(_sample(sample, lang) for sample in made)}</div>"
        for temperature, made in example.columns
    )
    ink = f'<b class="{example.lang}-ink">{both(LANGUAGES[example.lang])}</b>'
    return (
        f'<details><summary>{ink}<span class="ask" lang="{lang}">{shown}</span></summary><div>'
        f'<p class="prompt" lang="{lang}">{escape(prompt)}</p><div class="columns">{columns}</div></div></details>'
    )


def _sample(sample: Shown, lang: str) -> str:
    doubts = "".join(f" · {both(METRICS[sign].name)}" for sign in sample.signs)
    foot = f"{both(METRICS['quality'].name)} {sample.quality:.2f}{doubts}"
    title = f' title="exchange {escape(sample.exchange)}"' if sample.exchange else ""
    return f'<div class="sample"{title}><pre lang="{lang}">{escape(sample.text)}</pre><div>{foot}</div></div>'


def verification(found: dict[str, Any] | None) -> str:
    """What `verify` measured, if it was given."""
    if found is None:
        return f"<h2>{say('verification')}</h2><p>{say('not_verified')}</p>"
    rows = []
    for entry in found["temperatures"]:
        estimate, omnibus = entry.get("tier_b") or {}, entry.get("tier_c") or {}
        applied = (entry.get("chain") or {}).get("temperature")
        asked = entry.get("asked") if entry.get("asked") is not None else applied
        measured, error = estimate.get("temperature"), estimate.get("error")
        shown = "–" if measured is None else f"{measured:.2f}" + (f" ± {error:.2f}" if error is not None else "")
        evidence = [f"{name} {value}" for name, value in _evidence(estimate, omnibus) if value is not None]
        rest = " · ".join([*evidence, *([entry["problem"]] if entry.get("problem") else [])])
        rows.append([f"{asked:g}" if asked is not None else "–", shown, _verdict(entry.get("passed")), escape(rest)])
    heads = [say("asked"), say("measured"), say("verdict"), ""]
    whole = _verdict(found.get("passed"))
    return f"<h2>{say('verification')}</h2><p>{escape(str(found.get('model', '')))}: {whole}</p>{table(heads, rows)}"


def _evidence(estimate: dict[str, Any], omnibus: dict[str, Any]) -> list[tuple[str, str | None]]:
    z, p = estimate.get("z"), omnibus.get("p")
    return [
        ("z", None if z is None else f"{z:+.2f}"),
        ("p", None if p is None else f"{p:.3f}"),
        ("n =", None if estimate.get("positions") is None else str(estimate["positions"])),
    ]


def _verdict(passed: object) -> str:
    return f'<span class="pass">{say("pass")}</span>' if passed else f'<span class="fail">{say("fail")}</span>'


def published(findings: Findings) -> str:
    """The figures of others, ours first."""
    ours = figures.metric_chart(findings, figures.overall(findings), "quality")
    small = both(METRICS["quality"].about)
    first = figure(ours, caption=f"{both(METRICS['quality'].name)}: {say('ours')}", small=small) if ours else ""
    charts = first + "".join(_published_figure(entry, findings) for entry in FIGURES)
    rows = [[name, f"{distinct:.2f}", f"{utility:.2f}"] for name, distinct, utility in NOVELTY]
    heads = [say("model"), both(Both("different", "不同")), both(Both("by utility", "按效用"))]
    return (
        f'<h2>{say("published")}</h2><div class="grid">{charts}</div>'
        f"<p class='soft' style='margin-top:18px'>{say('novelty')}</p>{table(heads, rows)}"
    )


def _published_figure(entry: Published, findings: Findings) -> str:
    svg = figures.published_chart(entry, findings)
    signs = ["square", "dot", "diamond"]
    entries = [
        (f'class="{signs[i]}" style="background:{figures.SERIES[i][0]}"', escape(series.name))
        for i, series in enumerate(entry.series)
    ]
    if entry.key == "turn":
        entries = [('class="line"', "TURN"), *((SIGNS[lang], both(LANGUAGES[lang])) for lang in ("zh", "en"))]
    below = f"{legend(entries)}<p class='note'>{both(Both(entry.note['en'], entry.note['zh']))}</p>"
    caption = f"{both(Both(entry.title['en'], entry.title['zh']))}{'' if entry.unit == '%' else ' (ln H)'}"
    return figure(svg, caption=caption, small=escape(entry.source), below=below)


def numbers(findings: Findings) -> str:
    """Every number with its interval and n, by scenario."""
    heads = [say("metric"), say("language"), "n", *(f"T {t:g}" for t in findings.temperatures)]
    parts = [f"<h2>{say('numbers')}</h2>"]
    for scenario in dict.fromkeys([figures.overall(findings), *findings.prompts]):
        rows = [row for metric in METRICS for row in _number_rows(findings, scenario, metric)]
        title = findings.settings[scenario].title if scenario in findings.settings else {}
        name = both(scenario_name(scenario, title))
        parts.append(f"<details><summary>{name}</summary><div>{table(heads, rows)}</div></details>")
    return "".join(parts)


def _number_rows(findings: Findings, scenario: str, metric: str) -> list[list[str]]:
    rows = []
    for lang, points in figures.curves(findings, scenario, metric).items():
        at = {point.temperature: point for point in points}
        cells = []
        for temperature in findings.temperatures:
            point = at.get(temperature)
            if point is None:
                cells.append("–")
                continue
            band = ""
            if point.low is not None and point.high is not None:
                low, high = figures.number(point.low, metric), figures.number(point.high, metric)
                band = f"<small>{escape(low)} – {escape(high)}</small>"
            cells.append(escape(figures.number(point.value, metric)) + band)
        name = f"{both(METRICS[metric].name)}"
        rows.append([name, both(LANGUAGES[lang]), f"{points[0].prompts} × {points[0].n}", *cells])
    return rows


def doubts(findings: Findings) -> str:
    """The caveats that apply."""
    items = "".join(f"<li>{both(DOUBTS[key])}{_detail(findings, key)}</li>" for key in findings.doubts)
    return f'<h2>{say("doubts")}</h2><ul class="doubts">{items}</ul>'


def _detail(findings: Findings, key: str) -> str:
    if key == "incomplete":
        return f" ({escape(', '.join(findings.incomplete))})"
    if key == "clamped":
        return f" ({', '.join(f'{asked:g} → {used:g}' for asked, used in findings.clamped)})"
    return ""
