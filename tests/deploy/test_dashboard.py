"""The dashboard, the alerts and what Prometheus scrapes, held against a live gateway's own page and against promtool.

Not shown here: that Grafana draws the board (docs/operations.md says what was looked at, and how).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.contract.targets import ROOT, gateway, send
from tests.deploy.test_compose import GATEWAYS, SERVICES, active, known_as
from tests.fakes import FakeEngine

DEPLOY = ROOT / "deploy"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
BOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text("utf-8"))
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
RULES: list[dict[str, Any]] = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"][0]["rules"]
FILLED = {"$__rate_interval": "1m", "$instance": ".*", "$preset": ".*"}
WORDS = {"sum", "by", "le", "rate", "histogram_quantile", "or", "vector", "count", "increase", "min", "max", "absent"}
OF_PROMETHEUS = {"up", "instance", "job", "le"}  # what it adds to every series, or makes of its own


def filled(expression: str) -> str:
    """An expression of the board as Grafana sends it."""
    for name, value in FILLED.items():
        expression = expression.replace(name, value)
    return expression


QUERIES = {
    **{f"{panel['title']} {one['refId']}": filled(one["expr"]) for panel in PANELS for one in panel["targets"]},
    **{rule["alert"]: rule["expr"] for rule in RULES},
}


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, set[str]]]:
    """Name of every sample on a live gateway's page, with its labels, after some requests of every kind."""
    home = tmp_path_factory.mktemp("dashboard")
    with FakeEngine.in_thread(pace=0.002) as engine, gateway(home, "--upstream", engine.url) as url:
        for stream in (False, True):
            body = {"model": "creative", "stream": stream, "temperature": 2, "messages": []}
            assert send(url, "POST", "/v1/chat/completions", json.dumps(body).encode(), {}).status == 200
        found: dict[str, set[str]] = {}
        for _ in range(50):  # tokens are counted when the log has read the reply
            page = send(url, "GET", "/metrics", None, {}).body.decode()
            for family in text_string_to_metric_families(page):
                for sample in family.samples:
                    found.setdefault(sample.name, set()).update(sample.labels)
            if "tempera_tokens_total" in found:
                break
        yield found


@pytest.mark.parametrize("name", QUERIES)
def test_every_metric_and_label_is_on_a_live_page(name: str, series: dict[str, set[str]]) -> None:
    bare = re.sub(r'"[^"]*"', '""', QUERIES[name])
    used = re.findall(r"([a-z_]+)(?:\{([^}]*)\})?", re.sub(r"by \([^)]*\)|\[[^]]*\]", "", bare))
    metrics = [(metric, labels) for metric, labels in used if metric not in WORDS | OF_PROMETHEUS]
    assert metrics or "up{" in bare
    known: set[str] = set()
    for metric, labels in metrics:
        assert metric in series
        known |= series[metric]
        assert set(re.findall(r"([a-z]+)[=!]", labels)) <= series[metric] | OF_PROMETHEUS
    grouped = {label.strip() for group in re.findall(r"by \(([^)]*)\)", bare) for label in group.split(",")}
    assert grouped <= known | OF_PROMETHEUS


def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    return found


def test_prometheus_reads_every_query(tmp_path: Path) -> None:
    rules = [{"record": f"q{number}", "expr": query} for number, query in enumerate(QUERIES.values())]
    made = tmp_path / "rules.yml"
    made.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}), "utf-8")
    for arguments in (("rules", made), ("rules", ALERTS), ("config", DEPLOY / "prometheus" / "prometheus.yml")):
        done = subprocess.run([promtool(), "check", *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_when_they_should_and_only_then() -> None:
    cases = Path(__file__).with_name("alerts_test.yml")
    written = yaml.safe_load(cases.read_text("utf-8"))["tests"]
    tried = {one["alertname"] for case in written for one in case["alert_rule_test"]}
    assert tried == {rule["alert"] for rule in RULES}
    done = subprocess.run([promtool(), "test", "rules", cases], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_severity_and_words() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(names) == len(set(names))
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"].endswith(".")


def test_panels_say_what_they_show_and_lie_beside_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    for panel in PANELS:
        assert panel["description"].endswith("."), panel["title"]
        assert all(one["datasource"]["uid"] == "${datasource}" for one in panel["targets"])


def test_the_profile_finds_every_gateway_and_grafana_its_board() -> None:
    services = active("observe")
    assert set(services) == {"prometheus", "grafana"}
    scraped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text("utf-8"))["scrape_configs"][0]
    assert scraped["job_name"] == "tempera"
    (lookup,) = scraped["dns_sd_configs"]
    assert lookup["port"] == 8001
    for name in GATEWAYS:
        assert known_as(name, "front") & set(lookup["names"]), name
    assert known_as("prometheus", "front")
    assert not services["prometheus"].get("ports"), "it asks nobody who they are"
    provisioned = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioned / "datasources" / "prometheus.yml").read_text("utf-8"))["datasources"]
    assert (source["url"], source["uid"]) == ("http://prometheus:9090", "prometheus")
    (board,) = yaml.safe_load((provisioned / "dashboards" / "tempera.yml").read_text("utf-8"))["providers"]
    mounted = {volume.split(":")[0]: volume.split(":")[1] for volume in SERVICES["grafana"]["volumes"]}
    assert mounted["./deploy/grafana/dashboard.json"].startswith(board["options"]["path"] + "/")
    assert mounted["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"
    assert services["grafana"]["environment"]["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
