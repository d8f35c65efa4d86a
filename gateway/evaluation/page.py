"""The report as one self-contained HTML page: both languages, light and dark, no network, readable without script.

Knows the page's frame. Does NOT know what the sections say.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Literal

from gateway.evaluation import sections
from gateway.evaluation.findings import Findings
from gateway.evaluation.markup import both, say
from gateway.evaluation.words import DOUBTS, TEXT

FILES = Path(__file__).with_name("page_files")
Start = Literal["auto", "en", "zh"]


def page(findings: Findings, lang: Start = "auto") -> str:
    """The whole page. `lang` is shown first; "auto" follows the browser, and is English where script is off."""
    style, script = ((FILES / name).read_text() for name in ("style.css", "script.js"))
    banner = f'<div class="alert"><p>{both(DOUBTS["toy"])}</p></div>' if findings.toy else ""
    body = "".join(
        [
            sections.glance(findings),
            sections.together(findings) if len(findings.prompts) > 1 else "",
            sections.by_scenario(findings),
            sections.outputs(findings),
            sections.verification(findings.verification),
            sections.published(findings),
            sections.numbers(findings),
            sections.doubts(findings),
        ]
    )
    return f"""<!doctype html>
<html lang="{"zh-CN" if lang == "zh" else "en"}" data-lang="{lang}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(TEXT["subtitle"].en)} · {escape(TEXT["subtitle"].zh)}: {escape(findings.model)}</title>
<style>
{style}</style>
</head>
<body>
<main>
<header>
<div><div class="kicker">{say("subtitle")}</div><h1>{say("title")}</h1>{_chips(findings)}</div>
<nav><button id="lang" type="button"><span class="en">中文</span><span class="zh">English</span></button>
<button id="theme" type="button" aria-label="light / dark">◐</button></nav>
</header>
{banner}{body}
<footer>Tempera · {escape(findings.created)}</footer>
</main>
<script>
{script}</script>
</body>
</html>
"""


def _chips(findings: Findings) -> str:
    size = ""
    if findings.parameters:
        billions = findings.parameters / 1e9
        size = f" · {billions:.3g}B" if billions >= 1 else f" · {findings.parameters / 1e6:.3g}M"
    prompts = sum(sum(langs.values()) for langs in findings.prompts.values())
    entries = [
        f"<b>{escape(findings.model)}</b>{size}",
        f"{prompts} {say('prompts')} × {findings.samples} {say('samples_each')}",
        f"T {' '.join(f'{t:g}' for t in findings.temperatures)}",
        f"{say('profile')} {escape(findings.profile)}",
        escape(findings.created[:10]),
    ]
    entries += [f"{say('revision')} {escape(findings.revision)}"] if findings.revision else []
    return f'<div class="chips">{"".join(f"<span class=chip>{entry}</span>" for entry in entries)}</div>'
