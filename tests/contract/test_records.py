"""Exchanges, feedback, keys and reload over real HTTP, as an operator and a client see them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.contract.conftest import MODELS, WORDS
from tests.contract.targets import ROOT, Target, gateway
from tests.fakes import FakeEngine

CANARY = "sk-canary-5f1c9a7e3b"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("records")


@pytest.fixture(scope="module")
def presets(home: Path) -> Path:
    """The shipped presets, an experiment, and presets that log less."""
    document = yaml.safe_load((ROOT / "presets.yaml").read_text("utf-8"))
    document["presets"] |= {
        "quiet": {"title": WORDS, "hint": WORDS, "log": "parameters"},
        "silent": {"title": WORDS, "hint": WORDS, "log": "off"},
    }
    document["experiments"] = {
        "warmer": {
            "preset": "creative",
            "state": "running",
            "variants": {"same": {}, "warm": {"parameters": {"temperature": 1.1}}},
        }
    }
    path = home / "presets.yaml"
    path.write_text(yaml.safe_dump(document, allow_unicode=True, sort_keys=False), "utf-8")
    return path


@pytest.fixture(scope="module")
def kept(home: Path, presets: Path) -> Iterator[Target]:
    with FakeEngine.in_thread(models=MODELS, max_model_len=32768) as engine:
        flags = ("--presets", str(presets), "--upstream", f"{engine.url}/v1", "--dialect", "vllm")
        with gateway(home, *flags, TEMPERA_UPSTREAM_API_KEY=CANARY) as url:
            yield Target(url, MODELS[0], ())


def eventually(look: Callable[[], Any]) -> Any:
    """What `look` gives once it gives anything: rows are written a moment after the reply."""
    end = time.monotonic() + 20
    while not (found := look()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)
    return found


def row(target: Target, exchange: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        reply = target.get(f"/v1/exchanges/{exchange}")
        return reply.json if reply.status == 200 else None

    found: dict[str, Any] = eventually(look)
    return found


@pytest.mark.parametrize("stream", [False, True])
def test_an_exchange_is_on_record_with_what_was_really_used(kept: Target, stream: bool) -> None:
    reply = kept.chat(model="customer-service", temperature=1.4, stream=stream, user="somebody")
    found = row(kept, reply.exchange)
    assert (found["preset"], found["protocol"], found["outcome"]) == ("customer-service", "chat", "ok")
    assert (found["asked"]["temperature"], found["effective"]["temperature"]) == (1.4, 0.5)
    assert found["adjustments"] == [{"name": "temperature", "asked": 1.4, "used": 0.5, "by": "bound"}]
    assert found["messages"] == [{"role": "user", "content": "Hi"}]
    assert found["text"]
    assert found["usage"]["completion_tokens"] > 0  # asked for in streams too, and not shown to the client
    assert (b'"usage"' in reply.body) != stream
    assert found["revision"] == reply.headers["x-tempera-revision"]
    assert (found["ttft_ms"] is not None) == stream


def test_a_revision_leads_to_its_presets(kept: Target, presets: Path) -> None:
    revision = kept.chat(model="balanced").headers["x-tempera-revision"]
    assert eventually(lambda: traced(kept, revision)) == presets.read_text("utf-8")


def traced(target: Target, revision: str) -> str | None:
    """The presets behind a revision, once they are there."""
    reply = target.get(f"/v1/revisions/{revision}")
    return reply.body.decode() if reply.status == 200 else None


def test_refusals_are_on_record_too(kept: Target) -> None:
    found = row(kept, kept.chat(model="balanced", temperature=9).exchange)
    assert (found["outcome"], found["preset"]) == ("rejected", None)


def test_presets_decide_how_much_is_kept(kept: Target) -> None:
    quiet = row(kept, kept.chat(model="quiet", temperature=0.2).exchange)
    assert (quiet["messages"], quiet["text"]) == (None, None)
    assert quiet["effective"]["temperature"] == 0.2
    silent, later = kept.chat(model="silent").exchange, kept.chat(model="balanced").exchange
    row(kept, later)  # rows are written in order
    assert kept.get(f"/v1/exchanges/{silent}").status == 404


def test_feedback_by_each_of_the_ids(kept: Target) -> None:
    reply = kept.chat(model="balanced", headers={"x-request-id": "turn-7"})
    row(kept, reply.exchange)
    ids = {"exchange_id": reply.exchange, "response_id": reply.json["id"], "request_id": "turn-7"}
    for name, value in ids.items():
        given = kept.send("/v1/feedback", {name: value, "name": "thumb", "value": 1})
        assert (given.status, given.json["exchange_id"]) == (201, reply.exchange)
    assert kept.send("/v1/feedback", {"request_id": "turn-7", "value": None}).status == 201  # taken back
    assert [vote["value"] for vote in row(kept, reply.exchange)["feedback"]] == [1.0, 1.0, 1.0, None]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"request_id": "never-seen", "value": 1}, 404, "exchange_not_found"),
        ({"request_id": "turn-7", "value": 1.5}, 400, "out_of_range"),
        ({"request_id": "turn-7", "value": -2}, 400, "out_of_range"),
        ({"value": 1}, 400, "invalid_request"),
        ({"request_id": "turn-7", "value": "up"}, 400, "invalid_request"),
        ({"request_id": "turn-7", "value": 1, "stars": 5}, 400, "invalid_request"),
        (b"{", 400, "invalid_request"),
    ],
)
def test_feedback_that_cannot_be_taken(kept: Target, body: Any, status: int, code: str) -> None:
    reply = kept.send("/v1/feedback", body)
    assert (reply.status, reply.error["code"]) == (status, code)


def test_an_experiment_is_sticky_told_and_reported(kept: Target) -> None:
    told = {}
    for user in range(40):
        first, second = (kept.chat(model="creative", user=f"user-{user}") for _ in range(2))
        assert first.headers["x-tempera-variant"] == second.headers["x-tempera-variant"]
        experiment, _, variant = first.headers["x-tempera-variant"].partition("=")
        assert experiment == "warmer"
        assert first.params["temperature"] == (1.1 if variant == "warm" else 0.9)
        told[user] = variant
        row(kept, second.exchange)
        assert kept.send("/v1/feedback", {"exchange_id": first.exchange, "value": 1}).status == 201
    assert set(told.values()) == {"same", "warm"}
    assert "x-tempera-variant" not in kept.chat(model="creative").headers  # no unit: the preset, not analysed
    result = kept.get("/v1/experiments/warmer").json
    units = {arm["variant"]: arm["units"] for arm in result["arms"]}
    assert units == {variant: list(told.values()).count(variant) for variant in ("same", "warm")}
    assert result["verdict"] == "not yet"
    listed = kept.get("/v1/experiments").json["data"]
    assert [entry["name"] for entry in listed] == ["warmer"]
    assert kept.get("/v1/presets/creative").json["experiment"] == "warmer"
    assert kept.get("/v1/experiments/colder").error["code"] == "experiment_not_found"


@pytest.mark.parametrize(("language", "word"), [("zh-CN,en;q=0.5", "实验"), ("en", "Experiment")])
def test_a_browser_gets_a_page(kept: Target, language: str, word: str) -> None:
    headers = {"accept": "text/html,*/*", "accept-language": language}
    reply = kept.send("/v1/experiments/warmer", None, headers, "GET")
    assert reply.headers["content-type"].startswith("text/html")
    assert word in reply.body.decode()
    assert "http://" not in reply.body.decode().replace("http://www.w3.org", "")


def test_the_log_is_paged_filtered_binned_and_exported(kept: Target) -> None:
    for _ in range(3):
        last = kept.chat(model="coding", temperature=0.5).exchange
    row(kept, last)
    first = kept.get("/v1/exchanges?preset=coding&limit=2").json
    rest = kept.get(f"/v1/exchanges?preset=coding&limit=2&before={first['next']}").json
    ids = [found["id"] for found in first["data"] + rest["data"]]
    assert ids == sorted(ids, reverse=True)
    assert len(set(ids)) == len(ids) == 3
    bins = kept.get("/v1/exchanges?by=temperature&preset=coding").json["data"]
    assert [(b["preset"], b["temperature"], b["exchanges"]) for b in bins] == [("coding", 0.5, 3)]
    lines = kept.get("/v1/exchanges?format=jsonl&preset=coding").body.splitlines()
    assert {json.loads(line)["id"] for line in lines} == set(ids)
    assert kept.get("/v1/exchanges?format=csv&preset=coding").body.count(b"\n") == 4
    assert kept.get("/v1/exchanges?limit=0").error["param"] == "limit"
    assert kept.get("/v1/exchanges?before=yesterday").error["param"] == "before"
    assert kept.get("/v1/exchanges?colour=red").status == 400


def test_no_client_makes_the_log_unreadable(kept: Target) -> None:
    odd = b'{"model":"coding","messages":[{"role":"user","content":"%b","weight":1e999}]}' % (b"\\ud83d\\ude00" * 9000)
    found = row(kept, kept.send("/v1/chat/completions", odd).exchange)
    assert set(found["messages"][0]["content"]) == {"\N{GRINNING FACE}"}
    assert found["truncated"]
    short = b'{"model":"coding","messages":[{"role":"user","content":"hi","weight":1e999}]}'
    found = row(kept, kept.send("/v1/chat/completions", short).exchange)
    assert found["messages"] == [{"role": "user", "content": "hi", "weight": "1e999"}]
    assert kept.get("/v1/exchanges").status == 200
    assert kept.get("/v1/exchanges?format=jsonl").body


def test_the_engines_key_is_nowhere(kept: Target, home: Path) -> None:
    reply = kept.chat(model="balanced", messages=[{"role": "user", "content": f"my key is {CANARY}"}])
    row(kept, reply.exchange)
    kept.get("/metrics")
    held = [path for path in home.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]
    assert held == []


def test_presets_are_read_again_and_a_broken_file_changes_nothing(kept: Target, presets: Path) -> None:
    before = kept.get("/v1/presets").json["revision"]
    good = presets.read_text("utf-8")
    try:
        presets.write_text(good.replace("min: 0.2", "min: 0.25"), "utf-8")
        eventually(lambda: kept.get("/v1/presets").json["revision"] != before)
        changed = kept.get("/v1/presets").json["revision"]
        assert kept.chat(model="coding", temperature=0.2).params["temperature"] == 0.25
        behind = presets.read_text("utf-8")
        assert eventually(lambda: traced(kept, changed)) == behind
        presets.write_text("presets: {", "utf-8")
        eventually(lambda: kept.get("/readyz").json["presets"] != "ok")
        assert "line" in kept.get("/readyz").json["presets"]
        assert kept.get("/v1/presets").json["revision"] == changed
        assert 'tempera_reloads_total{outcome="refused"}' in kept.get("/metrics").body.decode()
    finally:
        presets.write_text(good, "utf-8")
        eventually(lambda: kept.get("/v1/presets").json["revision"] == before)
    assert kept.get("/readyz").json["presets"] == "ok"


def test_keys_are_needed_once_there_is_one(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gateway.cli", "keys", "new", "--data-dir", str(tmp_path / "data")]

    def make(*arguments: str) -> str:
        return subprocess.run(
            [*command, *arguments], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.strip()

    narrow = make("narrow", "--presets", "coding,creative", "--preset", "coding")
    with FakeEngine.in_thread(models=MODELS) as engine:
        flags = ("--upstream", engine.url, "--dialect", "vllm")
        with gateway(tmp_path, *flags, TEMPERA_OPERATOR_KEY="the-operator") as url:
            target = Target(url, MODELS[0], ())

            def status(path: str, key: str | None, body: Any = None) -> int:
                headers = {"authorization": f"Bearer {key}"} if key else {}
                return target.send(path, body, headers, "POST" if body else "GET").status

            chat = {"messages": [{"role": "user", "content": "Hi"}]}
            wrong, missing = (target.chat(headers=h) for h in ({"authorization": "Bearer tk-no"}, {}))
            assert (wrong.status, wrong.body) == (401, missing.body)
            allowed = target.chat(headers={"authorization": f"Bearer {narrow}"})
            assert (allowed.status, allowed.headers["x-tempera-preset"]) == (200, "coding")
            assert target.chat(headers={"x-api-key": narrow}).status == 200
            assert status("/v1/chat/completions", narrow, chat | {"model": "role-play"}) == 403
            for path in ("/v1/models", "/v1/presets", "/v1/experiments", "/tokenize"):
                assert status(path, None, {"prompt": "x"} if path == "/tokenize" else None) == 401, path
            assert [status(path, None) for path in ("/healthz", "/readyz", "/metrics")] == [200, 200, 200]
            assert [status("/v1/exchanges", key) for key in (None, narrow)] == [401, 401]
            eventually(lambda: status("/v1/exchanges", "the-operator") == 200)  # the log opens beside the serving
            wide = make("wide")
            eventually(lambda: status("/v1/models", wide) == 200)
            rows = eventually(
                lambda: target.send("/v1/exchanges", None, {"authorization": "Bearer the-operator"}, "GET").json["data"]
            )
            assert "narrow" in {found["key"] for found in rows}
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or narrow.encode() not in path.read_bytes(), path


def test_beyond_this_machine_a_key_is_needed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gateway.cli", "serve", "--host", "0.0.0.0", "--port", "0"]
    command += ["--upstream", "http://127.0.0.1:9", "--data-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "keys new" in done.stderr
    assert "Traceback" not in done.stderr
