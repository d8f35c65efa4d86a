"""What people pick and move: scenarios as chat profiles, parameters as the sidebar's widgets, views as a mode.

Knows how a preset of the gateway looks and what Chainlit's widgets take. All bounds come from the preset.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import chainlit as cl
from chainlit.input_widget import InputWidget, Slider, Tab, TextInput
from chainlit.mode import Mode, ModeOption

from ui.client import Preset
from ui.words import Language, say

VIEWS: Final = {"chat": "message-circle", "compare": "columns-3", "tokens": "chart-bar-big"}
_DOMAINS: Final[Mapping[str, tuple[float, float, float]]] = {  # low, high, step where the preset sets no bound
    "temperature": (0.0, 2.0, 0.05),
    "max_tokens": (0, 2048, 16),
    "top_p": (0.05, 1.0, 0.05),
    "top_k": (0, 200, 1),
    "min_p": (0.0, 1.0, 0.01),
    "repetition_penalty": (0.5, 2.0, 0.05),
    "presence_penalty": (-2.0, 2.0, 0.1),
    "frequency_penalty": (-2.0, 2.0, 0.1),
}
_WARMTH: Final = ((0.0, (37, 99, 235)), (0.6, (13, 148, 136)), (1.0, (234, 88, 12)), (1.5, (220, 38, 38)))


def profiles(presets: Sequence[Preset], language: Language) -> list[cl.ChatProfile]:
    return [
        cl.ChatProfile(
            name=preset["name"],
            display_name=_in(preset["title"], language),
            markdown_description=f"**{_in(preset['title'], language)}** · `T {_span(preset)}`\n\n"
            f"{_in(preset['hint'], language)}",
            icon=icon(preset),
            default=at == 0,
            starters=[cl.Starter(label=text.strip(), message=text) for text in _in(preset["starters"], language) or []],
        )
        for at, preset in enumerate(presets)
    ]


def icon(preset: Preset) -> str:
    """The preset's lucide icon on a disc as warm as its default temperature; its first letter if we lack that icon."""
    drawn = _icons().get(preset.get("icon") or "")
    title = escape(_in(preset["title"], "en")[:1].upper())
    letter = f'<text x="12" y="17.5" text-anchor="middle" font-size="16" fill="#fff" stroke="none">{title}</text>'
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="-10 -10 44 44" fill="none" stroke="#fff" stroke-width="2" '
        f'stroke-linecap="round" stroke-linejoin="round"><rect x="-10" y="-10" width="44" height="44" rx="12" '
        f'fill="{_warmth(_rule(preset, "temperature"))}" stroke="none"/>{drawn or letter}</svg>'
    )
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def views(chosen: str, language: Language) -> list[Mode]:
    options = [
        ModeOption(
            id=name,
            name=say(f"view.{name}", language),
            description=say(f"view.{name}.about", language),
            icon=drawn,
            default=name == chosen,
        )
        for name, drawn in VIEWS.items()
    ]
    return [Mode(id="view", name=say("view", language), options=options)]


def widgets(preset: Preset, kept: Mapping[str, Any], language: Language) -> list[Tab]:
    """The sidebar for one preset. `kept` are the values that were set before, by widget id."""
    placed = {name: _slider(preset, name, kept, language) for name in _DOMAINS}
    hot = preset.get("when_hot") or {}
    if hot:
        more = ", ".join(f"{name} {value:g}" for name, value in hot.items() if name != "above")
        placed["temperature"].tooltip = say("temperature.hot", language, above=hot["above"], more=more)
    basic: list[InputWidget] = [
        placed.pop("temperature"),
        placed.pop("max_tokens"),
        _text(preset, "seed", kept, (say("seed", language), say("seed.hint", language), None)),
        _text(
            preset,
            "temps",
            kept,
            (say("temps", language), temperatures_text(default_temperatures(preset)), say("temps.about", language)),
        ),
    ]
    return [
        Tab(id="basic", label=say("tab.basic", language), inputs=basic),
        Tab(id="advanced", label=say("tab.advanced", language), inputs=list(placed.values())),
    ]


def asked(preset: Preset, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that differ from the preset's: only those are sent, so that its other rules stay in force."""
    chosen = {}
    for name, rule in preset["parameters"].items():
        value = settings.get(f"{name}__{preset['name']}")
        if name not in _DOMAINS or value is None or rule["pin"] is not None:
            continue
        if value != (rule["default"] or 0):
            chosen[name] = int(value) if name in ("max_tokens", "top_k") else value
    return chosen


def seed(preset: Preset, settings: Mapping[str, Any]) -> int | None:
    """The seed that was typed, None for none. Raises ValueError when it is no whole number."""
    text = str(settings.get(f"seed__{preset['name']}") or "").strip()
    return int(text) if text else None


def temperatures(preset: Preset, settings: Mapping[str, Any]) -> list[float]:
    """What to compare, ascending, each once. Raises ValueError unless three to five temperatures were typed."""
    text = str(settings.get(f"temps__{preset['name']}") or "").strip()
    if not text:
        return default_temperatures(preset)
    found = sorted({float(part) for part in re.split(r"[\s,，、;；/]+", text) if part})
    if not 3 <= len(found) <= 5 or not all(0 <= one <= 2 for one in found):
        raise ValueError(text)
    return found


def default_temperatures(preset: Preset) -> list[float]:
    """Three of the preset's range: both ends, and its default between them (the middle where that is an end)."""
    low, high = bounds(preset, "temperature")
    between = _rule(preset, "temperature")
    return [low, between if low < between < high else round((low + high) / 2, 2), high]


def temperatures_text(found: Sequence[float]) -> str:
    return ", ".join(f"{one:g}" for one in found)


def bounds(preset: Preset, name: str) -> tuple[float, float]:
    low, high, _ = _DOMAINS[name]
    rule = preset["parameters"][name]
    return (low if rule["min"] is None else rule["min"]), (high if rule["max"] is None else rule["max"])


def _slider(preset: Preset, name: str, kept: Mapping[str, Any], language: Language) -> Slider:
    low, high = bounds(preset, name)
    pin, widget = preset["parameters"][name]["pin"], f"{name}__{preset['name']}"
    if pin is None:
        span = f"±{high:g}" if low == -high else f"{low:g}–{high:g}"
        label = say("range", language, label=say(name, language), span=span)
    else:
        label = say("fixed", language, label=say(name, language))
        low, high = min(low, pin), max(high, pin)
    step = _DOMAINS[name][2]
    return Slider(
        id=widget,
        label=label,
        initial=_rule(preset, name) if pin is not None else kept.get(widget, _rule(preset, name)),
        min=low,
        max=high,
        step=0.01 if name == "temperature" and high - low <= 0.5 else step,
        description=say(f"{name}.about", language),
        disabled=pin is not None,
    )


def _text(preset: Preset, name: str, kept: Mapping[str, Any], says: tuple[str, str, str | None]) -> TextInput:
    widget, (label, placeholder, about) = f"{name}__{preset['name']}", says
    initial = kept.get(widget) or ""
    return TextInput(id=widget, label=label, initial=initial, placeholder=placeholder, description=about)


def _rule(preset: Preset, name: str) -> float:
    """What applies when nobody asks: the pin, else the default, else 0 (of max_tokens: no limit)."""
    rule = preset["parameters"][name]
    return float(rule["default"] or 0) if rule["pin"] is None else float(rule["pin"])


def _span(preset: Preset) -> str:
    if (pin := preset["parameters"]["temperature"]["pin"]) is not None:
        return f"= {pin:g}"
    low, high = bounds(preset, "temperature")
    return f"∈ [{low:g}, {high:g}]"


def _in(texts: Mapping[str, Any] | None, language: Language) -> Any:
    """One language of a text that may lack it."""
    texts = texts or {}
    return texts.get(language) or texts.get("en") or next(iter(texts.values()), "")


def _warmth(temperature: float) -> str:
    """Blue is cold, orange is warm: the colour of a temperature, as CSS."""
    for (t0, c0), (t1, c1) in pairwise(_WARMTH):
        if temperature <= t1:
            share = (temperature - t0) / (t1 - t0)
            return "rgb({},{},{})".format(*(round(a + (b - a) * share) for a, b in zip(c0, c1, strict=True)))
    return "rgb({},{},{})".format(*_WARMTH[-1][1])


@cache
def _icons() -> dict[str, str]:
    """SVG shapes by lucide's names: a selection of lucide 0.555 (ISC licence), for an <img> takes no components."""
    drawn: dict[str, str] = json.loads((Path(__file__).parent / "icons.json").read_text(encoding="utf-8"))
    return drawn
