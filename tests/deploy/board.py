"""`python -m tests.deploy.board [SECONDS]`: the dashboard with live data, as docs/images/dashboard.png.

Two real gateways under a load of every kind, a real Prometheus that scrapes them and holds the alerts, and each panel's
query asked of it. The panels are drawn here, from dashboard.json's own places, titles and units, because Grafana is in
no package registry: what is shown is what the queries answer, not how Grafana renders them. Ends with 1 and the names
of the panels that had no data. Needs `prometheus` (Debian's package will do) and Chromium.
"""

from __future__ import annotations

import contextlib
import html
import http.client
import json
import math
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import yaml
from playwright.sync_api import sync_playwright

from tests.browser.pages import CHROMIUM, FLAGS
from tests.contract.targets import ROOT, free_port, gateway
from tests.deploy.test_dashboard import ALERTS, BOARD, filled
from tests.fakes import FakeEngine, Fault

PICTURE = ROOT / "docs" / "images" / "dashboard.png"
SCRAPED = 2  # seconds
WINDOW = 8 * SCRAPED  # what $__rate_interval becomes: at least four scrapes
COLORS = ("#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#b877d9", "#37872d", "#fade2a", "#3274d9", "#a352cc")
ASKED: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 1.9},
    {"temperature": 0.2, "top_p": 0.5, "max_tokens": 20000},
    {"temperature": 9},
    {"model": "nobody"},
)
PRESETS = ("creative", "coding", "customer-service", "summarization", "role-play")


@contextlib.contextmanager
def prometheus(targets: list[str]) -> Iterator[int]:
    """The port of a Prometheus that scrapes these addresses; it is ready."""
    port, home = free_port(), Path(tempfile.mkdtemp())
    config = {
        "global": {"scrape_interval": f"{SCRAPED}s", "evaluation_interval": f"{SCRAPED}s"},
        "rule_files": [str(ALERTS)],
        "scrape_configs": [{"job_name": "tempera", "static_configs": [{"targets": targets}]}],
    }
    (home / "prometheus.yml").write_text(yaml.safe_dump(config), "utf-8")
    command = ["prometheus", f"--config.file={home}/prometheus.yml", f"--storage.tsdb.path={home}/data"]
    with (home / "said.txt").open("wb") as said:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=said, stderr=said)
    try:
        for _ in range(100):
            with contextlib.suppress(OSError):
                if get(port, "/-/ready")[0] == 200:
                    break
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(home)


def get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def ask(port: int, api: str, **fields: Any) -> list[dict[str, Any]]:
    document = json.loads(get(port, f"/api/v1/{api}?{urlencode(fields)}")[1])
    assert document["status"] == "success", document
    found: list[dict[str, Any]] = document["data"]["result"]
    return found


def visit(urls: list[str], end: float, dice: random.Random) -> None:
    """One client after another: streams and not, within bounds and not, some that leave early."""
    while time.monotonic() < end:
        body = {"messages": [{"role": "user", "content": "Hi"}], "model": dice.choice(PRESETS), "max_tokens": 60}
        body |= dice.choices(ASKED, (6, 3, 2, 0.3, 0.3))[0] | {"stream": dice.random() < 0.8}
        connection = http.client.HTTPConnection(dice.choice(urls).removeprefix("http://"), timeout=30)
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
            reply = connection.getresponse()
            reply.read(2000) if dice.random() < 0.05 else reply.read()
        connection.close()
        time.sleep(dice.expovariate(4))


def load(engine: FakeEngine, urls: list[str], seconds: float) -> None:
    """Visitors for this long; after a third of it the engine is slow for a while, and refuses some."""
    end = time.monotonic() + seconds
    visitors = [threading.Thread(target=visit, args=(urls, end, random.Random(seed))) for seed in range(10)]
    for visitor in visitors:
        visitor.start()
    time.sleep(seconds / 3)
    dice = random.Random(7)
    while time.monotonic() < end - seconds / 2:
        engine.script.append(Fault(status=dice.choice((503, 500, 400)), body={"error": {"message": "no"}}))
        engine.pace = dice.uniform(0.02, 0.06)
        time.sleep(0.3)
    engine.pace = 0.02
    for visitor in visitors:
        visitor.join()


def shown(value: float, unit: str) -> str:
    """A number as Grafana's units have it, roughly."""
    if math.isnan(value):
        return "-"
    if unit == "percentunit":
        return f"{value * 100:.3g}%"
    if unit == "s" and value:
        return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} µs"
    if unit == "bytes":
        return f"{value / 2**20:.3g} MiB" if value >= 2**20 else f"{value / 1024:.3g} KiB"
    return f"{value:.3g}" + {"reqps": " req/s", "cps": "/s"}.get(unit, "") if value < 1000 else f"{value:,.0f}"


def named(legend: str, labels: dict[str, str]) -> str:
    for name, value in labels.items():
        legend = legend.replace("{{" + name + "}}", value)
    return legend or "all"


def stat(panel: dict[str, Any], port: int) -> tuple[str, bool]:
    target = panel["targets"][0]
    found = ask(port, "query", query=query(target))
    unit = panel["fieldConfig"]["defaults"]["unit"]
    if panel["options"]["textMode"] == "name":
        text = ", ".join(named(target["legendFormat"], one["metric"]) for one in found)
    else:
        text = shown(float(found[0]["value"][1]), unit) if found else "no data"
    value = float(found[0]["value"][1]) if found else math.nan
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    color = [step["color"] for step in steps if step["value"] is None or value >= step["value"]][-1:] or ["gray"]
    shade = {"green": "#73bf69", "orange": "#ff9830", "red": "#f2495c"}.get(color[0], "#888")
    size = 25 if len(text) < 11 else 17
    return f'<div class="big" style="color:{shade};font-size:{size}px">{html.escape(text)}</div>', bool(found)


def chart(panel: dict[str, Any], port: int, begin: float, end: float) -> tuple[str, bool]:
    """Lines, stacked where the panel says so, as one SVG with a legend below."""
    lines: list[tuple[str, dict[float, float]]] = []
    for target in panel["targets"]:
        for one in ask(port, "query_range", query=query(target), start=begin, end=end, step=SCRAPED):
            values = {float(at): float(value) for at, value in one["values"] if value != "NaN"}
            lines.append((named(target["legendFormat"], one["metric"]), values))
    custom = panel["fieldConfig"]["defaults"]["custom"]
    stacked, unit = custom["stacking"]["mode"] == "normal", panel["fieldConfig"]["defaults"]["unit"]
    times = sorted({at for _, values in lines for at in values})
    base = dict.fromkeys(times, 0.0)
    tops: list[dict[float, float]] = []
    for _, values in lines:
        top = {at: values.get(at, 0.0) + base[at] for at in times} if stacked else values
        tops.append(top)
        base = top if stacked else base
    high = max((value for top in tops for value in top.values()), default=0) * 1.08 or 1
    width = panel["gridPos"]["w"] * 62 - 30

    def point(at: float, value: float) -> str:
        return f"{62 + (at - begin) / (end - begin) * (width - 70):.1f},{150 - value / high * 140:.1f}"

    drawn = []
    for level in (0, 0.5, 1):
        y = 150 - level / 1.08 * 140
        drawn.append(f'<line x1="62" x2="{width - 8}" y1="{y}" y2="{y}" stroke="#2c3235"/>')
        drawn.append(
            f'<text x="56" y="{y + 4}" text-anchor="end">{html.escape(shown(high / 1.08 * level, unit))}</text>'
        )
    floor = dict.fromkeys(times, 0.0)
    for number, top in enumerate(tops):
        color = COLORS[number % len(COLORS)]
        path = " ".join(point(at, value) for at, value in top.items())
        if stacked:
            back = " ".join(point(at, floor[at]) for at in reversed(times))
            drawn.append(f'<polygon points="{path} {back}" fill="{color}" fill-opacity=".25"/>')
            floor = top
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.3"/>')
    keys = "".join(
        f'<span><i style="background:{COLORS[number % len(COLORS)]}"></i>{html.escape(name)}</span>'
        for number, (name, _) in enumerate(lines)
    )
    return f'<svg width="{width}" height="158">{"".join(drawn)}</svg><div class="keys">{keys}</div>', bool(times)


def query(target: dict[str, Any]) -> str:
    return filled(target["expr"].replace("$__rate_interval", f"{WINDOW}s"))


STYLE = """body{background:#111217;color:#ccccdc;font:12px Inter,"DejaVu Sans",sans-serif;margin:10px;width:1488px}
.board{position:relative}.panel{position:absolute;background:#181b1f;border:1px solid #25272d;border-radius:2px;
box-sizing:border-box;padding:6px 8px;overflow:hidden}.row{position:absolute;font-weight:600;padding:8px 2px}
h4{margin:0 0 6px;font-weight:500}.big{text-align:center;padding-top:16px;white-space:nowrap}
svg text{fill:#9a9aa8;font-size:10px}.keys{line-height:17px}.keys span{margin-right:12px;white-space:nowrap}
.keys i{display:inline-block;width:12px;height:3px;margin-right:5px;vertical-align:middle}
p{color:#8e8e9c;margin:0 0 8px}"""


def page(port: int, begin: float, end: float) -> tuple[str, list[str]]:
    """The board as HTML, and the panels that had nothing to show."""
    parts, empty, y, tallest = [], [], 0, {"row": 34, "stat": 96, "timeseries": 236}
    rows = sorted({panel["gridPos"]["y"] for panel in BOARD["panels"]})
    for row in rows:
        panels = [panel for panel in BOARD["panels"] if panel["gridPos"]["y"] == row]
        height = tallest[panels[0]["type"]]
        for panel in panels:
            box = f"left:{panel['gridPos']['x'] * 62}px;top:{y}px;width:{panel['gridPos']['w'] * 62 - 6}px"
            if panel["type"] == "row":
                parts.append(f'<div class="row" style="{box}">{html.escape(panel["title"])}</div>')
                continue
            inside, full = stat(panel, port) if panel["type"] == "stat" else chart(panel, port, begin, end)
            empty += [] if full else [panel["title"]]
            title = f"<h4>{html.escape(panel['title'])}</h4>"
            parts.append(f'<div class="panel" style="{box};height:{height - 6}px">{title}{inside}</div>')
        y += height
    states = (one["metric"] for one in ask(port, "query", query="ALERTS"))
    alerts = ", ".join(sorted({f"{one['alertname']} ({one['alertstate']})" for one in states}))
    told = (
        f"{BOARD['title']}: the panels of deploy/grafana/dashboard.json, drawn from Prometheus's answers by "
        f"tests/deploy/board.py, not by Grafana. Alerts now: {alerts or 'none'}."
    )
    style = f"<meta charset=utf-8><style>{STYLE}.board{{height:{y}px}}</style>"
    return f"{style}<p>{html.escape(told)}</p><div class=board>{''.join(parts)}</div>", empty


def main(seconds: float) -> int:
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(FakeEngine.in_thread(models=("qwen2.5-7b-instruct",), pace=0.02))
        urls = []
        for name in ("one", "two"):
            home = Path(stack.enter_context(tempfile.TemporaryDirectory())) / name
            home.mkdir()
            urls.append(stack.enter_context(gateway(home, "--upstream", engine.url)))
        port = stack.enter_context(prometheus([url.removeprefix("http://") for url in urls]))
        begin = time.time()
        load(engine, urls, seconds)
        text, empty = page(port, begin + 2 * SCRAPED, time.time())
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which(CHROMIUM), args=FLAGS)
        view = browser.new_page(viewport={"width": 1508, "height": 900})
        view.set_content(text)
        view.screenshot(path=PICTURE, full_page=True)
        browser.close()
    print(f"{PICTURE.relative_to(ROOT)}: {len(empty)} panels without data{': ' if empty else ''}{', '.join(empty)}")
    return 1 if empty else 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 150.0))
