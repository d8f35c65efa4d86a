"""A temperature rule written into a presets file's text, touching nothing else: comments, order and spacing stay.

Knows YAML's marks (where a value begins and ends in the text). Does NOT know whether the rule is wise, and writes no
file. Every edit is read back and must have changed that one rule only.
"""

from __future__ import annotations

import difflib
from typing import Any, NamedTuple

import yaml


class EditError(Exception):
    """The text cannot be edited safely; the message says why, and what to do by hand."""


class Rule(NamedTuple):
    """A temperature default with its bounds."""

    default: float
    low: float
    high: float

    @property
    def entries(self) -> dict[str, float]:
        return {"default": self.default, "min": self.low, "max": self.high}

    @property
    def flow(self) -> str:
        return "{" + ", ".join(f"{key}: {value:g}" for key, value in self.entries.items()) + "}"


def set_temperature(text: str, preset: str, rule: Rule) -> str:
    """The text with `presets.<preset>.parameters.temperature` set to the rule. Raises EditError."""
    try:
        before = yaml.safe_load(text)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise EditError(f"not valid YAML: {error}") from error
    entry = _get(_get(root, "presets"), preset)
    if not isinstance(entry, yaml.MappingNode):
        raise EditError(f"there is no preset {preset!r} in this file")
    parameters = _get(entry, "parameters")
    temperature = _get(parameters, "temperature")
    if isinstance(temperature, yaml.MappingNode) and temperature.value:
        after = _merge(text, temperature, rule)
    elif temperature is not None:
        after = text[: temperature.start_mark.index] + rule.flow + text[temperature.end_mark.index :]
    elif isinstance(parameters, yaml.MappingNode) and parameters.value:
        after = _insert_first(text, parameters, f"temperature: {rule.flow}")
    elif parameters is not None:
        after = (
            text[: parameters.start_mark.index] + "{temperature: " + rule.flow + "}" + text[parameters.end_mark.index :]
        )
    else:
        after = _insert_first(text, entry, f"parameters: {{temperature: {rule.flow}}}")
    _confirm(before, after, preset, rule)
    return after


def diff(before: str, after: str, name: str) -> str:
    """A unified diff that `git apply` and `patch -p1` take; empty when nothing changes."""
    lines = difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), f"a/{name}", f"b/{name}"
    )
    return "".join(line if line.endswith("\n") else line + "\n\\ No newline at end of file\n" for line in lines)


def _get(node: yaml.Node | None, key: str) -> yaml.Node | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((value for name, value in node.value if name.value == key), None)


def _merge(text: str, node: yaml.MappingNode, rule: Rule) -> str:
    """Default, min and max replaced where they stand, and added before the first entry where they do not."""
    if _get(node, "pin") is not None:
        raise EditError("the preset pins its temperature: take the pin away by hand if it is to have a range")
    edits, missing = [], []
    for key, value in rule.entries.items():
        there = _get(node, key)
        if there is None:
            missing.append(f"{key}: {value:g}")
        else:
            edits.append((there.start_mark.index, there.end_mark.index, f"{value:g}"))
    if missing:
        first = node.value[0][0].start_mark
        between = ", " if node.flow_style else "\n" + " " * first.column
        edits.append((first.index, first.index, "".join(entry + between for entry in missing)))
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    return text


def _insert_first(text: str, node: yaml.MappingNode, entry: str) -> str:
    first = node.value[0][0].start_mark
    between = ", " if node.flow_style else "\n" + " " * first.column
    return text[: first.index] + entry + between + text[first.index :]


def _confirm(before: Any, after: str, preset: str, rule: Rule) -> None:
    """The edited text must hold the rule and be the same in all else: anchors, or a layout not thought of, end here."""
    entry = before["presets"][preset]
    parameters = entry.get("parameters") or {}
    old = parameters.get("temperature")
    new = {**(old if isinstance(old, dict) else {}), **rule.entries}
    expected = {**entry, "parameters": {**parameters, "temperature": new}}
    try:
        same = yaml.safe_load(after) == {**before, "presets": {**before["presets"], preset: expected}}
    except yaml.YAMLError:
        same = False
    if not same:
        raise EditError(f"this file's layout is not understood: set temperature: {rule.flow} of {preset!r} by hand")
