"""The presets in force as a table for a terminal of 80 columns. Chinese characters take two columns each."""

from __future__ import annotations

import textwrap
import unicodedata
from typing import Final

from gateway.policy.config import Config
from gateway.policy.params import PARAMS, Rule, starting
from gateway.policy.presets import Preset

WIDTH: Final = 80
_HARD: Final = "\N{NO-BREAK SPACE}"  # keeps a parameter and its value in one line
_TITLES: Final = ("preset", "title", "temperature", "other")


def table(config: Config) -> str:
    """One row per preset: name, titles, temperature default and bounds, everything else it sets."""
    rows = [_TITLES, *(_row(config, preset) for preset in config.presets.values())]
    widths = [max(_width(row[column]) for row in rows) for column in range(3)]
    left = sum(widths) + 2 * 3
    lines = []
    for row in rows:
        others = textwrap.wrap(row[3].replace(" ", _HARD).replace(f",{_HARD}", ", "), max(WIDTH - left, 20)) or [""]
        lines.append("  ".join([*(_pad(row[i], widths[i]) for i in range(3)), others[0]]).rstrip())
        lines += [" " * left + other for other in others[1:]]
    lines = [line.replace(_HARD, " ") for line in lines]
    return "\n".join([lines[0], "-" * max(map(_width, lines)), *lines[1:]])


def _row(config: Config, preset: Preset) -> tuple[str, str, str, str]:
    rules, hot = preset.arm.guard.rules, preset.arm.guard.hot
    temperature = PARAMS["temperature"]
    others = [f"{name} {_say(rule)}" for name, rule in rules.items() if name != "temperature"]
    if hot is not None:
        others += [f"{name} {value:g} above {hot.above:g}" for name, value in hot.values.items()]
    rule = rules.get("temperature", Rule())
    spoken = _say(Rule(default=starting(temperature, rule), min=rule.min, max=rule.max, pin=rule.pin))
    mark = "*" if preset.name == config.default else ""
    return preset.name + mark, preset.file.title.zh, spoken, ", ".join(others)


def _say(rule: Rule) -> str:
    if rule.pin is not None:
        return f"={rule.pin}"
    start = "" if rule.default is None else str(rule.default)
    if rule.min is None and rule.max is None:
        return start
    low = "" if rule.min is None else rule.min
    high = "" if rule.max is None else rule.max
    return f"{start} ({low}..{high})".strip()


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def _pad(text: str, width: int) -> str:
    return text + " " * (width - _width(text))
