"""An experiment's result as one HTML page that needs nothing else: no script, no font, no other host.

Shows what Result holds and computes nothing. Every text from outside is escaped.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from html import escape
from typing import Final

from gateway.log import words
from gateway.log.chart import draw
from gateway.log.finding import Arm, Comparison, Result
from gateway.log.guards import Guardrail
from gateway.log.words import Language

Say = Callable[..., str]

_STYLE: Final = """
:root{color-scheme:light dark;--ink:#1c2330;--soft:#5d6675;--line:#dfe3ea;--paper:#fff;--card:#f6f7f9;--mark:#2563c9;
--band:#2563c926;--good:#15803d;--bad:#c02626;--wait:#a16207}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ef;--soft:#9aa4b4;--line:#313846;--paper:#14171d;--card:#1c2129;
--mark:#6ea3f5;--band:#6ea3f533;--good:#4ade80;--bad:#f87171;--wait:#facc15}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);
font:15px/1.55 system-ui,"PingFang SC","Microsoft YaHei","Noto Sans CJK SC",sans-serif}
main{max-width:860px;margin:0 auto;padding:32px 20px 48px}h1{font-size:24px;margin:0}
h2{font-size:17px;margin:32px 0 8px}
.sub{color:var(--soft);margin:4px 0 20px}.verdict{border-left:5px solid var(--wait);background:var(--card);
padding:14px 18px;border-radius:6px}.verdict b{display:block;font-size:21px}.verdict.ship,.verdict.keep{border-color:
var(--good)}.verdict.invalid{border-color:var(--bad)}.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;
font-variant-numeric:tabular-nums}th,td{text-align:right;padding:7px 10px;border-bottom:1px solid var(--line);
white-space:nowrap}
th{color:var(--soft);font-weight:500;font-size:13px}th:first-child,td:first-child{text-align:left}
.tag{color:var(--soft);font-size:12px;margin-left:6px}
.bar{display:inline-block;vertical-align:middle;width:80px;height:8px;
border-radius:4px;background:var(--line);margin-right:8px;overflow:hidden}.bar i{display:block;height:100%;
background:var(--mark)}svg{width:100%;min-width:560px;height:auto;margin:8px 0}.band{fill:var(--band)}
.line{fill:none;stroke:var(--mark);stroke-width:2}.dot{fill:var(--mark)}.grid{stroke:var(--line)}.zero{stroke:var(--soft)}.zone{fill:var(--soft);opacity:.1}
.tick{fill:var(--soft);font-size:12px}
.facts{display:flex;flex-wrap:wrap;gap:8px 32px;margin:8px 0;padding:0;list-style:none}
.facts span{display:block;color:var(--soft);font-size:13px}.harm{color:var(--bad)}.fine{color:var(--soft)}
.note{color:var(--soft);font-size:13px;margin-top:28px}
"""


def render(result: Result, equivalence: float, language: Language = "en") -> str:
    """The whole document. `equivalence` is the difference that counts as none, for the chart's zone."""

    def say(key: str, **values: object) -> str:
        return escape(words.text(key, language, **values))

    body = [
        f"<h1>{say('title')} {escape(result.name)}</h1>",
        f'<p class="sub">{say("on_preset")} {escape(result.preset)} · {say(result.state)} · '
        f"{say('days', days=result.days)} · {_moment(result.now)}</p>",
        _verdict(result, language),
        _arms(result, say) if result.started is not None else f"<p>{say('none')}</p>",
        _facts(_checks(result, say)),
        *(_comparison(c, equivalence, say) for c in result.comparisons),
        _needed(result, say),
        f'<p class="note">{say("note")}</p>',
    ]
    return (
        f'<!doctype html><html lang="{"zh-CN" if language == "zh" else "en"}"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(result.name)}: {escape(words.verdict(result.verdict, language))}</title>"
        f"<style>{_STYLE}</style></head><body><main>{''.join(body)}</main></body></html>"
    )


def _verdict(result: Result, language: Language) -> str:
    kind = result.verdict.partition(" ")[0].rstrip(":")
    reasons = " ".join(words.reason(said, language) for said in result.reasons)
    return (
        f'<div class="verdict {escape(kind)}"><b>{escape(words.verdict(result.verdict, language))}</b>'
        f"{escape(reasons)}</div>"
    )


def _arms(result: Result, say: Say) -> str:
    names = ("variant", "weight", "units", "exchanges", "voters", "votes", "mean")
    head = "".join(f"<th>{say(name)}</th>" for name in names)
    rows = "".join(_arm(arm, say("control") if not number else "") for number, arm in enumerate(result.arms))
    moved = f"<p>{say('moved', moved=result.moved)}</p>" if result.moved else ""
    return f'<h2>{say("arms")}</h2><div class="scroll"><table><tr>{head}</tr>{rows}</table></div>{moved}'


def _arm(arm: Arm, tag: str) -> str:
    share = "–"
    if arm.mean is not None:
        share = f'<span class="bar"><i style="width:{arm.mean * 100:.0f}%"></i></span>{arm.mean * 100:.1f}%'
    numbers = "".join(f"<td>{n:,}</td>" for n in (arm.units, arm.exchanges, arm.voters, arm.votes))
    label = f'<span class="tag">{tag}</span>' if tag else ""
    return f"<tr><td>{escape(arm.variant)}{label}</td><td>{arm.weight:.0%}</td>{numbers}<td>{share}</td></tr>"


def _checks(result: Result, say: Say) -> list[tuple[str, str]]:
    checks = []
    if result.sample_ratio is not None:
        good = "" if result.sample_ratio.alarm else f" · {say('ratio_ok')}"
        checks.append((say("ratio_check"), f"{_number(result.sample_ratio.e)}{good}"))
    if result.adaptive_e is not None:
        checks.append((say("adaptive_e"), _number(result.adaptive_e)))
    return checks


def _comparison(found: Comparison, equivalence: float, say: Say) -> str:
    title = say("against", variant=found.variant, control=found.control)
    facts = []
    if found.difference is not None and found.low is not None and found.high is not None:
        interval = f"{found.difference:+.1%} [{found.low:+.1%}, {found.high:+.1%}]"
        facts += [(say("difference"), interval), (say("e"), _number(found.max_e)), (say("p"), _number(found.p))]
    if found.crossed_at is not None:
        facts.append((say("crossed"), _moment(found.crossed_at)))
    if found.exact_e is not None:
        facts.append((say("exact_e"), _number(found.exact_e)))
    label = f"{say('difference')}: {title}; {say('axis')}"
    chart = draw(found.history, equivalence, label, say("axis")) if found.history else ""
    return f'<h2>{title}</h2>{_facts(facts)}<div class="scroll">{chart}</div>{_guardrails(found.guardrails, say)}'


def _guardrails(rails: list[Guardrail], say: Say) -> str:
    if not rails:
        return ""
    head = "".join(f"<th>{say(name)}</th>" for name in ("guardrails", "change", "tolerance"))
    rows = ""
    for rail in rails:
        state = "harm" if rail.harm else "fine"
        change = f"{rail.change:+.1%} [{rail.low:+.1%}, {rail.high:+.1%}]"
        rows += f"<tr><td>{say(rail.name)}</td><td>{change}</td><td>{rail.tolerance:.0%}</td>"
        rows += f'<td class="{state}">{say(state)}</td></tr>'
    return f'<div class="scroll"><table><tr>{head}<th></th></tr>{rows}</table></div>'


def _needed(result: Result, say: Say) -> str:
    needed = result.needed
    if needed is None or not needed.voters_missing or not result.wants_votes:
        return ""
    assigned = say("assigned", units=f"{needed.units_missing:,}") if needed.units_missing else ""
    missing, voters = f"{needed.voters_missing:,}", f"{needed.voters_per_arm:,}"
    return f"<p>{say('needed', detect=needed.detect, voters=voters, missing=missing, assigned=assigned)}</p>"


def _facts(facts: list[tuple[str, str]]) -> str:
    items = "".join(f"<li><span>{name}</span>{value}</li>" for name, value in facts)
    return f'<ul class="facts">{items}</ul>' if items else ""


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if value < 1e6 else f"{value:.1e}"


def _moment(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M UTC")
