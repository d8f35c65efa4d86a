"""The docs say what is there: every setting, every command, every route, and no dead link between them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from gateway.cli import main
from gateway.policy.config import schema
from gateway.protocol.dialects import PATHS
from gateway.serving.routes import PASSED
from gateway.settings import DESCRIPTIONS, PREFIX

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def test_every_setting_is_in_the_table() -> None:
    table = read("docs/operations.md")
    for name, text in DESCRIPTIONS.items():
        assert f"| `{PREFIX}{name.upper()}` |" in table
        assert text in table


def test_every_command_is_documented() -> None:
    everything = "\n".join(page.read_text("utf-8") for page in PAGES)
    missing = [name for name in main.commands if f"tempera {name}" not in everything]
    assert missing == []


def test_every_route_is_in_the_api_page() -> None:
    page = read("docs/api.md")
    assert [path for path in (*PATHS, *PASSED) if f"`{path}`" not in page and f" {path}`" not in page] == []


def test_the_schema_for_editors_is_up_to_date() -> None:
    assert json.loads(read("docs/presets.schema.json")) == schema(), "tempera check --schema presets.yaml > docs/..."


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
    assert [t for t in targets if "://" not in t and not (page.parent / t).exists()] == []
