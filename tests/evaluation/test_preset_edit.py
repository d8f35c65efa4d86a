"""A presets file edited in place: the rule changes, the rest of the text does not."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from gateway.evaluation.preset_edit import EditError, Rule, diff, set_temperature

RULE = Rule(0.8, 0.6, 1.0)
WRITTEN = "{default: 0.8, min: 0.6, max: 1}"


def file_with(parameters: str) -> str:
    other = "  other:\n    parameters: {temperature: 0.1}  # stays\n"
    return f"# 场景 scenarios\npresets:\n{other}  creative:\n{parameters}    icon: feather  # last\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "    parameters:\n      temperature: 0.9  # warm\n",
            f"    parameters:\n      temperature: {WRITTEN}  # warm\n",
        ),
        (
            "    parameters:\n      temperature: {default: 0.9, min: 0.7, max: 1.2}  # warm\n      top_p: 0.9\n",
            "    parameters:\n      temperature: {default: 0.8, min: 0.6, max: 1}  # warm\n      top_p: 0.9\n",
        ),
        (
            "    parameters:\n      temperature: {max: 1.2, default: 0.9}\n",
            "    parameters:\n      temperature: {min: 0.6, max: 1, default: 0.8}\n",
        ),
        (
            "    parameters:\n      temperature:\n        default: 0.9  # a\n        max: 1.2  # b\n",
            "    parameters:\n      temperature:\n        min: 0.6\n        default: 0.8  # a\n        max: 1  # b\n",
        ),
        (
            "    parameters:\n      # nucleus\n      top_p: 0.9\n",
            f"    parameters:\n      # nucleus\n      temperature: {WRITTEN}\n      top_p: 0.9\n",
        ),
        ("    parameters: {top_p: 0.9}\n", f"    parameters: {{temperature: {WRITTEN}, top_p: 0.9}}\n"),
        ("    parameters: {}\n", f"    parameters: {{temperature: {WRITTEN}}}\n"),
        ("", f"    parameters: {{temperature: {WRITTEN}}}\n"),
    ],
)
def test_only_the_rule_changes(before: str, after: str) -> None:
    assert set_temperature(file_with(before), "creative", RULE) == file_with(after)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (file_with("    parameters: {temperature: {pin: 0.7}}\n"), "pins its temperature"),
        ("presets: {other: {}}\n", "no preset 'creative'"),
        ("presets: [\n", "not valid YAML"),
        ("presets:\n  creative: &c {parameters: {temperature: 0.9}}\n  twin: *c\n", "by hand"),
    ],
)
def test_what_cannot_be_edited_safely_is_not(text: str, says: str) -> None:
    with pytest.raises(EditError, match=says):
        set_temperature(text, "creative", RULE)


def test_every_shipped_preset_can_be_edited_and_the_diff_applies(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "presets.yaml").read_text()
    for name in yaml.safe_load(text)["presets"]:
        after = set_temperature(text, name, RULE)
        assert yaml.safe_load(after)["presets"][name]["parameters"]["temperature"] == RULE.entries
        patch = diff(text, after, "presets.yaml")
        assert len([line for line in patch.splitlines() if line[0] in "+-"]) == 4, "two headers, one line changed"
        (tmp_path / "presets.yaml").write_text(text)
        subprocess.run(["git", "apply"], input=patch, text=True, cwd=tmp_path, check=True)
        assert (tmp_path / "presets.yaml").read_text() == after
    assert diff(text, text, "presets.yaml") == ""
