"""Limits as users meet them: keys made by the command, real gateways, real clients, a real Redis between replicas."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml

from tests.contract.targets import ROOT, Reply, await_ready, free_port, gateway, send
from tests.fakes import FakeEngine, Fault
from tests.serving.redis_server import redis_server

CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"model": "smollm2", "messages": [{"role": "user", "content": "Hi"}]}


def until(true: Callable[[], Any], seconds: float = 15.0) -> Any:
    """What `true` returns as soon as it is true."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.05)
    return found


def keys(home: Path, *arguments: str) -> str:
    """`tempera keys ...`; its standard output."""
    command = [sys.executable, "-m", "gateway.cli", "keys", *arguments, "--data-dir", str(home / "data")]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TEMPERA_")}
    done = subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def ask(url: str, key: str, **fields: Any) -> Reply:
    return send(url, "POST", CHAT, json.dumps(HELLO | fields).encode(), {"authorization": f"Bearer {key}"})


@contextlib.contextmanager
def streaming(url: str, key: str) -> Iterator[http.client.HTTPResponse]:
    """A stream that is open, its first byte read; the connection is dropped at the end."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    body = json.dumps(HELLO | {"stream": True})
    connection.request("POST", CHAT, body, {"authorization": f"Bearer {key}", "content-type": "application/json"})
    reply = connection.getresponse()
    assert (reply.status, len(reply.read(1))) == (200, 1)
    try:
        yield reply
    finally:
        reply.close()
        connection.close()


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    with FakeEngine.in_thread() as fake:
        yield fake


def slow(engine: FakeEngine) -> None:
    engine.text, engine.pace = "on and on " * 2000, 0.05


def flags(engine: FakeEngine) -> tuple[str, ...]:
    return ("--presets", str(ROOT / "presets.yaml"), "--upstream", engine.url, "--dialect", "vllm")


def test_a_key_with_limits_from_its_making_to_its_end(tmp_path: Path, engine: FakeEngine) -> None:
    key = keys(tmp_path, "new", "mobile-app", "--presets", "creative,coding", "--rpm", "5", "--tpm", "100000")
    with gateway(tmp_path, *flags(engine)) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
        told = []
        for _ in range(5):
            raw = client.chat.completions.with_raw_response.create(**HELLO | {"model": "creative"})
            told.append(raw.headers["x-ratelimit-remaining-requests"])
        assert told == ["4", "3", "2", "1", "0"]
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(**HELLO | {"model": "creative"})
        assert caught.value.code == "rate_limit_exceeded"
        assert "Key 'mobile-app' may use 5 requests per minute" in caught.value.message
        headers = caught.value.response.headers
        assert 1 <= int(headers["retry-after"]) <= 120
        assert headers["x-ratelimit-limit-requests"] == "5"
        assert headers["x-ratelimit-remaining-tokens"].isdigit()

        document = tmp_path / "data" / "keys.yaml"  # a limit is changed where it stands
        entries = yaml.safe_load(document.read_text())
        entries["keys"][0]["rpm"] = 7
        document.write_text(yaml.safe_dump(entries))
        reply = until(lambda: (found := ask(url, key, model="creative")).status == 200 and found)
        assert (reply.headers["x-ratelimit-limit-requests"], reply.headers["x-ratelimit-remaining-requests"]) == (
            "7",
            "1",
        )

        assert "mobile-app" in keys(tmp_path, "list")
        keys(tmp_path, "revoke", "mobile-app")
        until(lambda: ask(url, key).status == 401)
        assert send(url, "POST", CHAT, json.dumps(HELLO).encode(), {}).status == 401, (
            "without its last key it stays shut"
        )

        replies = [ask(url, key).body.decode(), str(caught.value), str(dict(headers))]
        pages = [send(url, "GET", page, None, {}).body.decode() for page in ("/metrics", "/readyz")]
        assert not any(key in text for text in (*replies, *pages))
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert kept and not any(key.encode() in data for data in kept), "its own log, the sample log and the keys file"
    assert all(key not in str(seen.headers) for seen in engine.requests)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("TEMPERA_LIMITS_URL", "http://:hunter-two@x:1", "TEMPERA_LIMITS_URL must be redis://"),
        ("TEMPERA_KEYS", "broken.yaml", "broken.yaml:1: expected the node content"),
        ("TEMPERA_KEYS", "nowhere.yaml", "TEMPERA_KEYS names nowhere.yaml, which is not there"),
    ],
)
def test_a_start_that_would_not_hold_what_was_asked_for(tmp_path: Path, name: str, value: str, said: str) -> None:
    (tmp_path / "broken.yaml").write_text("keys: [")
    command = [sys.executable, "-m", "gateway.cli", "serve", "--port", "0", "--upstream", "http://127.0.0.1:9"]
    kept = {key: text for key, text in os.environ.items() if not key.startswith("TEMPERA_")}
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**kept, "PYTHONPATH": str(ROOT), "TEMPERA_DATA_DIR": str(tmp_path / "data"), name: value},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, said in done.stderr) == (1, True), done.stderr
    assert "hunter-two" not in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_tokens_are_settled_with_what_the_engine_counted(tmp_path: Path, engine: FakeEngine) -> None:
    key = keys(tmp_path, "new", "team", "--tpm", "10000")
    with gateway(tmp_path, *flags(engine)) as url:
        first = ask(url, key)
        used = first.json["usage"]["total_tokens"]
        estimate = 10000 - int(first.headers["x-ratelimit-remaining-tokens"])
        second = ask(url, key)
        assert int(second.headers["x-ratelimit-remaining-tokens"]) in (
            v := range(10000 - used - estimate, 10000 - estimate)
        ), v
        for stream in (True, False):
            before = 10000 - int(ask(url, key).headers["x-ratelimit-remaining-tokens"]) - estimate
            ask(url, key, stream=stream, max_tokens=40)
            after = 10000 - int(ask(url, key).headers["x-ratelimit-remaining-tokens"]) - estimate
            assert after - before > estimate, "the reply's tokens count too"


def test_a_place_is_free_again_when_the_client_leaves_and_when_the_engine_fails(
    tmp_path: Path, engine: FakeEngine
) -> None:
    key = keys(tmp_path, "new", "team", "--concurrency", "1")
    slow(engine)
    with gateway(tmp_path, *flags(engine)) as url:
        with streaming(url, key):
            refused = ask(url, key)
            assert (refused.status, refused.error["code"], refused.headers["retry-after"]) == (
                429,
                "rate_limit_exceeded",
                "1",
            )
            assert len(engine.generations) == 1
        engine.text, engine.pace = "short", 0.0
        until(lambda: ask(url, key).status == 200, 5)
        for fault, status in (
            (Fault(garbage=b"no HTTP"), 502),
            (Fault(reset_after=1), 502),
            (Fault(status=500, body={}), 500),
        ):
            engine.script.append(fault)
            assert ask(url, key).status == status
            assert ask(url, key).status == 200


def test_the_whole_gateway_has_a_bounded_queue(tmp_path: Path, engine: FakeEngine) -> None:
    slow(engine)
    limits = {"TEMPERA_MAX_IN_FLIGHT": "1", "TEMPERA_MAX_QUEUED": "1", "TEMPERA_MAX_QUEUE_WAIT": "20"}
    with gateway(tmp_path, *flags(engine), **limits) as url:
        got: list[Reply] = []
        with streaming(url, "any"):
            waiting = threading.Thread(target=lambda: got.append(ask(url, "any")))
            waiting.start()
            until(lambda: b"tempera_in_flight 2.0" in send(url, "GET", "/metrics", None, {}).body)
            refused = ask(url, "any")
            assert (refused.status, refused.error["code"], refused.headers["retry-after"]) == (
                429,
                "too_many_requests",
                "20",
            )
            assert (got, len(engine.generations)) == ([], 1)
            engine.text, engine.pace = "short", 0.0
        waiting.join(10)
        assert [reply.status for reply in got] == [200]
        assert ask(url, "any").status == 200


# --- replicas with one store


def test_two_gateways_hold_one_limit_and_a_killed_one_holds_nothing(tmp_path: Path, engine: FakeEngine) -> None:
    key = keys(tmp_path, "new", "rated", "--rpm", "4", "--tpm", "100000")
    crowd = keys(tmp_path, "new", "crowd", "--concurrency", "1")
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    with redis_server() as store:
        shared = {
            "TEMPERA_LIMITS_URL": store,
            "TEMPERA_LIMITS_LEASE": "2",
            "TEMPERA_KEYS": str(tmp_path / "data" / "keys.yaml"),
        }
        with (
            gateway(one, *flags(engine), **shared) as first,
            mortal(two, *flags(engine), **shared) as (second, process),
        ):
            found = [ask(url, key) for url in (first, second, first, second, first, second)]
            assert [reply.status for reply in found] == [200] * 4 + [429] * 2
            assert [reply.headers["x-ratelimit-remaining-requests"] for reply in found[:5]] == ["3", "2", "1", "0", "0"]

            slow(engine)
            with streaming(second, crowd):
                assert ask(first, crowd).status == 429
                time.sleep(3)
                assert ask(first, crowd).status == 429, "a lease in use is renewed"
                process.kill()
                engine.text, engine.pace = "short", 0.0
                until(lambda: ask(first, crowd).status == 200, 10)


def test_the_store_dies_and_comes_back_and_no_client_sees_it(tmp_path: Path, engine: FakeEngine) -> None:
    key, port = keys(tmp_path, "new", "team", "--rpm", "1000", "--concurrency", "5"), free_port()

    def limits(url: str) -> str:
        page = send(url, "GET", "/readyz", None, {})
        assert page.status == 200
        return str(page.json["limits"])

    with contextlib.ExitStack() as life:
        store = life.enter_context(redis_server(port))
        url = life.enter_context(gateway(tmp_path, *flags(engine), TEMPERA_LIMITS_URL=store))
        assert (ask(url, key).headers["x-ratelimit-remaining-requests"], limits(url)) == ("999", "ok")
        with contextlib.ExitStack() as _:
            stop(port)
            assert [ask(url, key).status for _ in range(5)] == [200] * 5
            assert "held by each replica alone" in limits(url)
        with redis_server(port):
            until(lambda: limits(url) == "ok")
            assert ask(url, key).status == 200


def stop(port: int) -> None:
    from redis import Redis

    with contextlib.suppress(Exception):
        Redis(port=port).shutdown(nosave=True)


@contextlib.contextmanager
def mortal(home: Path, *arguments: str, **environment: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A gateway that the test may kill."""
    port, said = free_port(), home / "output.txt"
    command = [sys.executable, "-m", "gateway.cli", "serve", "--port", str(port), *arguments]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TEMPERA_")}
    with said.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**kept, "TEMPERA_DATA_DIR": str(home / "data"), **environment},
            stdout=output,
            stderr=output,
        )
    try:
        await_ready(process, port, said)
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.kill()
        process.wait(10)
