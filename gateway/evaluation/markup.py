"""Small pieces of HTML: the same thing in both languages, figures with a caption, legends, tables.

Knows escaping and the page's class names. Does NOT know what is said.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

from gateway.evaluation.words import TEXT, Both

_CODE = re.compile("`([^`]+)`")


def both(text: Both) -> str:
    """Both languages; the page shows one. What reads the same in both is written once."""
    en, zh = (_CODE.sub(r"<code>\1</code>", escape(said)) for said in text)
    return en if en == zh else f'<span class="en" lang="en">{en}</span><span class="zh" lang="zh-CN">{zh}</span>'


def say(key: str) -> str:
    """A fixed text by its key."""
    return both(TEXT[key])


def figure(svg: str, *, caption: str, small: str = "", below: str = "") -> str:
    """A chart with its caption; `below` is HTML."""
    small = f"<small>{small}</small>" if small else ""
    return f"<figure><figcaption>{caption}{small}</figcaption>{svg}{below}</figure>"


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """(class and style of the sign, what it stands for)."""
    items = "".join(f"<span>{f'<i {sign}></i>' if sign else ''}{text}</span>" for sign, text in entries)
    return f'<p class="legend">{items}</p>'


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML; those that begin with a digit or sign do not wrap."""
    top = "".join(f"<th>{head}</th>" for head in heads)
    lines = "".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'


def _cell(cell: str) -> str:
    numeric = cell[:1].isdigit() or cell[:1] in "+-−"
    return f'<td class="num">{cell}</td>' if numeric else f"<td>{cell}</td>"


SIGNS = {
    "zh": 'class="dot" style="background:var(--zh)"',
    "en": 'class="square" style="background:var(--en)"',
    "band": 'class="band"',
    "preset_range": 'class="shade"',
    "preset_default": 'class="rule"',
    "recommended_range": 'class="bar"',
}
