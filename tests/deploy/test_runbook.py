"""docs/runbook.md has a section for every alert, and speaks of outcomes, reasons and settings that exist."""

import re
from typing import Any, get_args

import yaml

from gateway.log.exchange import Outcome
from gateway.settings import DESCRIPTIONS, PREFIX
from tests.deploy.script import ROOT

PAGE = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
ALERTS: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))


def test_every_alert_has_its_section_in_the_same_order() -> None:
    alerts = [rule["alert"] for group in ALERTS["groups"] for rule in group["rules"]]
    assert re.findall(r"^## (Tempera\w+)$", PAGE, re.MULTILINE) == alerts


def test_outcomes_and_settings_are_real() -> None:
    table = PAGE[PAGE.index("| outcome |") : PAGE.index("## TemperaFirstTokenSlow")]
    named = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert named == set(get_args(Outcome)) - {"ok", "rejected", "client_disconnect"}
    settings = {f"{PREFIX}{name.upper()}" for name in DESCRIPTIONS}
    assert set(re.findall(r"`(TEMPERA_\w+)`", PAGE)) <= settings
